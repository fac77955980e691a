"""Inference at the scale of training: windows as large as the network's square, and prompts of cells."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data import scale
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import decode_prediction, without_specks
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import (
  Objects,
  OperatingPoint,
  measure_objects,
  read_operating_point,
  trained_options,
  write_operating_point,
)
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.palette import fixed_palette

SIZE = 32  # side of the square of the test network


@pytest.fixture(scope="module")
def predictor(model):
  return Predictor(model)


def labeled(seed, height, width, num_classes=3):
  generator = np.random.default_rng(seed)
  label = np.zeros((height, width), np.uint8)
  for value in range(1, num_classes):
    row, col = generator.integers(0, height - 8), generator.integers(0, width - 8)
    label[row : row + 8, col : col + 8] = value
  return generator.integers(0, 256, (height, width, 3), np.uint8), label


def test_an_image_of_one_square_equals_plain_inference_with_the_same_cells(predictor):
  """The reference is `predict` on the square itself with the assembled prompt: colors are equal to the last digit."""
  prompts, (image, _) = [labeled(seed, 40, 50) for seed in range(4)], labeled(9, SIZE, SIZE)
  samples = [{"image": image, "label": label} for image, label in prompts]
  (made,) = scale.make_prompts(samples, 2, SIZE)
  wanted = predictor.predict(image, [(made["image"], made["label"])])
  found = predictor.predict(image, prompts, zoom=1, prompt_grid=2)
  np.testing.assert_array_equal(found.colors, wanted.colors)


def test_windows_of_a_large_image_are_predicted_as_if_alone(predictor):
  prompts, (image, _) = [labeled(0, 40, 50)], labeled(9, 2 * SIZE, 3 * SIZE)
  whole = predictor.predict(image, prompts, zoom=1)
  part = image[SIZE:, SIZE : 2 * SIZE]
  alone = predictor.predict(part, prompts, zoom=1)
  np.testing.assert_allclose(whole.colors[SIZE:, SIZE : 2 * SIZE].astype(int), alone.colors.astype(int), atol=1)


def test_objects_of_prompts_are_shown_two_patches_large(tmp_path):
  config = VARIANTS["drawn"]  # windows of 96 pixels, patches of 8
  label = np.zeros((300, 400), np.uint8)
  label[10:30, 10:30] = 1
  label[100:300, 100:300] = 2
  files = [tmp_path / f"{number}.png" for number in range(2)]
  for file in files:
    Image.fromarray(label).save(file)
  found = measure_objects(files, LabelFormat())
  assert found == ({1: 20.0, 2: 200.0}, (300, 400))
  assert found.scale(config) == {"zoom": 16 / 20, "prompt_grid": 2, "overlap": 0.25}
  # Large objects are large enough in whole images, small images are not magnified, and huge ones take 64 windows.
  assert Objects({2: 200.0}, (300, 400)).scale(config) == {}
  assert Objects({1: 10.0}, (100, 100)).scale(config)["zoom"] == 1
  huge = Objects({1: 20.0}, (3000, 4000)).scale(config)["zoom"]
  assert np.ceil(3000 * huge / 96) * np.ceil(4000 * huge / 96) <= 64


def test_python_shows_objects_of_prompts_at_their_scale(predictor):
  label = np.zeros((64, 96), np.uint8)
  label[8:16, 8:16] = 1
  prompts, (image, _) = [(labeled(1, 64, 96)[0], label)], labeled(9, 70, 80)
  found = predictor.predict(image, prompts, split="objects")
  scale = measure_objects([label]).scale(predictor.config)
  assert scale["zoom"] and not np.array_equal(found.colors, predictor.predict(image, prompts).colors)
  np.testing.assert_array_equal(found.colors, predictor.predict(image, prompts, **scale).colors)
  for wrong in ({"prompts": prompts, "split": "auto"}, {"prompts": (), "split": "objects"}):
    with pytest.raises(InputError, match='split: expected an integer, several that differ, or "objects"'):
      predictor.predict(image, **wrong)


@pytest.mark.parametrize(("height", "width", "zoom"), [(20, 90, 0.5), (70, 45, 0.7), (10, 10, 3.0), (33, 65, 1.0)])
def test_any_size_and_zoom_gives_labels_of_the_size_of_the_image(predictor, height, width, zoom):
  prompts = [labeled(seed, 64, 64) for seed in range(3)]
  for overlap, flips in ((0, "none"), (0.5, "both")):
    found = predictor.predict(
      labeled(5, max(height, 9), max(width, 9))[0], prompts, zoom=zoom, overlap=overlap, flips=flips
    )
    assert found.labels.shape == found.colors.shape[:2] == (max(height, 9), max(width, 9))


def test_prepared_prompts_give_the_same_result(predictor):
  prompts, (image, _) = [labeled(seed, 64, 80) for seed in range(2)], labeled(9, 40, 70)
  options = InferenceOptions(zoom=0.6, prompt_grid=2)
  prepared = [predictor.prepare_prompt(*prompt, options) for prompt in prompts]
  (plain,), (found,) = (list(predictor.predict_many([(image, each)], options)) for each in (prompts, prepared))
  np.testing.assert_array_equal(plain.colors, found.colors)
  assert prepared[0].labels.shape == (38, 48)
  assert prepared[0].at(scale.Scale(0.3, 1), predictor.tile_size).labels.shape == (19, 24), "not 0.6 times 0.3"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"zoom": -1}, "zoom: found -1, expected a positive number or 0"),
    ({"zoom": 1, "prompt_grid": 0}, "prompt_grid: found 0, expected 1 to 16 with a zoom"),
    ({"prompt_grid": 2}, "prompt_grid: found 2, expected 1 to 16 with a zoom, else 1"),
    ({"zoom": 0.5, "split": 2}, "split: 2 cannot be combined with zoom 0.5"),
    ({"zoom": 0.5, "stitch_width": 2}, "stitch_width: 2 cannot be combined with zoom 0.5"),
    ({"sensitivity": (1.0, 0.0)}, r"sensitivity: found \(1.0, 0.0\), expected numbers above 0"),
    ({"least_area": -1}, "least_area: found -1, expected a number of pixels, or 0"),
  ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    InferenceOptions(**options)


def test_the_options_of_a_run_are_its_scale_and_its_operating_point(tmp_path, model):
  weights.save_weights(tmp_path / "run" / "best" / "5", parameters.split(model)[1], model.config)
  assert trained_options(tmp_path / "run") == InferenceOptions()
  (tmp_path / "run" / "config.json").write_text(json.dumps({"data": {"zoom": 0.5, "prompt_grid": 3}}))
  for path in ("run", "run/best/5"):
    assert trained_options(tmp_path / path) == InferenceOptions(zoom=0.5, prompt_grid=3, overlap=0.25)
  write_operating_point(tmp_path / "run", OperatingPoint((2.0,), 5), {})
  assert trained_options(tmp_path / "run/best/5").sensitivity == (2.0,)
  assert trained_options(tmp_path / "run").least_area == 5
  (tmp_path / "run" / "config.json").write_text(json.dumps({"data": {"zoom": "big"}}))
  with pytest.raises(InputError, match=r"data\.zoom: found 'big', expected a number of at least 0"):
    trained_options(tmp_path / "run")


def test_sensitivity_divides_the_distance_to_a_color():
  palette, classes = fixed_palette(3), np.arange(3)  # black, white, red
  colors = np.array([[[100, 100, 100], [150, 150, 150], [120, 0, 0], [140, 0, 0]]], np.uint8)
  assert decode_prediction(colors, palette, classes).labels.tolist() == [[0, 1, 0, 2]]
  assert decode_prediction(colors, palette, classes, sensitivity=(2.0,)).labels.tolist() == [[1, 1, 0, 2]]
  assert decode_prediction(colors, palette, classes, sensitivity=(1.0, 1.2)).labels.tolist() == [[0, 1, 2, 2]]
  assert decode_prediction(colors, palette, classes, sensitivity=(0.5, 0.5)).labels.tolist() == [[0, 0, 0, 0]]
  # Classes that no prompt shows are not decoded to, and their sensitivity is not used.
  assert decode_prediction(colors, palette, np.array([0, 2]), sensitivity=(9.0, 1.2)).labels.tolist() == [[0, 2, 2, 2]]


def test_specks_become_background_and_touching_classes_are_one_object():
  labels = np.zeros((8, 8), np.uint8)
  labels[0, 0], labels[3, 3:5], labels[4, 5:7] = 1, 1, 2
  found = without_specks(labels, 4)
  assert found[0, 0] == 0 and (found[3:5] == labels[3:5]).all() and found.dtype == np.uint8
  assert not without_specks(labels, 5).any()


def test_an_operating_point_is_stored_with_the_run(tmp_path):
  assert read_operating_point(tmp_path) is None
  point = OperatingPoint((1.5, 0.7), 12)
  path = write_operating_point(tmp_path, point, {"aim": "best F1"})
  assert read_operating_point(tmp_path) == point and json.loads(path.read_text())["aim"] == "best F1"
  path.write_text("{}")
  with pytest.raises(InputError, match=r"operating_point\.json: found no operating point in it"):
    read_operating_point(tmp_path)
