"""Weights on disk: what is saved is loaded again, from every place that a user may name."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest

from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, parameters, weights
from tests.loud_network import loud_params
from tests.model.comparison import assert_same


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_weights_directory_keeps_parameters_and_architecture(square, tmp_path, dtype):
  """A weights directory gives its parameters back bit for bit, and as float32 in a loaded model."""
  params = {name: np.asarray(value).astype(dtype) for name, value in square.params.items()}
  weights.save_weights(tmp_path / "w", params, square.config)
  assert weights.load_config(tmp_path / "w") == square.config
  assert_same(weights.load_params(tmp_path / "w"), params)
  _graph, loaded = parameters.split(weights.load_model(tmp_path / "w"))
  assert_same(loaded, {name: value.astype(np.float32) for name, value in params.items()})
  with pytest.raises(InputError, match="already exists; choose a new path"):
    weights.save_weights(tmp_path / "w", params, square.config)


def test_paths_may_start_with_the_home_folder(tmp_path, monkeypatch):
  """Shells do not expand `~` in `--model-path=~/weights`, nor does Python."""
  monkeypatch.setenv("HOME", str(tmp_path))
  weights.save_weights("~/runs/mine", loud_params(NANO), NANO)
  assert os.listdir(tmp_path / "runs") == ["mine"]
  assert weights.has_weights("~/runs/mine") and not weights.has_weights("~/runs/other")
  assert weights.find_weights("~/runs/mine") == tmp_path / "runs" / "mine"
  with pytest.raises(InputError, match="~/runs/mine: already exists"):
    weights.check_new("~/runs/mine")


def test_a_run_gives_its_best_weights_else_its_newest(tmp_path):
  params = loud_params(NANO)
  for step in (2, 10):
    weights.save_weights(tmp_path / "checkpoints" / str(step), params, NANO)
  assert weights.find_weights(tmp_path) == tmp_path / "checkpoints" / "10"
  assert weights.find_weights(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "10"
  weights.save_weights(tmp_path / "best" / "7", params, NANO)
  assert weights.find_weights(tmp_path) == tmp_path / "best" / "7"


def test_a_folder_without_weights_is_refused_with_what_to_do(tmp_path):
  with pytest.raises(InputError, match=r"found no `params` and `config` in it.*convert a \.pth"):
    weights.load_model(tmp_path)
  with pytest.raises(InputError, match=r"not found, expected weights, a training run, small or drawn of the"):
    weights.load_model(tmp_path / "lost")


def test_what_a_killed_conversion_has_left_is_deleted_by_the_next_one(tmp_path):
  lefts = [tmp_path / f".mine.seggpt-{digit * 32}" for digit in "ab"]
  other = tmp_path / f".other.seggpt-{32 * 'a'}"
  for folder in (*lefts, other):
    (folder / "mine.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    os.utime(folder, (0, 0))
  weights.save_weights(tmp_path / "mine", loud_params(NANO), NANO)
  assert sorted(tmp_path.iterdir()) == [other, tmp_path / "mine"] and digests.is_sealed(tmp_path / "mine")
  lefts[0].mkdir()  # killed when the weights had their name already
  os.utime(lefts[0], (0, 0))
  with pytest.raises(InputError, match="already exists"):
    weights.check_new(tmp_path / "mine")
  assert not lefts[0].exists()


def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path):
  """Weights would be written there without an error, and could not be read back."""
  for name in ("try [2]", "a*b", "what?"):
    with pytest.raises(InputError, match=r"expected a path without \*, \? and \["):
      weights.save_weights(tmp_path / name / "mine", loud_params(NANO), NANO)
  assert not list(tmp_path.iterdir())


def test_weights_are_opened_once_after_they_are_written(tmp_path, monkeypatch):
  monkeypatch.setattr(weights, "refuse_patterns", lambda *_: None)
  with pytest.raises(InputError, match="cannot be read as weights"):
    weights.save_weights(tmp_path / "try [2]", loud_params(NANO), NANO)
  assert not list(tmp_path.iterdir())
