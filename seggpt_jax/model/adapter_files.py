"""Adapters on disk: what a run of train.py with an adapter leaves, beside the weights it was trained for.

RUN/best/STEP and RUN/checkpoints/STEP hold `params`, the few of the adapter, and `adapter`: what it is and of which
architecture and weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from seggpt_jax.errors import InputError
from seggpt_jax.model import adapters, weights
from seggpt_jax.model.adapters import Adapter
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
  """An adapter with what it has learnt.

  Attributes:
    adapter: what it is.
    params: its parameters.
    config: the architecture it was trained with, canvas and all.
    base: the weights it was trained for, as the run named them.
    num_classes: N, background included, of the labels it was trained with.
  """

  adapter: Adapter
  params: dict[str, np.ndarray]
  config: SegGPTConfig
  base: str
  num_classes: int


def describe_adapter(adapter: Adapter, config: SegGPTConfig, base: str, num_classes: int) -> dict[str, Any]:
  """What is stored beside an adapter's parameters, as JSON."""
  return {
    "adapter": adapters.to_dict(adapter),
    "config": config.to_dict(),
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
    values = json.loads(path.read_text())
    adapter, config = adapters.from_dict(values["adapter"]), SegGPTConfig.from_dict(values["config"])
    base, num_classes = str(values["base"]), int(values["num_classes"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: cannot be read as an adapter: {' '.join(str(error).split())}") from error
  return StoredAdapter(adapter, weights.read_arrays(found / "params"), config, base, num_classes)


def adapted_params(directory: str | os.PathLike, stored: StoredAdapter) -> dict[str, Any]:
  """The parameters of weights with an adapter in them: those of a network of the adapter's own configuration.

  Args:
    directory: weights that the adapter was trained for.
    stored: the adapter. A learnt prompt changes no parameter.

  Raises:
    InputError: no weights there, or of another architecture.
  """
  config = weights.load_config(directory)
  theirs, ours = stored.config.to_dict(), config.to_dict()
  for key in _OF_THE_RUN:
    theirs.pop(key), ours.pop(key)
  for key, value in ours.items():
    if theirs[key] != value:
      raise InputError(f"{directory}: found {key} {value}, expected {theirs[key]} as the adapter was trained with")
  params = weights.resize_canvas(weights.load_params(directory, config), config, stored.config.canvas_size)
  return stored.adapter.merge(params, stored.params)


# What a run may set for itself, whatever the weights that it starts from have.
_OF_THE_RUN = ("canvas_size", "drop_path_rate", "image_mean", "image_std")


def load_adapted_model(
  directory: str | os.PathLike, adapter: str | os.PathLike, *, dtype=jnp.float32, **options: Any
) -> tuple[SegGPT, StoredAdapter]:
  """`weights.load_model` with an adapter in it.

  Args:
    directory: weights, a training run, or the name of packaged weights.
    adapter: see `load_adapter`.
    dtype: compute dtype.
    **options: further options of `SegGPT`.

  Raises:
    InputError: one of them is missing, or they do not belong together.
  """
  stored = load_adapter(adapter)
  graph, _ = weights.abstract(stored.config, dtype=dtype, **options)
  params = adapted_params(directory, stored)
  return weights.merge(graph, {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}), stored
