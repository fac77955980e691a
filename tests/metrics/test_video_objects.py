"""The scores of DAVIS against a separate implementation with plain loops and SciPy's dilation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from seggpt_jax.metrics import boundary


def contour(mask):
  """Finds pixels that differ from a neighbor to the right, below or right below, if it exists."""
  height, width = mask.shape
  found = np.zeros(mask.shape, bool)
  for y in range(height):
    for x in range(width):
      for dy, dx in ((0, 1), (1, 0), (1, 1)):
        # In the last row and column, the neighbor along the edge takes the place of the missing one.
        other = mask[min(y + dy, height - 1), min(x + dx, width - 1)]
        found[y, x] |= mask[y, x] != other
  return found


def f_measure(found, true):
  radius = math.ceil(0.008 * math.hypot(*true.shape))
  grid = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1])
  ours, theirs = contour(found), contour(true)
  near_ours, near_theirs = (ndimage.binary_dilation(lines, grid <= radius) for lines in (ours, theirs))
  if not ours.any() and not theirs.any():
    return 1.0
  if not ours.any() or not theirs.any():
    return 0.0
  precision, recall = (ours & near_theirs).sum() / ours.sum(), (theirs & near_ours).sum() / theirs.sum()
  return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def iou(found, true):
  return 1.0 if not (found | true).any() else (found & true).sum() / (found | true).sum()


def decay(values):
  """Computes the mean of the first quarter less that of the last; quarters include the frames at both ends."""
  places = [math.floor(1 + (len(values) - 1) * quarter / 4 + 0.5 + 1e-10) - 1 for quarter in (0, 1, 3, 4)]
  return np.mean(values[places[0] : places[1] + 1]) - np.mean(values[places[2] : places[3] + 1])


@pytest.fixture(scope="module")
def videos():
  """Predicted and true frames of three smooth objects, of which the third is missing in some frames."""
  generator = np.random.default_rng(0)
  truth, found = [], []
  for frame in range(9):
    pair = []
    for noise in (0.0, 0.05):
      fields = [
        ndimage.gaussian_filter(np.random.default_rng(index).normal(size=(60, 80)), 6)
        + noise * ndimage.gaussian_filter(generator.normal(size=(60, 80)), 3)
        for index in range(4)
      ]
      labels = np.argmax(fields, axis=0).astype(np.uint8)
      labels[labels == (3 if frame % 3 == 0 or (frame % 4 == 1 and noise) else 9)] = 0
      pair.append(np.roll(labels, frame, axis=1))
    truth.append(pair[0])
    found.append(pair[1])
  return np.array(found), np.array(truth)


def test_j_and_f_of_every_object_in_every_frame(videos):
  counts = np.stack([boundary.object_counts(found, true, 3) for found, true in zip(*videos, strict=True)])
  scores = boundary.object_scores(counts)
  expected = [
    [[score(found == index, true == index) for index in (1, 2, 3)] for found, true in zip(*videos, strict=True)]
    for score in (iou, f_measure)
  ]
  np.testing.assert_allclose(scores.j, expected[0], atol=1e-12)
  np.testing.assert_allclose(scores.f, expected[1], atol=1e-12)
  # An object that is correctly absent scores 1, one that is missed scores 0.
  assert (scores.j[0, 2], scores.f[0, 2]) == (1.0, 1.0) and (scores.j[1, 2], scores.f[1, 2]) == (0.0, 0.0)
  assert 0.3 < scores.j[2, 0] < 0.99 and 0.3 < scores.f[2, 0] < 1.0


def test_objects_that_appear_later_are_background(videos):
  found, true = videos[0][2], videos[1][2]
  two = boundary.object_counts(found, true, 2)
  np.testing.assert_array_equal(
    two, boundary.object_counts(np.where(found == 3, 0, found), np.where(true == 3, 0, true), 2)
  )
  assert two.shape == (2, 6)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 7, 22, 50, 102])
def test_mean_recall_and_decay(frames):
  values = np.random.default_rng(frames).random(frames)
  statistics = boundary.statistics(values)
  assert statistics.mean == pytest.approx(sum(values) / frames)
  assert statistics.recall == sum(value > 0.5 for value in values) / frames
  assert statistics.decay == pytest.approx(decay(values))


def test_decay_is_what_is_lost_from_the_first_quarter_to_the_last():
  assert boundary.statistics(np.linspace(1.0, 0.0, 101)).decay == pytest.approx(0.75)
  assert boundary.statistics(np.full(10, 0.5)) == (0.5, 0.0, 0.0)  # one half is not above one half
  assert all(np.isnan(value) for value in boundary.statistics(np.zeros(0)))
