"""The boundary F-measure of DAVIS: how well predicted contours follow the true ones.

In: predicted and true class indices of an image. Out: four pixel counts for each class, and from them precision,
recall and F. Counts of images and processes add up, so the F of a set is the F of the summed counts. DAVIS itself
reports the mean over frames: apply `boundary_scores` to each frame and average.

The measure is defined by Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation", CVPR 2016. This is the version of the DAVIS 2017 toolkit (arXiv 1704.00675), which uses dilation in place
of bipartite matching.

Scores of objects in a video follow the same toolkit: six pixel counts for each object and frame, from them J (IoU) and
F, and mean, recall and decay over the frames of each object. An object that neither truth nor prediction has in a frame
scores 1 in that frame. Recall is the share of frames above 0.5. Decay is the mean of the first quarter of the frames
less the mean of the last quarter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, UInt8

from seggpt_jax.palette import IGNORE

MATCHED_PREDICTED, PREDICTED, MATCHED_TRUTH, TRUTH = range(4)  # the columns of the counts


class BoundaryScores(NamedTuple):
  """Precision, recall and F of each class, 0..1 or NaN."""

  precision: Float64[np.ndarray, "n"]
  recall: Float64[np.ndarray, "n"]
  f: Float64[np.ndarray, "n"]


def boundary_counts(
  predicted: Integer[np.ndarray, "h w"],
  truth: Integer[np.ndarray, "h w"],
  num_classes: int,
  tolerance: float | int = 0.008,
) -> Int64[np.ndarray, "n 4"]:
  """Counts the boundary pixels of each class, and how many of them have a boundary pixel of the other map nearby.

  A pixel is ignored if its predicted or its true class is not in 0..n-1. These are pixels with `palette.IGNORE` and all
  others that `iou.confusion_counts` leaves out. Up to four pixels decide about a boundary pixel (`boundary_map`). If
  one of the four is ignored, the pixel is a boundary pixel of neither map: it is not counted and matches nothing. So
  predictions in ignored pixels change nothing, and the edge of an ignored region is no contour.

  The toolkit makes ignored pixels background in both masks instead, so the edge of an ignored region is a contour of
  both, which matches itself. Labels with an ignored band along all contours, as in PASCAL VOC, leave no true contour to
  count. For such labels, use the IoU.

  Args:
    predicted: class indices.
    truth: class indices, same shape.
    num_classes: n, background included, 1..255.
    tolerance: largest distance between the centers of matching pixels, rounded up to whole pixels. Values below 1 are a
      share of the image's diagonal (the default, the one of DAVIS, is 6 pixels at 448 x 448); others are pixels.

  Returns:
    One row for each class: matched predicted, predicted, matched true and true boundary pixels.

  Raises:
    ValueError: `num_classes` is not in 1..255, or the tolerance is negative or not finite.
  """
  if not 1 <= num_classes <= IGNORE:
    raise ValueError(f"num_classes: found {num_classes}, expected 1 to {IGNORE}")
  if not 0 <= tolerance < math.inf:
    raise ValueError(f"tolerance: found {tolerance}, expected a share of the diagonal below 1, or pixels")
  radius = math.ceil(tolerance if tolerance >= 1 else tolerance * np.linalg.norm(truth.shape))
  offsets = np.arange(-radius, radius + 1) ** 2
  near = (offsets[:, None] + offsets[None] <= radius**2).astype(np.uint8)  # a disk
  known = (predicted >= 0) & (predicted < num_classes) & (truth >= 0) & (truth < num_classes)
  decided = known & np.logical_and.reduce(_neighbors(known))
  counts = np.zeros((num_classes, 4), np.int64)
  present = np.bincount(predicted[known], minlength=num_classes) + np.bincount(truth[known], minlength=num_classes)
  for index in np.flatnonzero(present):
    ours, theirs = (boundary_map(labels == index) & decided for labels in (predicted, truth))
    counts[index] = [_matched(ours, theirs, near), ours.sum(), _matched(theirs, ours, near), theirs.sum()]
  return counts


def boundary_scores(counts: Int64[np.ndarray, "n 4"]) -> BoundaryScores:
  """Computes precision, recall and F of each class from counts of `boundary_counts`, or from sums of them.

  A class without a boundary in truth and prediction scores NaN in all three (1 in the toolkit). Such a class is absent,
  fills its images, or is hidden by ignored pixels. If only one of the two has boundaries, F is 0, as in the toolkit;
  precision or recall is 1 for the side without boundaries and 0 for the other.
  """
  matched_predicted, predicted, matched_truth, truth = counts.astype(np.float64).T
  precision, recall = (
    np.where(total > 0, matched / np.maximum(total, 1), 1.0)
    for matched, total in ((matched_predicted, predicted), (matched_truth, truth))
  )
  f = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1.0)
  absent = predicted + truth == 0
  return BoundaryScores(*(np.where(absent, np.nan, score) for score in (precision, recall, f)))


def boundary_map(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  """Returns the contour of a mask, one pixel wide: pixels that differ from the one to the right, below, or right below.

  This is the toolkit's seg2bmap at full size. Pixels in the last row and column are compared with neighbors inside the
  image only, so the image's edge is no contour, and a mask that fills the image has no contour.
  """
  return np.logical_or.reduce([mask != neighbor for neighbor in _neighbors(mask)])


def _neighbors(pixels: np.ndarray) -> list[np.ndarray]:
  """Returns the image shifted so that each pixel holds its neighbor to the right, below, and right below.

  The last row and column continue beyond the edge of the image.
  """
  padded = np.pad(pixels, ((0, 1), (0, 1)), mode="edge")
  return [padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]]


def _matched(boundary: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"], near: UInt8[np.ndarray, "k k"]) -> int:
  return int(np.sum(boundary & cv2.dilate(other.astype(np.uint8), near).astype(bool)))


INTERSECTION, UNION = range(2)  # first columns of the counts, before the four of `boundary.boundary_counts`


class ObjectScores(NamedTuple):
  """J and F of each object in each frame, 0..1."""

  j: Float64[np.ndarray, "frames objects"]
  f: Float64[np.ndarray, "frames objects"]


class Statistics(NamedTuple):
  """Mean, recall and decay of a score over the frames of an object."""

  mean: float
  recall: float
  decay: float


def object_counts(
  predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], num_objects: int
) -> Int64[np.ndarray, "objects 6"]:
  """Counts the pixels of one frame.

  Args:
    predicted: 0 is background, 1..n are objects.
    truth: object indices, same shape. Ignored pixels must be background, as in the toolkit.
    num_objects: n; larger indices count as background.

  Returns:
    One row for each object: intersection, union, and the four counts of `boundary.boundary_counts`.
  """
  predicted, truth = (np.where(labels > num_objects, 0, labels).astype(np.int64) for labels in (predicted, truth))
  n = 1 + num_objects
  confusion = np.bincount((truth * n + predicted).ravel(), minlength=n * n).reshape(n, n)
  both = np.diagonal(confusion)
  either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
  regions = np.stack([both, either], axis=1).astype(np.int64)
  return np.concatenate([regions, boundary_counts(predicted, truth, n)], axis=1)[1:]


def object_scores(counts: Int64[np.ndarray, "frames objects 6"]) -> ObjectScores:
  """Computes J and F from the counts of frames."""
  both, either = counts[..., INTERSECTION], counts[..., UNION]
  j = np.where(either > 0, both / np.maximum(either, 1), 1.0)
  f = boundary_scores(counts[..., 2:].reshape(-1, 4)).f.reshape(j.shape)
  return ObjectScores(j, np.where(np.isnan(f), 1.0, f))


def statistics(scores: Float64[np.ndarray, "frames"]) -> Statistics:
  """Computes mean, recall and decay over an object's frames; NaN if there are no frames.

  Neighboring quarters share the frame between them, as in the toolkit.
  """
  if not len(scores):
    return Statistics(np.nan, np.nan, np.nan)
  # NumPy rounds a half to even; with the tiny addend, a half is rounded up as in the toolkit.
  ends = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
  first, last = (scores[start : end + 1].mean() for start, end in (ends[:2], ends[3:]))
  return Statistics(float(scores.mean()), float((scores > 0.5).mean()), float(first - last))
