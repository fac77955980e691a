"""Fuzz targets: weights of every form, adapters, runs to resume, training configurations, and flags of every command.

Each reads what it is given in the way the commands do, up to the point where a network would be compiled.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from PIL import Image

from benchmarks import nano
from benchmarks.fuzz_targets import Target, commands
from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json
from seggpt_jax.model import digests, parameters, torch_files, torch_weights, weights
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapter
from seggpt_jax.model.adapters import LoRA
from seggpt_jax.training import monitor, resume, setup, sharding
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.config import check_config, expand_paths
from seggpt_jax.training.inputs import open_inputs
from seggpt_jax.training.step import TrainState


@functools.cache
def _expected() -> dict[str, jax.ShapeDtypeStruct]:
  return parameters.abstract(NANO)[1]


@functools.cache
def _params() -> dict[str, np.ndarray]:
  """Returns random parameters of the smallest network."""
  generator = np.random.default_rng(0)
  return {name: generator.normal(size=leaf.shape).astype(np.float32) for name, leaf in _expected().items()}


def _content(folder: Path, among: Path | None = None) -> dict[str, bytes]:
  """Returns the content of all files below a folder that hold anything, by names relative to the folder."""
  paths = sorted(path for path in (among or folder).rglob("*") if path.is_file() and path.stat().st_size)
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _check_finite(params: dict[str, np.ndarray]) -> None:
  for name, value in params.items():
    assert np.isfinite(np.asarray(value, np.float32)).all(), name


# ---------------------------------------------------------------------------------------------------- PyTorch's files


def _converted(path: Path, canary: Path | None = None) -> dict[str, np.ndarray]:
  """Reads PyTorch weights as `seggpt convert` does; the result must be a whole network."""
  try:
    conversion = torch_files.read(path)
  finally:
    assert canary is None or not canary.exists(), "a program ran"
  shapes = {name: value.shape for name, value in conversion.params.items()}
  assert len(shapes) == len(_expected()) or conversion.config != NANO
  for value in conversion.params.values():
    np.asarray(value, np.float32).sum()  # every byte can be read
  return conversion.params


class _Program:
  """Runs a program when it is unpickled."""

  def __init__(self, line: str):
    self._line = line

  def __reduce__(self):
    return os.system, (self._line,)


def pth(folder: Path) -> Target:
  """A .pth file of BAAI's names."""
  torch_files.write(folder / "a.pth", dict(_params()), NANO, "baai")

  def read() -> None:
    for name, value in _converted(folder / "a.pth").items():  # checksums notice any other bytes
      np.testing.assert_array_equal(value, _params()[name])

  return Target({"a.pth": (folder / "a.pth").read_bytes()}, read, structured=False)


def pickles(folder: Path) -> Target:
  """A pickle that would run a program if it were loaded with pickle itself."""
  canary = folder / "canary"
  content = {"model": {"a": np.float32(1)}, "b": _Program(f"touch {canary}")}
  data = pickle.dumps(content, protocol=2)
  (folder / "a.pth").write_bytes(data)

  def read() -> None:
    try:
      _converted(folder / "a.pth", canary)
    except InputError:
      if (folder / "a.pth").read_bytes() != data:  # the seed itself is refused, as it should be
        raise

  return Target({"a.pth": data}, read, structured=False)


def safetensors_file(folder: Path) -> Target:
  """A .safetensors file of BAAI's names."""
  torch_files.write(folder / "a.safetensors", dict(_params()), NANO, "baai")

  def read() -> None:
    _converted(folder / "a.safetensors")

  return Target(_content(folder), read, structured=False)


def hugging_face(folder: Path) -> Target:
  """A Hugging Face directory with an index of shards: its configuration and its index are mutated by structure."""
  torch_files.write(folder / "hf", dict(_params()), NANO, "hf")
  names = [entry.hf for entry in torch_weights.entries(NANO.depth)]
  index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
  (folder / "hf/model.safetensors.index.json").write_text(json.dumps(index))
  seeds = {name: data for name, data in _content(folder).items() if name.endswith(".json")}

  def read() -> None:
    _converted(folder / "hf")

  return Target(seeds, read, structured=True)


# ------------------------------------------------------------------------------------------------- weights directories


def _weights(folder: Path, sealed: bool, which: Callable[[str], bool], structured: bool) -> Target:
  weights.save_weights(folder / "w", _params(), NANO)
  if not sealed:
    (folder / "w" / digests.FILE).unlink()

  def read() -> None:
    params = weights.load_params(folder / "w")
    parameters.check_finite("w", params)
    _check_finite(params)
    if sealed and digests.is_sealed(folder / "w"):
      for name, value in _params().items():
        np.testing.assert_array_equal(params[name], value)

  return Target({name: data for name, data in _content(folder).items() if which(name)}, read, structured)


def _is_json(name: str) -> bool:
  return name.rpartition("/")[2] in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "metadata", digests.FILE)


# ----------------------------------------------------------------------------------------------------------- adapters


def _adapter(folder: Path, sealed: bool) -> Target:
  adapter = LoRA(rank=2)
  fresh = adapter.init(_expected(), NANO.canvas_size, jax.random.key(0))
  params = {name: np.asarray(value) for name, value in fresh.items()}
  description = StoredAdapter(adapter, {}, NANO, parameters.fingerprint(_params()), "base", 3).describe()
  checkpoints = Checkpoints(folder / "run", NANO, 1, adapter=description)
  checkpoints.save_best(TrainState(np.int32(7), params, {}, {}))
  checkpoints.close()
  if not sealed:
    (folder / "run/best/7" / digests.FILE).unlink()

  def read() -> None:
    stored = load_adapter(folder / "run")
    _check_finite(stored.params)
    if sealed and digests.is_sealed(folder / "run/best/7"):
      for name, value in params.items():
        np.testing.assert_array_equal(stored.params[name], value)

  return Target(_content(folder, folder / "run/best"), read, structured=True)


