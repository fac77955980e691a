"""The boundary F-measure decides between models of equal IoU: an error of one pixel picks the wrong one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from seggpt_jax.metrics import boundary
from seggpt_jax.palette import IGNORE

properties = settings(derandomize=True, deadline=None, max_examples=150)

SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 14))
SEEDS = st.integers(0, 2**32 - 1)
TOLERANCES = st.sampled_from([0.0, 0.008, 0.1, 0.3, 1, 2, 2.5, 30])


def blobs(shape, num_classes, seed, smooth=1.5):
  """Draws smooth random regions of all classes, some of which touch the borders."""
  noise = np.random.default_rng(seed).standard_normal((num_classes, *shape))
  return np.argmax(ndimage.gaussian_filter(noise, (0, smooth, smooth)), axis=0)


def slow_boundary(labels, index, ignored):
  """Finds pixels whose 2 x 2 window, inside the image, is partly of the class and contains no ignored pixel."""
  height, width = labels.shape
  found = []
  for y in range(height):
    for x in range(width):
      window = [(b, a) for b in (y, y + 1) for a in (x, x + 1) if b < height and a < width]
      inside = [labels[pixel] == index for pixel in window]
      if any(inside) and not all(inside) and not any(ignored[pixel] for pixel in window):
        found.append((y, x))
  return found


def slow_counts(predicted, truth, num_classes, tolerance):
  radius = tolerance if tolerance >= 1 else tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)
  radius = next(whole for whole in range(1000) if whole >= radius)
  classes = list(range(num_classes))
  ignored = np.zeros(truth.shape, bool)
  for pixel in np.ndindex(truth.shape):
    ignored[pixel] = predicted[pixel] not in classes or truth[pixel] not in classes

  def matched(ours, theirs):
    return sum(any((y - b) ** 2 + (x - a) ** 2 <= radius**2 for b, a in theirs) for y, x in ours)

  rows = []
  for index in classes:
    ours, theirs = slow_boundary(predicted, index, ignored), slow_boundary(truth, index, ignored)
    rows.append([matched(ours, theirs), len(ours), matched(theirs, ours), len(theirs)])
  return np.array(rows)


def slow_f(matched_predicted, predicted, matched_truth, truth):
  if predicted == truth == 0:
    return math.nan
  if 0 in (predicted, truth, matched_predicted, matched_truth):
    return 0.0
  precision, recall = matched_predicted / predicted, matched_truth / truth
  return 2 / (1 / precision + 1 / recall)


def check(predicted, truth, num_classes, tolerance=0.008):
  counts = boundary.boundary_counts(predicted, truth, num_classes, tolerance)
  np.testing.assert_array_equal(counts, slow_counts(predicted, truth, num_classes, tolerance))
  np.testing.assert_allclose(boundary.boundary_scores(counts).f, [slow_f(*row) for row in counts.tolist()], rtol=1e-12)
  return counts


@properties
@given(SHAPES, SEEDS, st.integers(1, 4), TOLERANCES, st.sampled_from([0.0, 0.1, 0.6]))
def test_counts_and_f_equal_the_definition_pixel_by_pixel(shape, seed, num_classes, tolerance, share_ignored):
  predicted, truth = blobs(shape, num_classes, seed), blobs(shape, num_classes, seed + 1)
  truth[np.random.default_rng(seed).random(shape) < share_ignored] = IGNORE
  check(predicted, truth, num_classes, tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_larger_blobs_with_an_ignored_block(seed):
  predicted, truth = blobs((40, 57), 3, seed, smooth=4), blobs((40, 57), 3, seed + 10, smooth=4)
  truth[10:20, 30:] = IGNORE
  counts = check(predicted.astype(np.uint8), truth.astype(np.uint8), 3, 0.02)
  assert (counts > 0).all() and (counts[:, 0] < counts[:, 1]).any()


def test_at_full_size_pixels_match_within_six_pixels_as_in_the_toolkit():
  """The tolerance at 448 x 448 is 5.07 pixels, rounded up. Reference: SciPy's exact distance transform."""
  predicted, truth = blobs((448, 448), 3, 1, smooth=20), blobs((448, 448), 3, 2, smooth=20)
  counts = boundary.boundary_counts(predicted, truth, 3)
  for index in range(3):
    ours, theirs = (boundary.boundary_map(labels == index) for labels in (predicted, truth))
    to_truth, to_predicted = (ndimage.distance_transform_edt(~contour) for contour in (theirs, ours))
    expected = [np.sum(to_truth[ours] <= 6), ours.sum(), np.sum(to_predicted[theirs] <= 6), theirs.sum()]
    np.testing.assert_array_equal(counts[index], expected)


