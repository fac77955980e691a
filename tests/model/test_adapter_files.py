"""Damaged adapters, and weights that an adapter was not trained for, are refused: masks would be silently wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, parameters, weights
from seggpt_jax.model.adapter_files import load_adapted_model, load_adapter
from seggpt_jax.model.adapters import LearnedPrompt, LoRA
from tests import adapter_runs
from tests.loud_network import loud_params


@pytest.fixture
def base(tmp_path):
  weights.save_weights(tmp_path / "base", loud_params(NANO), NANO)
  return tmp_path / "base"


@pytest.fixture
def run(base, tmp_path):
  adapter_runs.write_run(tmp_path / "run", LoRA(rank=4), NANO, base)
  return tmp_path / "run"


def change(run, **values):
  """Changes values in an adapter's description; a new value may be a function of the old one."""
  path = run / "best" / "7" / "adapter" / "metadata"
  (run / "best" / "7" / digests.FILE).unlink(missing_ok=True)  # as if it had been written so
  stored = json.loads(path.read_text())
  path.write_text(json.dumps({**stored, **{k: v(stored[k]) if callable(v) else v for k, v in values.items()}}))


def test_an_adapter_works_with_its_weights_in_another_place(base, run, tmp_path):
  shutil.move(base, tmp_path / "moved")
  model, _ = load_adapted_model(tmp_path / "moved", run)
  plain = parameters.split(weights.load_model(tmp_path / "moved"))[1]
  changed = [name for name, value in parameters.split(model)[1].items() if (value != plain[name]).any()]
  assert len(changed) == 4 * NANO.depth


def test_an_adapter_with_another_canvas_size_works_with_its_weights(base, tmp_path):
  config = dataclasses.replace(NANO, canvas_size=(64, 32))
  for adapter in (LoRA(rank=2), LearnedPrompt()):
    adapter_runs.write_run(tmp_path / type(adapter).__name__, adapter, config, base)
    model, _ = load_adapted_model(base, tmp_path / type(adapter).__name__)
    assert model.config.canvas_size == (64, 32)


@pytest.mark.parametrize("adapter", [LoRA(rank=4), LearnedPrompt()])
def test_other_weights_of_the_same_architecture_are_refused(base, tmp_path, adapter):
  adapter_runs.write_run(tmp_path / "run", adapter, NANO, base)
  weights.save_weights(tmp_path / "other", loud_params(NANO, seed=1), NANO)
  with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'other'}: found weights other than {base}")):
    load_adapted_model(tmp_path / "other", tmp_path / "run")
  shutil.rmtree(base)
  shutil.move(tmp_path / "other", base)
  with pytest.raises(InputError, match="as it was when the adapter was trained for it"):
    load_adapted_model(base, tmp_path / "run")


@pytest.mark.parametrize(
  "values, words",
  [
    ({"config": []}, "cannot be read as an adapter"),
    ({"config": lambda config: config | {"patch_size": 0}}, "cannot be read as an adapter"),
    ({"config": lambda config: config | {"width": "wide"}}, "cannot be read as an adapter"),
    ({"config": lambda config: config | {"layers": 3}}, "found unknown key 'layers'"),
    ({"adapter": []}, "cannot be read as an adapter"),
    ({"adapter": {"kind": "lora", "rank": "four"}}, "cannot be read as an adapter"),
    ({"adapter": {"kind": "lora", "rank": 4, "alpha": float("nan")}}, "found rank 4 and alpha nan"),
    ({"adapter": {"kind": "lora", "rank": 4.5}}, "cannot be read as an adapter"),
    ({"adapter": {"kind": "bitfit"}}, "found kind 'bitfit'"),
    ({"num_classes": "three"}, "num_classes: found 'three', expected 2..255"),
    ({"num_classes": 0}, "num_classes: found 0, expected 2..255"),
    # The parameters do not fit the description.
    ({"adapter": {"kind": "lora", "rank": 2}}, "a has shape (16, 4), expected (16, 2)"),
    ({"adapter": {"kind": "lora", "rank": 4, "targets": ["qkv"]}}, "unexpected parameters"),
    ({"adapter": {"kind": "prompt"}}, "2 missing parameters, first 'prompt.image'"),
    ({"config": lambda config: config | {"mlp_dim": 64}}, "fc1.kernel.b has shape (4, 32), expected (4, 64)"),
  ],
)
def test_a_damaged_adapter_is_named_in_one_line(run, values, words):
  change(run, **values)
  with pytest.raises(InputError) as error:
    load_adapter(run)
  assert str(run / "best" / "7") in str(error.value)
  assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "5", "null", "{}", '{"adapter": {"kind": "lora"}}', "{'a'", "\x00\xff"])
def test_an_unreadable_description_is_named_in_one_line(run, text):
  path = run / "best" / "7" / "adapter" / "metadata"
  path.write_bytes(text.encode("latin1"))
  with pytest.raises(InputError) as error:
    load_adapter(run)
  assert str(error.value).startswith(f"{path}: cannot be read as an adapter: ") and "\n" not in str(error.value)


def test_the_shape_of_a_learned_prompt_is_checked(base, tmp_path):
  adapter_runs.write_run(tmp_path / "run", LearnedPrompt(), NANO, base)
  change(tmp_path / "run", config=lambda config: config | {"canvas_size": [64, 32]})
  with pytest.raises(InputError, match=re.escape("prompt.image has shape (16, 16, 3), expected (32, 32, 3)")):
    load_adapter(tmp_path / "run")


def test_parameters_cut_short_are_named(run):
  folder = run / "best" / "7" / "params"
  shutil.rmtree(folder)
  (folder.parent / digests.FILE).unlink()
  ocp.PyTreeCheckpointer().save(folder, {"a": np.zeros(3, np.float32)})
  with pytest.raises(InputError, match="missing parameters"):
    load_adapter(run)
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(InputError, match="cannot be read as weights"):
    load_adapter(run)
