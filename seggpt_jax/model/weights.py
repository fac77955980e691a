"""Weights on disk: Orbax directories written by the converter and by train.py, read back as a SegGPT.

A weights directory holds two items, `params` (one array for each parameter, under its dotted name such as
`blocks.0.attn.qkv.kernel`) and `config` (the architecture as JSON). The step directories of a training run are weights
directories too, with more items beside these two.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import writing
from seggpt_jax.model import packaged
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT


def check_new(directory: str | os.PathLike) -> None:
  """Says whether `save_weights` can make the directory, before there is anything to write.

  Raises:
    InputError: the directory exists already, or nothing can be written there.
  """
  path = Path(os.path.abspath(directory))
  if os.path.lexists(path):
    raise InputError(f"{directory}: found something there already, expected a path that does not exist")
  above = next(parent for parent in path.parents if os.path.lexists(parent))
  if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
    raise InputError(f"{directory}: cannot be written: {above} is no folder that can be written to")


def save_weights(directory: str | os.PathLike, params: Mapping[str, Any], config: SegGPTConfig) -> None:
  """Writes a weights directory; it appears under its name only when it is whole.

  Raises:
    InputError: the directory exists already, or cannot be written.
  """
  check_new(directory)
  path = epath.Path(os.path.abspath(directory))
  # Files of 32 MB: what is encoded waits in memory until its file is full.
  items = ocp.args.Composite(
    params=ocp.args.PyTreeSave(dict(params), ocdbt_target_data_file_size=32_000_000),
    config=ocp.args.JsonSave(config.to_dict()),
  )
  # Host arrays are written where they lie: they may be views of a memory-mapped file, which a copy would read whole.
  in_place = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  handler = ocp.CompositeCheckpointHandler(
    params=ocp.PyTreeCheckpointHandler(type_handler_registry=in_place), config=ocp.JsonCheckpointHandler()
  )
  with writing(directory):
    path.parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(path, args=items)


def find_weights(directory: str | os.PathLike) -> Path:
  """What is meant by a path: a weights directory itself, or of a training run its best or else its newest step; or by
  a name: the file of the weights that come with the package.

  Raises:
    InputError: there is none.
  """
  path = Path(directory)
  if file := packaged.find(directory):
    return file
  if not path.exists():
    raise InputError(
      f"{directory}: not found, expected a weights directory of convert_torch_weights.py or train.py, or one of the "
      f"packaged weights: {', '.join(packaged.names())}"
    )
  found = _weights_in(path)
  if found:
    return found
  if find_items(path, ("params", "adapter")):
    raise InputError(
      f"{directory}: found an adapter, which is not a network by itself, expected weights here and the adapter beside "
      "them: --adapter, or merge the two with `python -m seggpt_jax.model.merge`"
    )
  raise InputError(
    f"{directory}: found no `params` and `config` in it, expected a weights directory of convert_torch_weights.py or "
    "train.py (a .pth or .safetensors file has to go through convert_torch_weights.py first)"
  )


def has_weights(directory: str | os.PathLike) -> bool:
  """Whether `find_weights` finds any there."""
  return packaged.find(directory) is not None or _weights_in(Path(directory)) is not None


def _weights_in(path: Path) -> Path | None:
  return find_items(path, ("params", "config"))


def find_items(path: Path, items: tuple[str, ...]) -> Path | None:
  """The directory that holds these items: the path itself, or of a run its best step, or else its newest."""
  best, steps = path / "best", path / "checkpoints"
  for candidate in (path, *_newest_first(path), best, *_newest_first(best), *_newest_first(steps)):
    if all((candidate / item).is_dir() for item in items):
      return candidate
  return None


def _newest_first(directory: Path) -> list[Path]:
  return sorted((p for p in directory.glob("*") if p.name.isdigit()), key=lambda p: -int(p.name))


def load_config(directory: str | os.PathLike) -> SegGPTConfig:
  """The architecture of a weights directory.

  Raises:
    InputError: no weights there, or a configuration of another program.
  """
  path = find_weights(directory)
  if path.is_file():
    return packaged.read_config(path)
  path = path / "config" / "metadata"
  try:
    return SegGPTConfig.from_dict(json.loads(path.read_text()))
  except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
    raise InputError(f"{path}: cannot be read as a SegGPT configuration: {one_line(error)[:200]}") from error


def load_params(directory: str | os.PathLike, config: SegGPTConfig | None = None) -> dict[str, np.ndarray]:
  """The parameters of a weights directory as host arrays, in the dtype they are stored in.

  Args:
    directory: a weights directory, or a training run.
    config: the architecture they have to fit; by default the one stored beside them.

  Raises:
    InputError: no weights there, or they do not fit the architecture: names the first parameter that differs.
  """
  found = find_weights(directory)
  if found.is_file():
    return packaged.read_params(found)
  params = read_arrays(found / "params")
  check_shapes(str(directory), params, config or load_config(directory))
  return params


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """The `params` item of a weights directory or of an adapter, as host arrays.

  Raises:
    InputError: it cannot be read.
  """
  path = epath.Path(os.path.abspath(path))
  params: dict[str, np.ndarray] = {}
  try:
    # Not through a Checkpointer, which warns about metadata that lie beside the item and not in it.
    handler = ocp.PyTreeCheckpointHandler()
    names = handler.metadata(path).tree
    # Block by block: all at once, reading takes half as much memory again as the weights themselves.
    for _, group in itertools.groupby(sorted(names), lambda name: name.split(".")[:2]):
      restore = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in group}
      item = dict.fromkeys(restore, 0)
      args = ocp.args.PyTreeRestore(item=item, restore_args=restore, partial_restore=True)
      # Copied, since Orbax's own buffers are not given back to the system when they are freed.
      params.update({name: np.array(value) for name, value in handler.restore(path, args=args).items()})
    handler.close()
  except (OSError, ValueError, KeyError, RuntimeError) as error:
    raise InputError(f"{path}: cannot be read as weights, cut short or damaged: {one_line(error)[:200]}") from error
  return params


def load_model(directory: str | os.PathLike, *, dtype=jnp.float32, **options: Any) -> SegGPT:
  """Loads a SegGPT from any directory written by convert_torch_weights.py or train.py, or the packaged one by name.

  Args:
    directory: a weights directory, a step directory, a training run (its best weights, else its newest), or the name
      of weights that come with the package, "small". A folder of that name goes before.
    dtype: compute dtype; parameters are float32 whatever they are stored in.
    **options: further options of `SegGPT`, such as `remat`.

  Returns:
    The model, ready to be called.

  Raises:
    InputError: no weights there, or weights that do not fit their configuration.
  """
  config = load_config(directory)
  graph, _ = abstract(config, dtype=dtype, **options)
  params = load_params(directory, config)
  check_finite(str(directory), params)
  return merge(graph, {name: jnp.asarray(value, jnp.float32) for name, value in params.items()})
