"""Catch rate, yield rate and PES decide if a production line adopts a model: wrong ones ship or scrap parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seggpt_jax.errors import InputError
from seggpt_jax.metrics.inspection import (
  Thresholds,
  foreground_iou,
  judge,
  response_rate,
)
from seggpt_jax.palette import IGNORE

properties = settings(derandomize=True, deadline=None, max_examples=100)

SHARES = st.floats(0, 1) | st.sampled_from([0.0, 0.3, 0.000239, 1.0])
IOUS = st.lists(SHARES | st.just(math.nan), max_size=12)
RATES = st.lists(SHARES, max_size=12)
THRESHOLDS = st.builds(Thresholds, SHARES, SHARES, SHARES)


def test_the_published_example():
  """Published for 11 images: catch 0.91, yield 0.18, PES 0.546, which are 10 catches and 2 correct yields."""
  result = judge([0.7] * 10 + [0.1], [0.0, 0.0002] + [0.01] * 9)
  assert (result.caught, result.positives, result.correct_yields, result.negatives) == (10, 11, 2, 11)
  assert result.catch_rate == pytest.approx(10 / 11) and result.yield_rate == pytest.approx(2 / 11)
  assert result.pes == pytest.approx(0.546, abs=1e-3)
  assert result.mean_iou == pytest.approx(7.1 / 11)


def test_an_image_on_the_threshold():
  """An IoU of 0.3 is a catch, and a response rate at the threshold is no correct yield, despite rounding."""
  truth, predicted = np.zeros((2, 10), int), np.zeros((2, 10), int)
  truth[0] = predicted[0, :3] = 1
  assert judge([foreground_iou(predicted, truth)]).caught == 1
  predicted[0, 2] = 0
  assert judge([foreground_iou(predicted, truth)]).caught == 0
  strict = Thresholds(yield_response=0.1)
  assert judge([], [response_rate(predicted)], strict).correct_yields == 0  # 2 of 20 pixels
  predicted[0, 1] = 0
  assert judge([], [response_rate(predicted)], strict).correct_yields == 1


def test_the_default_yield_of_a_large_image_is_250_pixels():
  predicted = np.zeros((1024, 1024), np.uint8)
  predicted.ravel()[:250] = 1
  assert judge([], [response_rate(predicted)]).yield_rate == 1
  predicted.ravel()[:251] = 1
  assert judge([], [response_rate(predicted)]).yield_rate == 0


def test_the_foreground_is_all_classes_but_the_first():
  generator = np.random.default_rng(3)
  predicted, truth = generator.choice([0, 1, 2, IGNORE], (2, 13, 17)).astype(np.uint8)
  both = either = ours = 0
  for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
    p_is, t_is = (c in (1, 2) for c in (p, t))
    ours += p_is
    if IGNORE not in (p, t):
      both += p_is and t_is
      either += p_is or t_is
  expected = both / either if either else math.nan
  assert foreground_iou(predicted, truth) == pytest.approx(expected, nan_ok=True)
  assert response_rate(predicted) == pytest.approx(ours / (13 * 17))


def test_labels_of_minus_one_are_ignored_like_255():
  predicted, truth = np.array([[1, 1, 0, 1]]), np.array([[1, -1, 0, -1]])
  assert foreground_iou(predicted, truth) == 1


def test_an_image_with_nothing_to_catch_is_neither_caught_nor_missed():
  """Otherwise good parts among the test images would change the catch rate."""
  nothing = np.zeros((4, 4), int)
  assert math.isnan(foreground_iou(nothing, nothing))
  result = judge([foreground_iou(nothing, nothing), 0.5, 0.1])
  assert (result.caught, result.positives, result.undefined) == (1, 2, 1)
  assert result.catch_rate == 0.5 and result.mean_iou == pytest.approx(0.3)
  only = judge([math.nan])
  assert math.isnan(only.catch_rate) and math.isnan(only.mean_iou) and only.undefined == 1
  # A missed defect and a false one are no catches.
  defect = np.eye(4, dtype=int)
  assert foreground_iou(nothing, defect) == foreground_iou(defect, nothing) == 0


def test_pes_without_one_of_its_rates_is_unknown_unless_that_rate_weighs_nothing():
  """A missing rate taken as 0 or 1 would give a score for a test that was not run."""
  assert math.isnan(judge([0.5]).pes) and math.isnan(judge([], [0.0]).pes)
  assert judge([0.5, 0.1], thresholds=Thresholds(catch_weight=1)).pes == 0.5
  assert judge([], [0.0, 0.5], Thresholds(catch_weight=0)).pes == 0.5


@properties
@given(IOUS, RATES, THRESHOLDS)
def test_rates_equal_the_definition(ious, rates, thresholds):
  if not ious and not rates:
    return
  result = judge(ious, rates, thresholds)
  defined = np.array([iou for iou in ious if not math.isnan(iou)])
  catch = np.mean(defined >= thresholds.catch_iou) if defined.size else math.nan
  correct = np.mean(np.array(rates) < thresholds.yield_response) if rates else math.nan
  assert result.catch_rate == pytest.approx(catch, nan_ok=True)
  assert result.yield_rate == pytest.approx(correct, nan_ok=True)
  assert result.mean_iou == pytest.approx(defined.mean() if defined.size else math.nan, nan_ok=True)
  if defined.size and rates:
    weight = thresholds.catch_weight
    assert result.pes == pytest.approx(weight * catch + (1 - weight) * correct)
    assert 0 <= result.pes <= 1


@pytest.mark.parametrize("key", ["catch_iou", "yield_response", "catch_weight"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, 30.0])
def test_a_threshold_in_percent_is_refused_by_name(key, value):
  with pytest.raises(InputError, match=rf"{key}: found {value}, expected 0 to 1"):
    Thresholds(**{key: value})


def test_no_images_and_impossible_numbers_are_refused():
  with pytest.raises(InputError, match="found no images"):
    judge([], [])
  with pytest.raises(InputError, match=r"IoU: found 1\.5"):
    judge([1.5])
  for rate in (math.nan, -1.0):
    with pytest.raises(InputError, match="response rate: found"):
      judge([0.5], [rate])
  with pytest.raises(ValueError, match="at least one pixel"):
    response_rate(np.zeros((0, 4), int))
