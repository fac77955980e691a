"""How well predicted contours follow the true ones: the boundary F-measure of DAVIS, from counts.

In: predicted and true class indices of an image. Out: four pixel counts for each class, and from them precision,
recall and F. Counts of images and processes add up, so the F of a set is that of the summed counts; DAVIS itself
reports the mean over frames, which is `boundary_scores` of each frame and then the mean.

The measure is from Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR
2016, as the toolkit of DAVIS 2017 (arXiv 1704.00675) computes it, with dilation in place of bipartite matching.
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
  """Counts the boundary pixels of each class, and those that the other map has a boundary pixel near to.

  A pixel is ignored when its predicted or its true class is not in 0..n-1: `palette.IGNORE`, and the same pixels that
  `iou.confusion_counts` leaves out. Whether a pixel is a boundary pixel depends on up to four pixels (`boundary_map`).
  With one of the four ignored it is a boundary pixel of neither map: neither counted, nor a match for others. So what
  is predicted in ignored pixels changes nothing, and their rim is no contour. The toolkit makes ignored pixels
  background in both masks instead; then the rim is a contour of both, which matches itself. Where labels have an
  ignored band along all contours, as in PASCAL VOC, nothing of the truth is left to count: there, use the IoU.

  Args:
    predicted: class indices.
    truth: class indices, same shape.
    num_classes: n, background included; 255 at most.
    tolerance: how far apart the centers of matching pixels may be. Below 1 a share of the image's diagonal, rounded up
      to whole pixels (the default, DAVIS's, is 6 pixels at 448 x 448); from 1 on pixels, rounded up.

  Returns:
    One row for each class: matched predicted, predicted, matched true and true boundary pixels.

  Raises:
    ValueError: more than 255 classes, or a tolerance that is negative or not finite.
  """
  if not 1 <= num_classes <= IGNORE:
    raise ValueError(f"num_classes: found {num_classes}, expected 1 to {IGNORE}")
  near = _disk(_radius(truth.shape, tolerance))
  known = (predicted >= 0) & (predicted < num_classes) & (truth >= 0) & (truth < num_classes)
  decided = known & np.logical_and.reduce(_neighbors(known))
  counts = np.zeros((num_classes, 4), np.int64)
  present = np.bincount(predicted[known], minlength=num_classes) + np.bincount(truth[known], minlength=num_classes)
  for index in np.flatnonzero(present):
    ours, theirs = (boundary_map(labels == index) & decided for labels in (predicted, truth))
    counts[index] = [_matched(ours, theirs, near), ours.sum(), _matched(theirs, ours, near), theirs.sum()]
  return counts


def boundary_scores(counts: Int64[np.ndarray, "n 4"]) -> BoundaryScores:
  """Precision, recall and F of each class, from counts as of `boundary_counts` or sums of such.

  A class without a boundary in truth and prediction has NaN in all three: it is absent, fills its images, or is hidden
  by ignored pixels. (The toolkit has 1 there.) With boundaries in one of the two only, as in the toolkit, precision
  or recall is 1 for the side that has none, the other is 0, and so is F.
  """
  matched_predicted, predicted, matched_truth, truth = counts.astype(np.float64).T
  precision, recall = (
    np.where(all_of > 0, matched / np.maximum(all_of, 1), 1.0)
    for matched, all_of in ((matched_predicted, predicted), (matched_truth, truth))
  )
  f = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1.0)
  absent = predicted + truth == 0
  return BoundaryScores(*(np.where(absent, np.nan, score) for score in (precision, recall, f)))


def boundary_map(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  """The contour, one pixel wide: where a pixel differs from the one to its right, below, or right below.

  The toolkit's seg2bmap at full size. In the last row and column only neighbors inside the image are asked, so the
  image's edge is no contour: a mask that fills the image has none.
  """
  return np.logical_or.reduce([mask != neighbor for neighbor in _neighbors(mask)])


def _neighbors(pixels: np.ndarray) -> list[np.ndarray]:
  """Of each pixel, those to the right, below and right below; the image's edge continues outwards."""
  padded = np.pad(pixels, ((0, 1), (0, 1)), mode="edge")
  return [padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]]


def _matched(boundary: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"], near: UInt8[np.ndarray, "k k"]) -> int:
  return int(np.sum(boundary & cv2.dilate(other.astype(np.uint8), near).astype(bool)))


def _radius(shape: tuple[int, ...], tolerance: float | int) -> int:
  if not 0 <= tolerance < math.inf:
    raise ValueError(f"tolerance: found {tolerance}, expected a share of the diagonal below 1, or pixels")
  return math.ceil(tolerance if tolerance >= 1 else tolerance * np.linalg.norm(shape))


def _disk(radius: int) -> UInt8[np.ndarray, "k k"]:
  """The pixels whose centers are at most that far from the middle one's, as a structuring element."""
  offsets = np.arange(-radius, radius + 1) ** 2
  return (offsets[:, None] + offsets[None] <= radius**2).astype(np.uint8)
