"""Adapters in inference: what they learned must reach the masks of the predictor and of the command."""

from __future__ import annotations

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from seggpt_jax import canvas
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import outputs, pictures
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import label_format
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.adapters import LearnedPrompt, LoRA
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.palette import display_palette, fixed_palette
from tests import adapter_runs
from tests.commands import seggpt
from tests.loud_network import loud_params

SIZE = 32  # of the square that the model of these tests sees
MASKS = {"labels": "binary", "threshold": 127}


@pytest.fixture(scope="module")
def runs(weights_directory, config, tmp_path_factory):
  """A folder with a run that learned a LoRA and one that learned a prompt, both trained on masks of 0 and 255."""
  folder = tmp_path_factory.mktemp("runs")
  for name, adapter in (("lora", LoRA(rank=4, alpha=2.0)), ("prompt", LearnedPrompt())):
    adapter_runs.write_run(folder / name, adapter, config, weights_directory, MASKS)
  return folder


@pytest.fixture(scope="module")
def learned(weights_directory, runs):
  return Predictor.from_checkpoint(weights_directory, adapter=runs / "prompt")


def picture(seed, height=SIZE, width=SIZE):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def a_prompt(seed=100):
  return picture(seed), np.random.default_rng(seed).integers(0, 3, (SIZE, SIZE))


def paint_directly(model, query, learned_params):
  """Predicts the query half of a training canvas with a learned prompt by calling the model; colors as float."""
  images = canvas.normalize(jnp.asarray(np.concatenate([np.zeros_like(query), query])[None]))
  images, targets = LearnedPrompt().prompt(images, jnp.zeros_like(images), learned_params)
  mask = canvas.lower_half_mask(model.config.grid)[None]
  painted = nnx.jit(SegGPT.__call__)(model, images, targets, jnp.asarray(mask))
  return np.asarray(canvas.unnormalize(painted[0, SIZE:]))


# ------------------------------------------------------------------------------------------------------- the predictor


def test_a_lora_is_added_to_the_weights(weights_directory, runs, config):
  """Reference: kernels summed in NumPy, float64; colors within one step of 0..255."""
  stored = load_adapter(runs / "lora")
  params = weights.load_params(weights_directory)
  for name in params:
    if f"lora.{name}.a" in stored.params:
      a, b = (stored.params[f"lora.{name}.{part}"].astype(np.float64) for part in "ab")
      params[name] = params[name] + 2.0 / 4 * a @ b
  graph, _ = parameters.abstract(config)
  summed = Predictor(parameters.merge(graph, {name: jnp.asarray(v, jnp.float32) for name, v in params.items()}))
  adapted = Predictor.from_checkpoint(weights_directory, adapter=runs / "lora")
  query, prompts = picture(0), [a_prompt()]
  found = adapted.predict(query, prompts).colors.astype(int)
  np.testing.assert_allclose(found, summed.predict(query, prompts).colors, atol=1)
  plain = Predictor.from_checkpoint(weights_directory).predict(query, prompts).colors
  assert np.abs(found - plain).mean() > 1
  with pytest.raises(InputError, match="prompts: found none"):
    adapted.predict(query)


def test_a_learned_prompt_answers_queries_that_come_alone(model, runs, learned):
  query = picture(1)
  prediction = learned.predict(query)
  expected = paint_directly(model, query, load_adapter(runs / "prompt").params)
  np.testing.assert_allclose(prediction.colors, expected, atol=0.51)  # rounded to whole colors
  assert np.std(prediction.colors) > 10  # otherwise nothing was compared
  np.testing.assert_array_equal(prediction.palette, fixed_palette(3))
  assert prediction.classes == (0, 1, 2)
  distance = np.linalg.norm(prediction.colors[:, :, None] - fixed_palette(3).astype(float), axis=-1)
  np.testing.assert_array_equal(prediction.labels, np.argmin(distance, axis=-1))


def test_every_tile_of_a_query_meets_the_learned_prompt(model, runs, learned):
  query = picture(2, 2 * SIZE, 2 * SIZE)
  own = load_adapter(runs / "prompt").params
  rows = [
    np.concatenate([paint_directly(model, query[y : y + SIZE, x : x + SIZE], own) for x in (0, SIZE)], axis=1)
    for y in (0, SIZE)
  ]
  np.testing.assert_allclose(learned.predict(query, split=2).colors, np.concatenate(rows), atol=0.51)
  assert learned.predict(picture(2, 17, 91)).labels.shape == (17, 91)


def test_a_prompt_that_is_given_takes_the_place_of_the_learned_one(weights_directory, learned):
  query, prompts = picture(3), [a_prompt()]
  plain = Predictor.from_checkpoint(weights_directory).predict(query, prompts)
  np.testing.assert_array_equal(learned.predict(query, prompts).colors, plain.colors)


def test_a_palette_cannot_be_had_of_a_learned_prompt(learned):
  own = np.array([[10, 200, 30], [240, 20, 90], [0, 0, 0]])
  with pytest.raises(InputError, match="palette cannot be combined with a learned prompt"):
    learned.predict(picture(0), palette=own)
  np.testing.assert_array_equal(learned.predict(picture(0), [a_prompt()], palette=own).palette, own)


def test_a_learned_prompt_has_no_tiles_to_leave_out(learned):
  with pytest.raises(InputError, match="foreground_tiles cannot be combined with a learned prompt"):
    learned.predict(picture(0), split=2, foreground_tiles=True)


def test_an_adapter_is_read_once(weights_directory, runs, learned, tmp_path):
  shutil.copytree(runs / "prompt", tmp_path / "run")
  stored = load_adapter(tmp_path / "run")
  shutil.rmtree(tmp_path / "run")
  predictor = Predictor.from_checkpoint(weights_directory, adapter=stored)
  np.testing.assert_array_equal(predictor.predict(picture(4)).colors, learned.predict(picture(4)).colors)