def test_a_square_by_hand():
  """The contour is half a pixel above and left of the edge between pixels: 4 x 4 pixels have a ring of 5 x 5."""
  mask = np.zeros((10, 10), bool)
  mask[3:7, 3:7] = True
  drawing = """
    . . . . . . . . . .
    . . . . . . . . . .
    . . # # # # # . . .
    . . # . . . # . . .
    . . # . . . # . . .
    . . # . . . # . . .
    . . # # # # # . . .
    . . . . . . . . . .
    . . . . . . . . . .
    . . . . . . . . . .
  """
  expected = np.array([[cell == "#" for cell in line.split()] for line in drawing.strip().splitlines()])
  np.testing.assert_array_equal(boundary.boundary_map(mask), expected)
  moved = np.roll(mask, 2, axis=1)
  # Two columns apart with a tolerance of 1, the horizontal sides match except for their ends.
  np.testing.assert_array_equal(check(moved.astype(int), mask.astype(int), 2, 1)[1], [10, 16, 10, 16])
  np.testing.assert_array_equal(check(moved.astype(int), mask.astype(int), 2, 2)[1], [16, 16, 16, 16])


def test_empty_and_full_masks():
  """A class that is absent scores NaN and is left out of means. A class that the model missed scores 0."""
  empty, full, some = np.zeros((9, 12), int), np.ones((9, 12), int), np.zeros((9, 12), int)
  some[2:6, 3:] = 1  # touches the right border
  for alike in (empty, full):
    counts = check(alike, alike, 3)
    assert not counts.any()
    assert all(np.isnan(score).all() for score in boundary.boundary_scores(counts))
  for predicted, truth, precision, recall in ((empty, some, 1, 0), (some, empty, 0, 1), (some, some, 1, 1)):
    scores = boundary.boundary_scores(check(predicted, truth, 3))
    expected = [precision, recall, precision * recall]
    np.testing.assert_array_equal([score[1] for score in scores], expected)
    assert np.isnan(scores.f[2])


def test_the_edge_of_the_image_is_no_contour():
  """A road that leaves the image ends at the image's edge, which is not a contour that the model predicts."""
  road = np.zeros((8, 20), int)
  road[3:5] = 1
  contour = boundary.boundary_map(road == 1)
  assert contour[[2, 4]].all() and not contour[[0, 1, 3, 5, 6, 7]].any()
  check(np.roll(road, 1, axis=0), road, 2)


@properties
@given(SEEDS, TOLERANCES)
def test_what_is_predicted_in_ignored_pixels_changes_nothing(seed, tolerance):
  generator = np.random.default_rng(seed)
  predicted, truth = blobs((12, 12), 3, seed), blobs((12, 12), 3, seed + 1)
  truth[generator.random((12, 12)) < 0.2] = IGNORE
  otherwise = np.where(truth == IGNORE, generator.integers(0, 3, (12, 12)), predicted)
  counts = boundary.boundary_counts(predicted, truth, 3, tolerance)
  np.testing.assert_array_equal(boundary.boundary_counts(otherwise, truth, 3, tolerance), counts)


def test_the_rim_of_an_ignored_region_is_no_contour():
  """Otherwise a hole in the labels of a large object would count as matches."""
  truth = np.ones((20, 20), int)
  truth[5:15, 5:15] = IGNORE
  assert not boundary.boundary_counts(np.ones_like(truth), truth, 2).any()
  assert not boundary.boundary_counts(np.ones_like(truth), np.full_like(truth, IGNORE), 2).any()


@properties
@given(SHAPES, SEEDS)
def test_a_wider_tolerance_never_lowers_a_score_and_swapping_the_maps_swaps_the_sides(shape, seed):
  predicted, truth = blobs(shape, 3, seed), blobs(shape, 3, seed + 1)
  before = None
  for tolerance in (0, 1, 2, 5):
    counts = boundary.boundary_counts(predicted, truth, 3, tolerance)
    np.testing.assert_array_equal(boundary.boundary_counts(truth, predicted, 3, tolerance), counts[:, [2, 3, 0, 1]])
    assert before is None or (counts >= before).all()
    before = counts


def test_the_f_of_a_set_is_that_of_the_summed_counts():
  """Two processes with half of the images each must report what one process reports for all images."""
  images = [(blobs((30, 30), 2, seed), blobs((30, 30), 2, seed + 50)) for seed in range(6)]
  counts = [boundary.boundary_counts(*image, 2, 2) for image in images]
  total = np.sum(counts, axis=0)
  np.testing.assert_array_equal(np.sum(counts[::2], axis=0) + np.sum(counts[1::2], axis=0), total)
  scores = boundary.boundary_scores(total)
  np.testing.assert_allclose(scores.precision, total[:, boundary.MATCHED_PREDICTED] / total[:, boundary.PREDICTED])
  np.testing.assert_allclose(scores.recall, total[:, boundary.MATCHED_TRUTH] / total[:, boundary.TRUTH])
  np.testing.assert_allclose(scores.f, [slow_f(*row) for row in total.tolist()])


def test_values_out_of_range_are_refused():
  labels = np.zeros((4, 4), int)
  for tolerance in (-1.0, math.nan, math.inf):
    with pytest.raises(ValueError, match="tolerance: found"):
      boundary.boundary_counts(labels, labels, 2, tolerance)
  for num_classes in (0, 256):
    with pytest.raises(ValueError, match="num_classes: found"):
      boundary.boundary_counts(labels, labels, num_classes)
