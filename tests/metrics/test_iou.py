"""A wrong count here is a wrong number in every report, and in the choice of the best checkpoint."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from seggpt_jax.metrics import iou


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
