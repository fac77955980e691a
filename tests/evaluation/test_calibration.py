"""Calibration: the chosen operating point must be the best of all that were tried, by the aim that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.calibration import Seen, calibrate, draw_rates, rates
from seggpt_jax.palette import fixed_palette

PALETTE = fixed_palette(3)  # black, white, red


def seen(strengths, other=0.0, size=20):
  """An image with an object of each given class, drawn with a share of its color; the rest has a share of white."""
  colors, truth = np.full((size, size, 3), 255 * other), np.zeros((size, size), np.uint8)
  for place, (value, strength) in enumerate(strengths):
    window = np.s_[2:8, 2 + 8 * place : 8 + 8 * place]
    colors[window], truth[window] = strength * PALETTE[value].astype(float), value
  return Seen(colors.round().astype(np.uint8), truth)


def test_a_timid_class_becomes_more_sensitive_and_a_sure_one_stays():
  false_alarm = seen([(2, 0.3)])
  false_alarm.truth[:] = 0
  images = [seen([(1, 0.3), (2, 0.9)]), seen([]), seen([(2, 0.8)]), false_alarm]
  chosen, tried = calibrate(images, PALETTE)
  assert chosen.iou == 1.0 and chosen.f1 == pytest.approx(1.0) and (chosen.catch, chosen.left_alone) == (1.0, 1.0)
  # A color at 0.3 of the way is 7/3 as far from white as from black.
  assert chosen.point.sensitivity[0] > 7 / 3 > chosen.point.sensitivity[1]
  plain = rates(images, PALETTE, np.ones(2), 0)
  assert plain.catch == 1.0 and plain.recall == pytest.approx(2 / 3) and plain.precision == 1.0
  assert len({(found.factor, found.point.least_area) for found in tried}) == len(tried)


def test_catch_and_yield_trade_one_for_the_other():
  # The faint object is fainter than the stain on one of two good images.
  images = [seen([(1, 0.9)]), seen([(1, 0.3)]), seen([]), seen([], other=0.4)]
  caught, _ = calibrate(images, PALETTE, "catch", 1.0)
  assert (caught.catch, caught.left_alone) == (1.0, 0.5)
  left, _ = calibrate(images, PALETTE, "yield", 1.0)
  assert (left.catch, left.left_alone) == (0.5, 1.0)


def test_a_balanced_point_keeps_away_from_the_edge():
  # The stain of the good image is called a defect from a sensitivity of 1.86.
  images = [seen([(1, 0.9)]), seen([(1, 0.8)]), seen([]), seen([], other=0.35)]
  chosen, tried = calibrate(images, PALETTE, "balance")
  assert (chosen.f1, chosen.catch, chosen.left_alone) == (pytest.approx(1.0), 1.0, 1.0)
  assert 0.9 < chosen.point.sensitivity[0] * 2 < 1.86  # twice as sensitive is still right
  assert any(found.left_alone == 0.5 for found in tried)
  # Specks that these images do not show cost nothing to remove.
  assert chosen.point.least_area == max(found.point.least_area for found in tried)


def test_an_aim_out_of_reach_gives_the_nearest():
  images = [seen([(1, 0.9)]), Seen(np.zeros((20, 20, 3), np.uint8), seen([(1, 1.0)]).truth), seen([])]
  chosen, tried = calibrate(images, PALETTE, "catch", 0.9)
  assert chosen.catch == 0.5 == max(found.catch for found in tried if found.left_alone)


def test_specks_are_worth_removing():
  speck = seen([])
  speck.colors[15, 15] = 255
  chosen, _ = calibrate([seen([(1, 0.9)]), speck], PALETTE, "yield", 1.0)
  assert chosen.point.least_area > 1 and (chosen.catch, chosen.left_alone) == (1.0, 1.0)


def test_ignored_pixels_do_not_count():
  image = seen([(1, 0.9)])
  image.truth[15:, 15:] = 255
  image.colors[15:, 15:] = 255
  assert rates([image], PALETTE, np.ones(2), 0).iou == 1.0


def test_images_without_what_is_asked_for_are_refused():
  with pytest.raises(InputError, match="found no class in the labels of 1 images"):
    calibrate([seen([])], PALETTE)
  with pytest.raises(InputError, match="--aim=yield: found 1 images that all show a class"):
    calibrate([seen([(1, 1.0)])], PALETTE, "yield", 0.9)


def test_the_choices_are_drawn(tmp_path):
  for images, width in (([seen([(1, 0.9)])], 600), ([seen([(1, 0.9)]), seen([])], 1200)):
    chosen, tried = calibrate(images, PALETTE)
    draw_rates(tried, chosen, tmp_path / "rates.png")
    from PIL import Image

    assert Image.open(tmp_path / "rates.png").width == width
