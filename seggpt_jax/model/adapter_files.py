"""Adapters on disk: what a run of train.py with an adapter leaves, beside the weights it was trained for.

RUN/best/STEP and RUN/checkpoints/STEP hold `params`, the few of the adapter, and `adapter`: what it is and of which
architecture and weights.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.model import adapters, parameters, weights
from seggpt_jax.model.adapters import Adapter
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.palette import IGNORE


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
  """An adapter with what it has learned.

  Attributes:
    adapter: what it is.
    params: its parameters.
    config: the architecture it was trained with, canvas and all.
    fingerprint: of the weights it was trained for, see `parameters.fingerprint`.
    base: where they were, as the run named them.
    num_classes: N, background included, of the labels it was trained with.
  """

  adapter: Adapter
  params: dict[str, np.ndarray]
  config: SegGPTConfig
  fingerprint: str
  base: str
  num_classes: int


def describe_adapter(
  adapter: Adapter, config: SegGPTConfig, fingerprint: str, base: str, num_classes: int
) -> dict[str, Any]:
  """What is stored beside an adapter's parameters, as JSON; see `StoredAdapter`."""
  return {
    "adapter": adapters.to_dict(adapter),
    "config": config.to_dict(),
    "fingerprint": fingerprint,
    "base": base,
    "num_classes": num_classes,
  }


def load_adapter(directory: str | os.PathLike) -> StoredAdapter:
  """Reads an adapter: of a run of train.py with one (its best step, else its newest), or of one of its steps.

  Raises:
    InputError: there is none, or it is damaged.
  """
  found = weights.find_items(Path(directory), ("params", "adapter"))
  if found is None:
    raise InputError(f"{directory}: found no adapter in it, expected a run of train.py with config.adapter.kind set")
  path = found / "adapter" / "metadata"
  try:
    stored = _from_description(json.loads(path.read_text()))
    _, network = parameters.abstract(stored.config)
    init = functools.partial(stored.adapter.init, network, stored.config.canvas_size)
    expected = jax.eval_shape(init, jax.random.key(0))
  except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
    # What is no adapter of ours fails in as many ways as there are values.
    raise InputError(f"{path}: cannot be read as an adapter: {one_line(error)[:200]}") from error
  params = weights.read_arrays(found / "params")
  parameters.check_like(str(found), params, expected)
  return dataclasses.replace(stored, params=params)


def _from_description(values: dict[str, Any]) -> StoredAdapter:
  """Inverse of `describe_adapter`, without parameters."""
  adapter, config = adapters.from_dict(values["adapter"]), SegGPTConfig.from_dict(values["config"])
  fingerprint, base, num_classes = (values[key] for key in ("fingerprint", "base", "num_classes"))
  if not (isinstance(num_classes, int) and 2 <= num_classes <= IGNORE):
    raise InputError(f"num_classes: found {num_classes!r}, expected 2..{IGNORE}")
  return StoredAdapter(adapter, {}, config, str(fingerprint), str(base), num_classes)


def adapted_params(directory: str | os.PathLike, stored: StoredAdapter) -> dict[str, Any]:
  """The parameters of weights with an adapter in them: those of a network of the adapter's own configuration.

  Only the values of the weights have to be those it was trained for; they may lie elsewhere.

  Args:
    directory: weights that the adapter was trained for.
    stored: the adapter. A learned prompt changes no parameter.

  Raises:
    InputError: no weights there, or other ones.
  """
  config = weights.load_config(directory)
  theirs, ours = stored.config.to_dict(), config.to_dict()
  for key in _OF_THE_RUN:
    theirs.pop(key), ours.pop(key)
  for key, value in ours.items():
    if theirs[key] != value:
      raise InputError(f"{directory}: found {key} {value}, expected {theirs[key]} as the adapter was trained with")
  params = weights.load_params(directory, config)
  parameters.check_finite(str(directory), params)
  if parameters.fingerprint(params) != stored.fingerprint:
    raise InputError(
      f"{directory}: found weights other than {stored.base}, as it was when the adapter was trained for it"
    )
  return stored.adapter.merge(parameters.resize_canvas(params, config, stored.config.canvas_size), stored.params)


# What a run may set for itself, whatever the weights that it starts from have.
_OF_THE_RUN = ("canvas_size", "drop_path_rate", "image_mean", "image_std")


def load_adapted_model(
  directory: str | os.PathLike, adapter: str | os.PathLike | StoredAdapter, *, dtype=jnp.float32, **options: Any
) -> tuple[SegGPT, StoredAdapter]:
  """`weights.load_model` with an adapter in it.

  Args:
    directory: weights, a training run, or the name of packaged weights.
    adapter: where one lies, see `load_adapter`, or one that has been read.
    dtype: compute dtype.
    **options: further options of `SegGPT`.

  Raises:
    InputError: one of them is missing, or they do not belong together.
  """
  stored = adapter if isinstance(adapter, StoredAdapter) else load_adapter(adapter)
  graph, _ = parameters.abstract(stored.config, dtype=dtype, **options)
  params = adapted_params(directory, stored)
  return parameters.merge(graph, {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}), stored
