"""Adapters on disk, as a training run with an adapter writes them, and their use with the weights they belong to.

`best/STEP` and `checkpoints/STEP` in the run directory hold two items: `params`, the adapter's parameters, and
`adapter`, a description as JSON: the adapter's settings, and the architecture and weights that it was trained for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import expand, parse_json
from seggpt_jax.model import adapters, parameters, weights
from seggpt_jax.model.adapters import Adapter
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.model.weights import Weights
from seggpt_jax.palette import IGNORE


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
  """A trained adapter."""

  adapter: Adapter  # the adapter's kind and settings
  params: dict[str, np.ndarray]  # the adapter's parameters
  config: SegGPTConfig  # the architecture that it was trained with, including the canvas size
  fingerprint: str  # content hash of the weights that it was trained for, see `parameters.fingerprint`
  base: str  # path or name of those weights, as the run's configuration had it
  num_classes: int  # number of classes in the training labels, background included

  @property
  def is_prompt(self) -> bool:
    """Returns whether it is a learned prompt, which answers without prompts."""
    return isinstance(self.adapter, adapters.LearnedPrompt)

  def describe(self) -> dict[str, Any]:
    """Returns the description that is stored with the parameters, as values for JSON."""
    known = {"adapter": adapters.to_dict(self.adapter), "config": self.config.to_dict()}
    return known | {"fingerprint": self.fingerprint, "base": self.base, "num_classes": self.num_classes}


def load_adapter(directory: str | os.PathLike) -> StoredAdapter:
  """Reads an adapter.

  Args:
    directory: a run directory (its best step, else its newest), or the directory of one step.

  Raises:
    InputError: no adapter is found, or it is damaged.
  """
  found = weights.find_adapter(Path(expand(directory)))
  if found is None:
    raise InputError(f"{directory}: found no adapter in it, expected a training run with config.adapter.kind set")
  path = found / "adapter" / "metadata"
  with _reading_description(path):
    stored = _from_description(parse_json(path.read_bytes()))

  def check(arrays: Mapping[str, Any]) -> None:
    parameters.check_depth(str(found), arrays, stored.config)
    with _reading_description(path):
      _, network = parameters.abstract(stored.config)
      init = functools.partial(stored.adapter.init, network, stored.config.canvas_size)
      expected = jax.eval_shape(init, jax.random.key(0))
    parameters.check_shapes(str(found), arrays, expected)

  params = weights.read_arrays(found / "params", check)
  parameters.check_finite(str(found), params)
  return dataclasses.replace(stored, params=params)


def load_lora(directory: str | os.PathLike) -> StoredAdapter:
  """Reads an adapter that can be merged into weights.

  Raises:
    InputError: no adapter is found, it is damaged, or it is a learned prompt.
  """
  stored = load_adapter(directory)
  if not isinstance(stored.adapter, adapters.LoRA):
    raise InputError(f"{directory}: found a learned prompt, expected a LoRA: a prompt cannot be merged into weights")
  return stored


@contextlib.contextmanager
def _reading_description(path: Path) -> Iterator[None]:
  """Turns every way in which a description with wrong values can fail into one line that names its file."""
  try:
    yield
  except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
    raise InputError(f"{path}: cannot be read as an adapter: {one_line(error)[:200]}") from error


def _from_description(values: dict[str, Any]) -> StoredAdapter:
  """Inverts `StoredAdapter.describe`; the result has no parameters."""
  adapter, config = adapters.from_dict(values["adapter"]), SegGPTConfig.from_dict(values["config"])
  fingerprint, base, num_classes = (values[key] for key in ("fingerprint", "base", "num_classes"))
  if not (isinstance(num_classes, int) and 2 <= num_classes <= IGNORE):
    raise InputError(f"num_classes: found {num_classes!r}, expected 2..{IGNORE}")
  return StoredAdapter(adapter, {}, config, str(fingerprint), str(base), num_classes)


def adapted_params(directory: str | os.PathLike | Weights, stored: StoredAdapter) -> dict[str, Any]:
  """Reads weights and merges an adapter into them.

  Args:
    directory: name or path of the weights that the adapter was trained for; only their values count.
    stored: the adapter. A learned prompt changes no parameter.

  Returns:
    Parameters of a network with the adapter's configuration.

  Raises:
    InputError: no weights are found, or the adapter was trained for others.
  """
  found = weights.resolve(directory)
  name, config = found.name, found.config
  expected = stored.config.to_dict()
  for key, value in config.to_dict().items():
    if key not in _SET_BY_RUNS and expected[key] != value:
      raise InputError(f"{name}: found {key} {value}, expected {expected[key]} as the adapter was trained with")
  params = weights.load_params(found)
  parameters.check_finite(name, params)
  if parameters.fingerprint(params) != stored.fingerprint:
    raise InputError(f"{name}: found weights other than {stored.base}, as it was when the adapter was trained for it")
  return stored.adapter.merge(parameters.resize_canvas(params, config, stored.config.canvas_size), stored.params)


# Values that a run may set itself, so they may differ from those of the weights that it starts from.
_SET_BY_RUNS = ("canvas_size", "drop_path_rate", "image_mean", "image_std")


def load_adapted_model(
  directory: str | os.PathLike | Weights, adapter: str | os.PathLike | StoredAdapter, **options: Any
) -> tuple[SegGPT, StoredAdapter]:
  """Loads a SegGPT with an adapter merged into it.

  Args:
    directory: a weights directory, a training run, or the name of packaged weights.
    adapter: the directory of an adapter, see `load_adapter`, or what `load_adapter` returned.
    **options: options of `SegGPT`, such as `dtype`.

  Returns:
    The model, and the adapter.

  Raises:
    InputError: weights or adapter are not found, or do not belong together.
  """
  stored = adapter if isinstance(adapter, StoredAdapter) else load_adapter(adapter)
  params = adapted_params(directory, stored)
  return parameters.build_model(stored.config, params, **options), stored
