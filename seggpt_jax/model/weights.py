"""Weights on disk: Orbax directories written by the converter and by training, read back as a SegGPT.

A weights directory holds two items: `params`, with one array for each parameter under its dotted name such as
`blocks.0.attn.qkv.kernel`, and `config`, the architecture as JSON. The step directories of a training run are weights
directories too, with more items in addition to these two.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from seggpt_jax.errors import InputError, one_line, warn_once
from seggpt_jax.files import exclusive, expand, parse_json, refuse_patterns, remove_leftovers_of, writing, written_whole
from seggpt_jax.model import digests, hub, packaged, parameters, torch_files
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT

_WEIGHTS = ("params", "config")
_ADAPTER = ("params", "adapter")


def check_new(directory: str | os.PathLike) -> None:
  """Checks that `save_weights` can create a directory, before time is spent on what to write; deletes leftovers.

  Raises:
    InputError: the path exists already, or cannot be written.
  """
  path = Path(os.path.abspath(expand(directory)))
  remove_leftovers_of(path)  # a process may be killed after its directory has appeared
  if os.path.lexists(path):
    raise InputError(f"{directory}: already exists; choose a new path")
  above = next(parent for parent in path.parents if os.path.lexists(parent))
  if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
    raise InputError(f"{directory}: cannot be written: {above} is not a folder with permission to write")


def check_new_weights(directory: str | os.PathLike) -> None:
  """Checks that `save_weights` can create a directory that can be read back; see `check_new`.

  Raises:
    InputError: the path exists already, cannot be written, or has characters that Orbax takes for a pattern.
  """
  refuse_patterns("OUTPUT", directory)
  check_new(directory)


def check_readable(directory: Path) -> None:
  """Opens weights that have just been written, and reads the smallest parameter.

  Raises:
    InputError: they cannot be read back.
  """
  path = epath.Path(os.path.abspath(directory / "params"))
  ignore_late_reads()
  with _explain_garbled(path), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    stored = handler.metadata(path).tree
    _restore(handler, path, [min(stored, key=lambda name: math.prod(stored[name].shape))])


def save_weights(directory: str | os.PathLike, params: Mapping[str, Any], config: SegGPTConfig) -> None:
  """Writes a weights directory, which appears under its name only when it is complete.

  Args:
    directory: the new directory; missing parents are created.
    params: parameters, on the host or on devices.
    config: their architecture.

  Raises:
    InputError: the directory exists already, or cannot be written.
    MachineError: the disk is full; nothing is left behind.
  """
  check_new_weights(directory)
  # Small files, because encoded arrays stay in memory until their file is full.
  items = ocp.args.Composite(
    params=ocp.args.PyTreeSave(dict(params), ocdbt_target_data_file_size=32_000_000),
    config=ocp.args.JsonSave(config.to_dict()),
  )
  # Host arrays may be views of a memory-mapped file. A copy, Orbax's default, would read the whole file into memory.
  without_copies = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  handler = ocp.CompositeCheckpointHandler(
    params=ocp.PyTreeCheckpointHandler(type_handler_registry=without_copies), config=ocp.JsonCheckpointHandler()
  )
  with writing(directory), written_whole(Path(os.path.abspath(expand(directory)))) as unfinished:
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(epath.Path(unfinished), args=items)
    check_readable(unfinished)
    digests.seal(unfinished)


def _find_checkpoint(path: Path, items: tuple[str, ...]) -> Path | None:
  """Returns the directory that holds all of some items, or None; of a run, the best step is preferred to the newest."""
  best, steps = path / "best", path / "checkpoints"
  for candidate in (path, *_newest_first(path), best, *_newest_first(best), *_newest_first(steps)):
    if all((candidate / item).is_dir() for item in items):
      return candidate
  return None


def _newest_first(directory: Path) -> list[Path]:
  return sorted((p for p in directory.glob("*") if p.name.isdigit()), key=lambda p: -int(p.name))


def find_adapter(path: Path) -> Path | None:
  """Returns the directory of an adapter, or of the best or else the newest adapter in a training run, or None."""
  return _find_checkpoint(path, _ADAPTER)


def find_weights(name: str | os.PathLike) -> Path:
  """Returns the weights directory, or the packaged file, that a name or path stands for.

  Args:
    name: a weights directory, a step directory, a training run (its best weights, else its newest), the name of
      packaged weights, PyTorch weights (a file or a Hugging Face directory), or an address on the Hugging Face hub,
      see `hub.parse`. An existing file or folder takes precedence over packaged weights. PyTorch weights are converted
      once, into a cache.

  Raises:
    InputError: no weights are found.
  """
  path = Path(expand(name))
  if file := packaged.find(name):
    return file
  if not path.exists():
    if address := hub.parse(name):
      return _from_hub(os.fspath(name), address)
    raise InputError(
      f"{name}: not found, expected weights, a training run, {' or '.join(packaged.names()[::-1])} of the package, or "
      "hf://OWNER/NAME of the hub; `seggpt convert` makes weights of a .pth file"
    )
  found = _find_checkpoint(path, _WEIGHTS)
  if found:
    return found
  if _is_torch(path):
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    key = hashlib.sha256(repr((str(path.resolve()), stats)).encode()).hexdigest()
    return _converted(path, hub.cache() / "local" / key[:32])
  if find_adapter(path):
    raise InputError(
      f"{name}: found an adapter, which is not a network by itself, expected weights; pass the adapter with --adapter, "
      "or merge the two with `seggpt merge`"
    )
  raise InputError(
    f"{name}: found no `params` and `config` in it, expected a weights directory or a training run "
    "(convert a .pth or .safetensors file with `seggpt convert` first)"
  )


@functools.lru_cache(maxsize=64)
def _from_hub(name: str, address: hub.Address) -> Path:
  """Fetches weights once in a process, so that the architecture and the parameters are those of one commit."""
  return hub.fetch(name, address, _convert)


def _is_torch(path: Path) -> bool:
  """Returns whether a path is a PyTorch file or a Hugging Face directory."""
  if path.is_dir():
    return (path / "config.json").is_file() and any(
      any(path.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin")
    )
  return path.suffix in hub.FILES


def _converted(source: Path, destination: Path) -> Path:
  """Converts PyTorch weights into the cache, unless they are there. Another process that needs them waits."""
  if destination.is_dir():
    return destination
  with writing(destination):
    destination.parent.mkdir(parents=True, exist_ok=True)
  with exclusive(destination.parent, wait=True):
    if not destination.is_dir():
      _convert(source, destination)
  return destination


def _convert(source: Path, destination: Path) -> None:
  """Makes a weights directory of PyTorch weights, or moves one that is there already."""
  if source.is_dir() and _find_checkpoint(source, _WEIGHTS) == source:
    with writing(destination):
      os.replace(source, destination)
  else:
    conversion = torch_files.read(source)
    save_weights(destination, conversion.params, conversion.config)


def has_weights(name: str | os.PathLike) -> bool:
  """Returns whether a name or path stands for weights of this package or on the hub. Fetches nothing."""
  path = Path(expand(name))
  known = packaged.find(name) is not None or _find_checkpoint(path, _WEIGHTS) is not None
  return known or (not path.exists() and hub.parse(name) is not None)


class Weights(NamedTuple):
  """Weights that a name or path stands for, resolved once; functions that load weights also take this value."""

  name: str  # as the user wrote it
  path: Path  # a weights directory, or a packaged file
  config: SegGPTConfig  # the architecture


def resolve(name: str | os.PathLike | Weights) -> Weights:
  """Finds weights by a name or path, see `find_weights`, and reads their architecture.

  Raises:
    InputError: no weights are found, or their configuration is not a SegGPT's.
  """
  if isinstance(name, Weights):
    return name
  path = find_weights(name)
  if path.is_file():
    return Weights(os.fspath(name), path, packaged.read_config(path))
  file = path / "config" / "metadata"
  try:
    return Weights(os.fspath(name), path, SegGPTConfig.from_dict(parse_json(file.read_bytes())))
  except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
    raise InputError(f"{file}: cannot be read as a SegGPT configuration: {one_line(error)[:200]}") from error


def load_config(name: str | os.PathLike | Weights) -> SegGPTConfig:
  """Returns the architecture of weights, see `resolve`."""
  return resolve(name).config


def load_params(
  name: str | os.PathLike | Weights, shapes: Callable[[], Mapping[str, jax.ShapeDtypeStruct]] | None = None
) -> dict[str, np.ndarray]:
  """Reads parameters as host arrays, in the dtype that they are stored in.

  Args:
    name: name or path of weights, see `find_weights`.
    shapes: returns the shape of each parameter of the architecture; it is only asked when the depth fits.

  Raises:
    InputError: no weights are found, or they do not fit the architecture; names the first parameter that differs.
  """
  name, path, config = resolve(name)
  if path.is_file():
    return packaged.read_params(path)

  def check(stored: Mapping[str, Any]) -> None:
    parameters.check_depth(name, stored, config)
    parameters.check_shapes(name, stored, parameters.abstract(config)[1] if shapes is None else shapes())

  return read_arrays(path / "params", check)


def read_arrays(path: Path, check: Callable[[Mapping[str, Any]], None]) -> dict[str, np.ndarray]:
  """Reads the `params` item of a weights directory or of an adapter as host arrays.

  Its files are compared with their digests meanwhile, since Orbax reads flipped bits as other weights.

  Args:
    path: the item.
    check: gets the shape of each array by name before memory is allocated, and refuses wrong ones.

  Raises:
    InputError: the item cannot be read, differs from what was written, or is not what it should be.
  """
  directory = Path(os.path.abspath(path)).parent
  if not digests.is_sealed(directory):
    warn_once(f"{directory}: has no {digests.FILE}, so damage to its files cannot be noticed")
  path = epath.Path(os.path.abspath(path))
  ignore_late_reads()
  try:
    # A Checkpointer would warn about metadata that is stored next to the item instead of in it.
    with digests.verifying(directory), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
      with _explain_garbled(path):
        stored = handler.metadata(path).tree
        shapes = {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in stored.items()}
      check(shapes)
      with _explain_garbled(path):
        return _restore(handler, path, shapes)
  except digests.DamageError as error:
    raise InputError(f"{directory}: cannot be read as weights, damaged: {error}") from error


@contextlib.contextmanager
def _explain_garbled(path: epath.Path) -> Iterator[None]:
  """Turns any error of a read into one line."""
  try:
    yield
  except Exception as error:  # files that are garbled raise all kinds of errors, from Orbax even a bare Exception
    raise InputError(f"{path}: cannot be read as weights, cut short or damaged: {one_line(error)[:200]}") from error


def _restore(handler: ocp.PyTreeCheckpointHandler, path: epath.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
  """Reads arrays of an item as host arrays."""
  params: dict[str, np.ndarray] = {}
  # One block at a time: reading all at once takes half as much memory again as the weights themselves.
  for _, group in itertools.groupby(sorted(names), lambda name: name.split(".")[:2]):
    restore = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in group}
    item = dict.fromkeys(restore, 0)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore, partial_restore=True)
    # Copied, because Orbax's own buffers are not returned to the system when they are freed.
    params.update({name: np.array(value) for name, value in handler.restore(path, args=args).items()})
  return params


@functools.cache
def ignore_late_reads() -> None:
  """Keeps results that come after a failed read from being printed as tracebacks, one for each array.

  Orbax reads many arrays at once and gives up at the first that fails; the others then find its event loop closed (seen
  in orbax-checkpoint 0.12 with tensorstore 0.1; can go when Orbax cancels them). Call it before a read that may fail.
  """
  before = sys.unraisablehook

  def hook(late: Any) -> None:
    code = getattr(late.object, "cr_code", None)  # of a coroutine
    of_orbax = code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename
    closed = isinstance(late.exc_value, RuntimeError) and str(late.exc_value) == "Event loop is closed"
    if not (of_orbax or closed):
      before(late)

  sys.unraisablehook = hook
  # asyncio logs errors that nobody asked for as well, one traceback for each array.
  logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def load_model(name: str | os.PathLike | Weights, *, dtype=jnp.float32, **options: Any) -> SegGPT:
  """Loads a SegGPT from weights of the converter or of a training run, or from packaged weights.

  Examples:
    >>> model = seggpt_jax.load_model("small")  # for a loop of your own; `Predictor` segments whole images

  Args:
    name: a weights directory, a step directory, a training run (its best weights, else its newest), the name of
      packaged weights, such as "small", PyTorch weights, or an address, such as "hf://BAAI/seggpt-vit-large".
    dtype: compute dtype; parameters become float32 in any case.
    **options: further options of `SegGPT`, such as `remat`.

  Raises:
    InputError: no weights are found, or they do not fit their configuration.
  """
  found = resolve(name)
  # Takes a second for the released weights, while their files are compared with their digests.
  structure = functools.cache(lambda: parameters.abstract(found.config, dtype=dtype, **options))
  params = load_params(found, lambda: structure()[1])
  parameters.check_finite(found.name, params)
  return parameters.fill(structure()[0], params)
