"""Scores of objects in a video, as DAVIS 2017 defines them for semi-supervised segmentation.

In: predicted and true object indices of frames. Out: six pixel counts for each object and frame, from them J (IoU) and
F (boundary F-measure), and mean, recall and decay over the frames of each object.

The scores follow the DAVIS 2017 toolkit (arXiv 1704.00675). An object that neither truth nor prediction has in a frame
scores 1 in that frame. Recall is the share of frames above 0.5. Decay is the mean of the first quarter of the frames
less the mean of the last quarter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer

from seggpt_jax.metrics.boundary import boundary_counts, boundary_scores

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
