"""IoU and Dice: a wrong count is a wrong number in every report and in the choice of the best checkpoint."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seggpt_jax.metrics import iou

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def slow_confusion(predicted, truth, num_classes, valid):
  counts = np.zeros((num_classes, num_classes), np.int64)
  for p, t, counted in zip(predicted.ravel(), truth.ravel(), valid.ravel(), strict=True):
    if counted and 0 <= p < num_classes and 0 <= t < num_classes:
      counts[t, p] += 1
  return counts


def slow_iou(predicted, truth, num_classes):
  scores = []
  for index in range(num_classes):
    either = np.sum((predicted == index) | (truth == index))
    scores.append(np.sum((predicted == index) & (truth == index)) / either if either else np.nan)
  return np.array(scores)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 151])
def test_counts_equal_a_loop_over_pixels(num_classes):
  generator = np.random.default_rng(num_classes)
  predicted, truth = generator.integers(0, num_classes, (2, 3, 17, 11))
  valid = generator.random((3, 17, 11)) < 0.7
  counts = iou.confusion_counts(predicted, truth, num_classes, valid)
  np.testing.assert_array_equal(counts, slow_confusion(predicted, truth, num_classes, valid))
  everywhere = np.ones_like(valid)
  counts = iou.confusion_counts(predicted.astype(np.uint8), truth.astype(np.uint8), num_classes)
  np.testing.assert_array_equal(counts, slow_confusion(predicted, truth, num_classes, everywhere))


def test_labels_outside_the_classes_are_not_counted_as_other_classes():
  predicted, truth = np.array([0, 1, 2, -1, 1, 0]), np.array([0, 1, 0, 0, 255, -1])
  np.testing.assert_array_equal(iou.confusion_counts(predicted, truth, 2), [[1, 0], [0, 1]])


def test_iou_equals_sets_of_pixels_and_an_absent_class_is_nan_not_zero():
  generator = np.random.default_rng(0)
  predicted, truth = generator.choice([0, 1, 3], (2, 40, 30))
  confusion = iou.confusion_counts(predicted, truth, 5)
  expected = slow_iou(predicted, truth, 5)
  assert np.isnan(expected[[2, 4]]).all()
  np.testing.assert_allclose(iou.iou_from_confusion(confusion), expected, rtol=1e-6)
  np.testing.assert_allclose(iou.mean_iou(confusion), np.nanmean(expected), rtol=1e-6)


def test_the_same_inside_jit_and_for_arrays_on_the_device():
  generator = np.random.default_rng(1)
  predicted, truth = generator.integers(0, 3, (2, 4, 8, 8))
  valid = generator.random((4, 8, 8)) < 0.5

  @functools.partial(jax.jit, static_argnames="num_classes")
  def step(predicted, truth, valid, num_classes):
    confusion = iou.confusion_counts(predicted, truth, num_classes, valid)
    return confusion, iou.iou_from_confusion(confusion), iou.mean_iou(confusion)

  confusion, scores, mean = step(predicted, truth, valid, num_classes=3)
  expected = slow_confusion(predicted, truth, 3, valid)
  np.testing.assert_array_equal(confusion, expected)
  np.testing.assert_allclose(scores, iou.iou_from_confusion(expected), rtol=1e-6)
  np.testing.assert_allclose(mean, iou.mean_iou(expected), rtol=1e-6)


def test_counts_of_a_large_set_do_not_overflow():
  confusion = np.array([[10**12, 10**11], [10**11, 10**12]], np.int64)
  np.testing.assert_allclose(iou.iou_from_confusion(confusion), 1 / 1.2, rtol=1e-6)


def test_dice_equals_sets_of_pixels_and_an_absent_class_is_nan_not_zero():
  generator = np.random.default_rng(2)
  predicted, truth = generator.choice([0, 1, 3], (2, 40, 30))
  predicted[predicted == 3] = 0  # class 3 is true but never predicted: it scores 0
  confusion = iou.confusion_counts(predicted, truth, 5)
  expected = []
  for index in range(5):
    pixels = np.sum(predicted == index) + np.sum(truth == index)
    expected.append(2 * np.sum((predicted == index) & (truth == index)) / pixels if pixels else np.nan)
  assert np.isnan(np.array(expected)[[2, 4]]).all() and expected[3] == 0
  np.testing.assert_allclose(iou.dice_from_confusion(confusion), expected, rtol=1e-6)
  np.testing.assert_allclose(jax.jit(iou.dice_from_confusion)(confusion), expected, rtol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(LABELS)
def test_dice_and_iou_are_two_scales_of_one_order(pairs):
  """Papers report either one. A user who converts IoU to Dice by 2 IoU / (1 + IoU) must get the reported Dice."""
  table = np.zeros((4, 4), np.int64)
  np.add.at(table, tuple(np.array(pairs).T), 1)
  overlap = np.asarray(iou.iou_from_confusion(table))
  np.testing.assert_allclose(iou.dice_from_confusion(table), 2 * overlap / (1 + overlap), rtol=1e-6)


def test_many_batches_are_summed_without_wrapping_around():
  """A production line's test set has more than 2^31 pixels, and an IoU of overflowed counts can look plausible."""
  batch = jax.numpy.array([[2**30, 0], [2**29, 2**30]])
  total = iou.total_confusion([batch] * 8)
  np.testing.assert_array_equal(total, [[2**33, 0], [2**32, 2**33]])
  np.testing.assert_allclose(iou.iou_from_confusion(total), 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(iou.dice_from_confusion(total), 4 / 5, rtol=1e-6)


def test_tables_of_images_with_fewer_classes_are_counted_in_full():
  small, large = np.array([[5]]), np.arange(9).reshape(3, 3)
  expected = np.array([[5, 1, 2], [3, 4, 5], [6, 7, 8]])
  for tables in ([small, large], [large, small]):
    np.testing.assert_array_equal(iou.total_confusion(iter(tables)), expected)
  assert iou.total_confusion([]).shape == (0, 0)
