"""Merged weights segment like the weights with their LoRA, and a merge that cannot work says so at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import SegGptForImageSegmentation

from benchmarks.nano import NANO
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model import torch_files, weights
from seggpt_jax.model.adapters import LearnedPrompt, LoRA
from tests import adapter_runs, peers
from tests.commands import seggpt
from tests.loud_network import loud_params


@pytest.fixture
def folder(tmp_path):
  weights.save_weights(tmp_path / "base", loud_params(NANO), NANO)
  adapter_runs.write_run(tmp_path / "lora", LoRA(rank=4, alpha=2.0), NANO, tmp_path / "base")
  return tmp_path


def merge(*arguments):
  return seggpt("merge", *arguments)


def refused(done):
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  return done.stderr


def test_merged_weights_segment_like_weights_with_their_lora(folder):
  done = merge(folder / "base", folder / "lora", folder / "below" / "merged")
  assert done.returncode == 0, done.stderr
  assert f"with {4 * NANO.depth} kernels updated" in done.stdout
  generator = np.random.default_rng(0)
  query, image = generator.integers(0, 256, (2, 16, 16, 3), np.uint8)
  prompts = [(image, generator.integers(0, 3, (16, 16)))]
  beside = Predictor.from_checkpoint(folder / "base", adapter=folder / "lora").predict(query, prompts)
  merged = Predictor.from_checkpoint(folder / "below" / "merged").predict(query, prompts)
  np.testing.assert_array_equal(merged.colors, beside.colors)
  np.testing.assert_array_equal(merged.labels, beside.labels)
  plain = Predictor.from_checkpoint(folder / "base").predict(query, prompts)
  assert np.abs(plain.colors.astype(int) - merged.colors).mean() > 1


def test_merged_weights_go_to_transformers_without_a_missing_name_and_predict_the_same(folder):
  """Reference: this package's network with the merged weights, within 1e-4 of colors of up to 5, in float32."""
  assert merge(folder / "base", folder / "lora", folder / "merged").returncode == 0
  params, config = weights.load_params(folder / "merged"), weights.load_config(folder / "merged")
  torch_files.write(folder / "hf", params, config, "hf")
  theirs, report = SegGptForImageSegmentation.from_pretrained(folder / "hf", output_loading_info=True)
  assert not any(report.values()), report
  inputs = peers.canvases(config, batch=2)
  with torch.no_grad():
    expected = peers.colors(peers.call_theirs(theirs.eval(), *inputs, embedding_type="semantic"))
  found = np.asarray(weights.load_model(folder / "merged", training=False)(*inputs))
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_an_impossible_output_is_reported_before_anything_is_read(folder):
  """The output is checked first: the weights and the run are missing too, but are not what is reported."""
  (folder / "file").write_text("")
  (folder / "link").symlink_to(folder / "nowhere")
  for taken in ("base", "file", "link"):
    assert f"{folder / taken}: already exists" in refused(merge("lost", "lost", folder / taken))
  assert f"{folder / 'file'} is not a folder" in refused(merge("lost", "lost", folder / "file" / "below"))
  assert (folder / "file").read_text() == ""


def test_parts_that_cannot_be_merged_are_refused_and_nothing_is_left(folder):
  adapter_runs.write_run(folder / "prompt", LearnedPrompt(), NANO, folder / "base")
  weights.save_weights(folder / "other", loud_params(NANO, seed=1), NANO)
  output = folder / "merged"
  assert "found a learned prompt, expected a LoRA" in refused(merge(folder / "base", folder / "prompt", output))
  assert f"found weights other than {folder / 'base'}" in refused(merge(folder / "other", folder / "lora", output))
  assert "found no adapter in it" in refused(merge(folder / "base", folder / "base", output))
  assert "expected 3: WEIGHTS RUN OUTPUT" in refused(merge(folder / "base"))
  assert sorted(path.name for path in folder.iterdir()) == ["base", "lora", "other", "prompt"]
