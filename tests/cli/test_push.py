"""Weights uploaded to a hub, with the page that describes them, and read again by their name there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from benchmarks.hub_server import serve
from benchmarks.nano import NANO
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.seggpt import SegGPT
from tests.commands import seggpt


@pytest.fixture
def run(tmp_path) -> Path:
  """A training run as far as the converter and the card read it."""
  params = {name: np.asarray(value) for name, value in parameters.split(SegGPT(NANO, rngs=nnx.Rngs(0)))[1].items()}
  run = tmp_path / "run"
  weights.save_weights(run / "best" / "20", params, NANO)
  data = {"path": "/somewhere/private/scratches", "num_classes": 3, "class_names": ["scratch", "dent"], "zoom": 0.0}
  config = {"data": data, "num_steps": 40, "model": {"init_from": "/home/me/start"}, "optim": {"peak": 1e-4}}
  (run / "config.json").write_text(json.dumps(config))
  lines = [
    {"step": step, "split": "val", "loss": 1.0, "miou": miou, "iou_1": miou} for step, miou in ((20, 0.7), (40, 0.6))
  ]
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return run


def convert(address: str, home: Path, *arguments: object, token: str = "writer") -> subprocess.CompletedProcess:
  hub = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
  return seggpt("convert", *arguments, env={**hub, "HF_HUB_DISABLE_XET": "1"})


@pytest.mark.parametrize("to", ["", *(pytest.param(to, marks=pytest.mark.slow) for to in ("hf", "baai"))])
def test_pushed_weights_are_read_by_their_name_and_have_a_card(tmp_path, run, to):
  output, repositories = tmp_path / ("out.safetensors" if to == "baai" else "out"), {}
  options = [f"--to={to}"] if to else []
  (tmp_path / "hub").mkdir()
  with serve(repositories, uploads=tmp_path / "hub") as (address, requests):
    done = convert(address, tmp_path / "home", *options, run, output, "--push=me/scratches", "--private")
    assert (done.returncode, "uploaded: " in done.stdout) == (0, True), done.stderr
    name = "hf://me/scratches/out.safetensors" if to == "baai" else "hf://me/scratches"
    again = convert(address, tmp_path / "home", name, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    mine = repositories["me/scratches"] / "README.md"
    card = mine.read_text()
    mine.write_text("my own page")
    more = convert(address, tmp_path / "home", *options, run, tmp_path / f"more{output.suffix}", "--push=me/scratches")
    assert more.returncode == 0 and mine.read_text() == "my own page"
  assert "private: True" in requests and any(each.startswith("PUT lfs/") for each in requests)
  expected = weights.load_params(run)
  for key, value in weights.load_params(tmp_path / "again").items():
    np.testing.assert_array_equal(value, expected[key])
  assert f"--model-path {name} " in card and f'from_checkpoint("{name}")' in card
  for line in (
    "| data set | scratches |",
    "| names of classes 1, 2, ... | scratch, dent |",
    "| `model.init_from` | start |",
    "| mIoU, validation, step 20 | 0.700 |",
  ):
    assert line in card.splitlines()
  assert "private" not in card and "/home" not in card


def test_refused_uploads_end_in_one_line_before_anything_is_converted(tmp_path, run):
  with serve({}, uploads=tmp_path) as (address, _):
    done = convert(address, tmp_path / "home", run, tmp_path / "out", "--push=me/scratches", token="reader")
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert "me/scratches: refuses the upload" in done.stderr and "hf auth login" in done.stderr
  assert "nothing is written" in done.stderr
  unreachable = convert(address, tmp_path / "home", run, tmp_path / "out", "--push=me/scratches")
  assert unreachable.returncode == 2 and unreachable.stderr.count("\n") == 1, unreachable.stderr
  assert "me/scratches: the upload to" in unreachable.stderr and "nothing is written" in unreachable.stderr
  for flags, message in (
    (["--push=scratches"], "scratches: expected OWNER/NAME"),
    (["--push=me/a--b"], "me/a--b: cannot be a repository"),
    (["--private"], "--push: not found; --private needs it"),
  ):
    done = convert(address, tmp_path / "home", run, tmp_path / "out", *flags)
    assert done.returncode == 2 and message in done.stderr
  assert not (tmp_path / "out").exists()
