"""How well objects are followed through a video: the scores of DAVIS 2017, semi-supervised.

In: predicted and true object indices of frames. Out: for each object and frame six pixel counts, from them J (IoU) and
F (boundary F-measure), and of each object's frames mean, recall and decay. As the toolkit of DAVIS 2017 (arXiv
1704.00675) computes them: an object that neither truth nor prediction has in a frame scores 1 there, recall is the
share of frames above 0.5, decay is the mean of the first quarter of the frames less that of the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer

from seggpt_jax.metrics.boundary import boundary_counts, boundary_scores

INTERSECTION, UNION = range(2)  # the first columns of the counts; those of `boundary.boundary_counts` follow


class ObjectScores(NamedTuple):
  """J and F of each object in each frame, 0..1."""

  j: Float64[np.ndarray, "frames objects"]
  f: Float64[np.ndarray, "frames objects"]


class Statistics(NamedTuple):
  """What is said of an object's frames."""

  mean: float
  recall: float
  decay: float


def object_counts(
  predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], num_objects: int
) -> Int64[np.ndarray, "objects 6"]:
  """Counts the pixels of one frame.

  Args:
    predicted: 0 is background, 1..n are objects.
    truth: likewise. What is ignored has to be background here, as the toolkit has it.
    num_objects: n; larger indices are background.

  Returns:
    One row for each object: intersection and union, then as of `boundary.boundary_counts`.
  """
  predicted, truth = (np.where(labels > num_objects, 0, labels).astype(np.int64) for labels in (predicted, truth))
  n = 1 + num_objects
  confusion = np.bincount((truth * n + predicted).ravel(), minlength=n * n).reshape(n, n)
  both = np.diagonal(confusion)
  either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
  regions = np.stack([both, either], axis=1).astype(np.int64)
  return np.concatenate([regions, boundary_counts(predicted, truth, n)], axis=1)[1:]


def object_scores(counts: Int64[np.ndarray, "frames objects 6"]) -> ObjectScores:
  """J and F, from the counts of frames."""
  both, either = counts[..., INTERSECTION], counts[..., UNION]
  j = np.where(either > 0, both / np.maximum(either, 1), 1.0)
  f = boundary_scores(counts[..., 2:].reshape(-1, 4)).f.reshape(j.shape)
  return ObjectScores(j, np.where(np.isnan(f), 1.0, f))


def statistics(scores: Float64[np.ndarray, "frames"]) -> Statistics:
  """Mean, recall and decay over an object's frames; NaN where there are none.

  Quarters share the frames at their ends, as in the toolkit.
  """
  if not len(scores):
    return Statistics(np.nan, np.nan, np.nan)
  # Rounded half to even but for the tiny addend, by which a half goes up.
  ends = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
  first, last = (scores[start : end + 1].mean() for start, end in (ends[:2], ends[3:]))
  return Statistics(float(scores.mean()), float((scores > 0.5).mean()), float(first - last))