def test_pictures_without_a_prompt_have_no_panels_of_it(learned, tmp_path):
  query = picture(5, 20, 30)
  prediction, truth = learned.predict(query), np.ones((20, 30), np.uint8)
  outputs.write_prediction(tmp_path, "a", query, [], prediction, truth)
  strip = np.asarray(Image.open(tmp_path / "concat" / "a.png"))
  panels = np.split(strip[pictures.title_height(30) :], 4, axis=1)
  overlays = [outputs.overlay(query, labels, display_palette(3)) for labels in (prediction.labels, truth)]
  expected = [query, prediction.colors, *overlays]
  for found, panel in zip(panels, expected, strict=True):
    np.testing.assert_array_equal(found, panel)


def test_labels_are_read_as_in_the_adapter_s_run(runs):
  for path in ("prompt", "lora", "lora/best", "lora/best/7"):
    assert label_format(runs / path) == LabelFormat("binary", 127), path
  assert label_format(runs / "lora", "index").mode == "index"


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def folders(tmp_path):
  """Two queries, the second without a label, and a prompt; masks of 0 and 255."""
  for folder, name, seed in (("data", "a", 1), ("data", "b", 2), ("prompts", "p", 3)):
    label = np.where(np.random.default_rng(seed).random((40, 31)) < 0.4, 255, 0).astype(np.uint8)
    for kind, pixels in (("images", picture(seed, 40, 31)), ("labels", label)):
      (tmp_path / folder / kind).mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(tmp_path / folder / kind / f"{name}.png")
  (tmp_path / "data" / "labels" / "b.png").unlink()
  (tmp_path / "mapping.json").write_text(json.dumps({"a.png": ["p.png"], "b.png": ["p.png"]}))
  return tmp_path


PROMPTS = ("--prompt-img-dir", "prompts/images", "--prompt-label-dir", "prompts/labels")


def command(folders, *options):
  return seggpt("infer", "--dataset-dir", "data", "--outdir", "out", *options, cwd=folders)


def written(folders, kind, name):
  return np.asarray(Image.open(folders / "out" / kind / f"{name}.png"))


def test_the_command_segments_with_a_lora(folders, weights_directory, runs):
  done = command(folders, "--model-path", weights_directory, "--adapter", runs / "lora", *PROMPTS)
  assert done.returncode == 0, done.stderr
  assert "labels are read as binary, foreground above 127" in done.stdout
  predictor = Predictor.from_checkpoint(weights_directory, adapter=runs / "lora")
  image, label = (np.asarray(Image.open(folders / "prompts" / kind / "p.png")) for kind in ("images", "labels"))
  for name in "ab":
    query = np.asarray(Image.open(folders / "data" / "images" / f"{name}.png"))
    expected = predictor.predict(query, [(image, (label > 127).astype(np.uint8))])
    np.testing.assert_array_equal(written(folders, "label", name), expected.labels)
    panels = written(folders, "concat", name)[pictures.title_height(31) :]
    np.testing.assert_array_equal(panels[:, 3 * 31 : 4 * 31], expected.colors)
  assert len(json.loads((folders / "out" / "metrics.json").read_text())["classes"]) == 2


def test_the_command_segments_with_a_learned_prompt_and_no_other(folders, weights_directory, runs, learned):
  done = command(folders, "--model-path", weights_directory, "--adapter", runs / "prompt")
  assert done.returncode == 0, done.stderr
  assert "every query is prompted by" not in done.stdout
  for name, panels in (("a", 4), ("b", 3)):
    query = np.asarray(Image.open(folders / "data" / "images" / f"{name}.png"))
    expected = learned.predict(query)
    np.testing.assert_array_equal(written(folders, "label", name), expected.labels)
    np.testing.assert_array_equal(written(folders, "color", name), display_palette(3)[expected.labels])
    assert written(folders, "concat", name).shape == (40 + pictures.title_height(31), panels * 31, 3)
  metrics = json.loads((folders / "out" / "metrics.json").read_text())
  truth = np.asarray(Image.open(folders / "data" / "labels" / "a.png")) > 127
  found = written(folders, "label", "a") == 1
  np.testing.assert_allclose(metrics["per_image"]["a"]["iou"][1], (found & truth).sum() / (found | truth).sum())
  assert metrics["unscored"] == ["b"]


@pytest.mark.parametrize(
  "run, options, words",
  [
    ("prompt", ("--top-k", "1"), "--top-k cannot be combined with a learned prompt, which serves every query"),
    ("prompt", ("--mapping", "mapping.json"), "--mapping cannot be combined with a learned prompt"),
    ("prompt", PROMPTS, "--prompt-img-dir cannot be combined with a learned prompt"),
    ("lora", (), "--prompt-img-dir: missing"),
    ("best", PROMPTS, "best: found no adapter in it"),
  ],
)
def test_flags_that_do_not_go_with_an_adapter_end_the_command_with_one_line(
  folders, weights_directory, runs, run, options, words
):
  done = command(folders, "--model-path", weights_directory, "--adapter", runs / run, *options)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  assert words in done.stderr
  assert not (folders / "out").exists()


def test_other_weights_than_the_adapter_s_end_the_command_with_one_line(folders, weights_directory, runs, config):
  weights.save_weights(folders / "other", loud_params(config, seed=9), config)
  done = command(folders, "--model-path", "other", "--adapter", runs / "prompt")
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  assert re.search(f"error: other: found weights other than {weights_directory}", done.stderr)
  assert not (folders / "out").exists()
