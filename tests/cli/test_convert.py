"""Conversion as users start it: real processes, real files, exit statuses and what is printed."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters, torch_files, torch_weights, weights
from seggpt_jax.model.config import SegGPTConfig
from tests.commands import seggpt

CONFIG = SegGPTConfig(
  canvas_size=(32, 16),
  patch_size=8,
  posemb_size=2,
  width=16,
  depth=4,
  num_heads=2,
  mlp_dim=24,
  merge_block=0,
  feature_taps=(0, 1, 2, 3),
  decoder_dim=4,
)


def convert(*args) -> subprocess.CompletedProcess:
  return seggpt("convert", *args)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
  generator = np.random.default_rng(0)
  _, shapes = parameters.abstract(CONFIG)
  return {name: generator.standard_normal(shape.shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(params, tmp_path_factory) -> Path:
  """A file like the released one, with one tensor that no SegGPT has."""
  path = tmp_path_factory.mktemp("checkpoint") / "seggpt.pth"
  tensors = torch_weights.to_torch(dict(params), CONFIG.depth, "baai")
  state = {name: torch.tensor(value) for name, value in tensors.items()}
  torch.save({"model": {**state, "extra.weight": torch.zeros(2)}}, path)
  return path


def test_there_and_back(params, checkpoint, tmp_path):
  """The three commands of the docs: to JAX, back to the names of the original, and to a transformers directory.

  Reference: the parameters the file was made of, bit for bit. Nothing but the table and the result is printed.
  """
  ours = tmp_path / "weights" / "tiny"
  done = convert(checkpoint, ours)
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  rows = {line.split()[0]: line.split()[1:] for line in lines}
  assert rows["mapped"] == [str(len(params)), f"{sum(p.size for p in params.values()):,}", "float32"]
  assert rows["missing"] == ["0"]
  assert rows["unexpected"] == ["1", "extra.weight"]
  assert lines[-2:] == ["depth 4, width 16, heads 2, canvas 32 x 16", f"written: {ours}"]
  assert weights.load_config(ours) == CONFIG
  loaded = parameters.split(weights.load_model(ours))[1]
  assert loaded.keys() == params.keys()
  for name, value in params.items():
    np.testing.assert_array_equal(loaded[name], value)

  for target, name in (("baai", "back.pth"), ("hf", "back_hf")):
    done = convert("--to", target, ours, tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")
    again = torch_files.read(tmp_path / name)
    assert (again.layout, again.config) == (target, CONFIG)
    for name, value in params.items():
      np.testing.assert_array_equal(again.params[name], value)


def test_weights_of_a_training_run(params, tmp_path):
  """INPUT may be a training run: its best weights are taken, or else its newest."""
  run = tmp_path / "run"
  for step in ("checkpoints/2", "checkpoints/10"):
    weights.save_weights(run / step, {name: value + int(Path(step).name) for name, value in params.items()}, CONFIG)
  done = convert(run, tmp_path / "newest")
  assert (done.returncode, done.stderr) == (0, "")
  np.testing.assert_array_equal(weights.load_params(tmp_path / "newest")["norm.scale"], params["norm.scale"] + 10)
  weights.save_weights(run / "best", params, CONFIG)
  assert convert("--to=baai", run, tmp_path / "best.safetensors").returncode == 0
  np.testing.assert_array_equal(
    torch_files.read(tmp_path / "best.safetensors").params["norm.scale"], params["norm.scale"]
  )


class RunsCode:
  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.system, (f"touch {self.marker}",)


def refused(*args) -> str:
  """Checks status 2, one line on stderr and nothing on stdout; returns the line."""
  done = convert(*args)
  assert (done.returncode, done.stdout) == (2, ""), done
  assert done.stderr.startswith("error: ")
  assert done.stderr.count("\n") == 1
  return done.stderr


def test_missing_input(tmp_path):
  """A mistyped path is named in one line, and no output appears."""
  assert f"{tmp_path / 'nothing.pth'}: not found" in refused(tmp_path / "nothing.pth", tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_malicious_input(tmp_path):
  """A file that tries to run code is refused, and its code has not run."""
  torch.save({"model": RunsCode(tmp_path / "marker")}, tmp_path / "evil.pth")
  assert "could run code" in refused(tmp_path / "evil.pth", tmp_path / "out")
  assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_text_file(tmp_path):
  """A web page saved as .pth, the usual failed download."""
  (tmp_path / "w.pth").write_text("<!DOCTYPE html>\n<html>404</html>\n")
  assert "w.pth: cannot be read as a PyTorch checkpoint" in refused(tmp_path / "w.pth", tmp_path / "out")


def test_existing_output_is_kept(checkpoint, tmp_path):
  """An existing model is not overwritten."""
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "precious").write_text("untouched")
  assert "already exists; choose a new path" in refused(checkpoint, tmp_path / "out")
  assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["untouched"]


@pytest.mark.parametrize(
  ("args", "message"),
  [(["one"], "found 1 argument, expected 2: INPUT OUTPUT"), (["--to", "tf", "a", "b"], "--to=tf")],
)
def test_wrong_command_line(args, message):
  """Wrong flags end with status 2 and one line, too."""
  assert message in refused(*args)


@pytest.mark.parametrize("damage", ["emptied", "cut short", "config"])
def test_damaged_weights_are_refused_by_name(params, tmp_path, damage):
  """An incomplete copy must not look like a bug of the program."""
  weights.save_weights(tmp_path / "w", params, CONFIG)
  if damage == "config":
    (tmp_path / "w" / "config" / "metadata").write_text('{"width": "a"}')
  for path in [path for path in (tmp_path / "w" / "params").rglob("*") if path.is_file()]:
    if damage == "emptied":
      path.unlink()
    elif damage == "cut short" and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(InputError, match="cannot be read as") as caught:
    weights.load_model(tmp_path / "w")
  assert "\n" not in str(caught.value)
