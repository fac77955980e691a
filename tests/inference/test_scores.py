"""Scores: the numbers in metrics.json must be those of the written files."""

from __future__ import annotations

import numpy as np

from seggpt_jax import palette
from seggpt_jax.inference import outputs, pictures, scores
from seggpt_jax.inference.prediction import Prediction


def test_a_truth_with_classes_that_no_prompt_shows_counts_against_the_prediction():
  run = scores.Scores()
  zeros = np.zeros((2, 2), np.uint8)
  run.add("first", scores.count(zeros, zeros))
  run.add("second", scores.count(zeros, np.array([[0, 0], [5, 5]], np.uint8)))
  summary = run.summary()
  assert summary["per_image"]["first"]["iou"] == [1.0, None, None, None, None, None]
  assert [entry["iou"] for entry in summary["classes"]] == [0.75, None, None, None, None, 0.0]
  assert (summary["miou"], summary["foreground_miou"]) == (0.375, 0.0)
  prediction = Prediction(zeros, np.zeros((2, 2, 3), np.uint8), palette.fixed_palette(2), (0, 1))
  truth = np.full((2, 2), 5, np.uint8)
  picture = outputs.concat(prediction.colors, (prediction.colors, zeros), prediction, truth)
  assert picture.shape == (2 + pictures.title_height(2), 12, 3)


def test_each_pixel_that_is_not_ignored_is_counted_once():
  generator = np.random.default_rng(0)
  predicted, truth = generator.integers(0, 3, (2, 600, 901), np.uint8)
  truth[:100] = 255
  expected = [[t, p, int(((truth == t) & (predicted == p)).sum())] for t in range(3) for p in range(3)]
  assert scores.count(predicted, truth)["confusion"] == expected


def test_pictures_of_a_large_image_are_drawn_piece_by_piece_and_panels_are_small(monkeypatch):
  generator = np.random.default_rng(0)
  labels, colors = generator.integers(0, 3, (70, 41), np.uint8), palette.display_palette(3)
  image = generator.integers(0, 256, (70, 41, 3), np.uint8)
  whole = pictures.overlay(image, labels, colors)
  monkeypatch.setattr(pictures, "_PIXELS_AT_A_TIME", 100)
  np.testing.assert_array_equal(pictures.overlay(image, labels, colors), whole)
  monkeypatch.setattr(outputs, "_MOST_PANEL", 35)
  prediction = Prediction(labels, image, palette.fixed_palette(3), (0, 1, 2))
  panels = outputs.concat(image, (image, labels), prediction, labels)
  assert panels.shape == (35 + pictures.title_height(20), 6 * 20, 3)