# --------------------------------------------------------------------------------------------------------------- runs


def _state(step: int) -> TrainState:
  params = {name: value + step for name, value in _params().items()}
  state = TrainState(jnp.asarray(step, jnp.int32), params, optax.adamw(1e-3).init(params))
  mesh = sharding.make_mesh(-1, 1)
  where = TrainState(
    sharding.replicated(mesh),
    sharding.tree_sharding(mesh, state.params),
    sharding.tree_sharding(mesh, state.opt_state),
  )
  return jax.device_put(state, where)


def _run(folder: Path, sealed: bool) -> Target:
  """A run of two checkpoints; the files of the newer one, its configuration and its log are mutated."""
  original = folder / "run"
  checkpoints = Checkpoints(original, NANO, 10)
  for step in (2, 4):
    checkpoints.save(_state(step), {"epoch": 24, "best_miou": 0.5, "since_best": 0})
  checkpoints.close()
  config = nano.get_config()
  resume.store_config(original, config)
  lines = [json.dumps({"step": step, "split": "val", "loss": 0.5, "miou": 0.1}) for step in (1, 2, 3)]
  (original / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  if not sealed:
    (original / "checkpoints/4" / digests.FILE).unlink()
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), _state(0))

  def read() -> None:
    # Resuming moves what is damaged, so it works on a copy.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
      copy = Path(scratch) / "run"
      shutil.copytree(original, copy)
      try:
        resume.changed_keys(copy, resume.keep_pairs(copy, config))
      except InputError as error:
        _check_line(error)
      monitor._drop_lines_after(copy / "metrics.jsonl", 2)
      for series in monitor.read_metrics(copy / "metrics.jsonl").values():
        assert all(isinstance(value, int | float) for points in series.values() for _, value in points)
      with contextlib.closing(Checkpoints(copy, NANO, 10)) as opened:
        state, progress = opened.restore(abstract)
      step = int(state.step)
      assert step in (2, 4)
      setup.BestScore(1, progress.get("best_miou", -1.0), progress.get("since_best", 0)).update(0.5)
      if step == 2 or (sealed and digests.is_sealed(copy / "checkpoints/4")):
        for name, value in _params().items():
          np.testing.assert_array_equal(state.params[name], value + step)

  seeds = _content(folder, original / "checkpoints/4")
  seeds |= {f"run/{name}": (original / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
  return Target(seeds, read, structured=True)


def _check_line(error: InputError) -> None:
  assert "\n" not in str(error) and str(error)


# ----------------------------------------------------------------------------------------------------- configurations


def configuration(folder: Path) -> Target:
  """The values of a training configuration."""
  nano.write_dataset(folder / "data", num_train=4, num_val=2)
  config = nano.get_config()
  config.data.path = str(folder / "data")
  config.batch_size = 4 * jax.device_count()
  path = folder / "config.json"
  path.write_text(json.dumps(config.to_dict()))

  def read() -> None:
    try:
      values = ml_collections.ConfigDict(parse_json(path.read_bytes()))
    except Exception:  # no configuration at all: `get_config` of its file fails
      return
    config = expand_paths(values)
    check_config(config)
    model_config = setup.architecture(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    setup._check_batch_size(config, model_config)
    inputs = open_inputs(config, model_config, folder / "run")
    for index in range(2):
      inputs.training(index, np.random.default_rng(index))
    inputs.evaluation(0)
    setup.make_plan(config, model_config, mesh)

  return Target({"config.json": path.read_bytes()}, read, structured=True)


# -------------------------------------------------------------------------------------------------------------- flags


def _flags(name: str, folder: Path) -> Target:
  """The flags of a command, which runs up to the point where it would load a network or write a dataset."""
  nano.write_dataset(folder / "data", num_train=4, num_val=2)
  if name == "evaluate":  # FSS-1000 has a folder for each class
    (folder / "fss/thing").mkdir(parents=True)
    for index in range(4):
      picture = np.zeros((16, 16, 3), np.uint8)
      picture[4:9, 4:9] = 255
      for ending in ("jpg", "png"):
        Image.fromarray(picture).save(folder / f"fss/thing/{index}.{ending}")
  path = folder / "flags.json"
  path.write_text(json.dumps(commands.seed(name, folder)))

  def read() -> None:
    try:
      values = parse_json(path.read_bytes())
    except ValueError:
      return
    if not isinstance(values, dict):
      return
    status, errors = commands.run(name, commands.arguments(values))
    assert status in (0, 2), errors[-3000:]
    if status == 2:
      lines = [line for line in errors.splitlines() if line.startswith("error: ")]
      assert len(lines) == 1 and "Traceback" not in errors, errors[-3000:]
      raise InputError(lines[0])

  return Target({"flags.json": path.read_bytes()}, read, structured=True)


TARGETS: dict[str, Callable[[Path], Target]] = {
  ".pth": pth,
  "pickle with a program": pickles,
  ".safetensors": safetensors_file,
  "Hugging Face folder": hugging_face,
  "weights": lambda folder: _weights(folder, True, lambda name: True, structured=True),
  "weights without digests": lambda folder: _weights(folder, False, lambda name: True, structured=True),
  "metadata of weights": lambda folder: _weights(folder, False, _is_json, structured=True),
  "adapter": lambda folder: _adapter(folder, True),
  "adapter without digests": lambda folder: _adapter(folder, False),
  "run": lambda folder: _run(folder, True),
  "run without digests": lambda folder: _run(folder, False),
  "configuration": configuration,
  **{f"flags of {name}": functools.partial(_flags, name) for name in commands.NAMES},
}
