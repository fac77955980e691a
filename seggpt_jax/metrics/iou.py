"""Intersection over union, from confusion counts.

In: predicted and true class indices. Out: an `n x n` table of pixel counts, and from it the IoU of each class and
their mean. Counts of several batches, images or hosts add up, so the IoU of a set is that of the summed table. All
functions take NumPy and JAX arrays and can be jitted.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Num


def confusion_counts(
  predicted: Integer[Array | np.ndarray, "*pixels"],
  truth: Integer[Array | np.ndarray, "*pixels"],
  num_classes: int,
  valid: Bool[Array | np.ndarray, "*pixels"] | None = None,
) -> Int[Array, "n n"]:
  """Counts how often each pair of true and predicted class meets.

  Args:
    predicted: class indices of any shape.
    truth: class indices, same shape.
    num_classes: n; a pixel whose predicted or true class is not in 0..n-1 is not counted.
    valid: False for pixels that are not counted, same shape; all are by default.

  Returns:
    int32 counts; rows are true classes, columns predicted ones. One call counts up to 2^31 - 1 pixels.
  """
  n = num_classes
  predicted, truth = (jnp.asarray(labels, jnp.int32).reshape(-1) for labels in (predicted, truth))
  counted = (predicted >= 0) & (predicted < n) & (truth >= 0) & (truth < n)
  if valid is not None:
    counted &= jnp.asarray(valid).reshape(-1)
  # What is not counted goes into one bin more, which is dropped.
  cell = jnp.where(counted, truth * n + predicted, n * n)
  return jnp.bincount(cell, length=n * n + 1)[: n * n].reshape(n, n).astype(jnp.int32)


def iou_from_confusion(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, "n"]:
  """The IoU of each class, 0..1; NaN for a class that neither truth nor prediction has.

  Args:
    confusion: counts as of `confusion_counts`, or sums of such.
  """
  # Cast before JAX sees it: counts summed over a large set are int64, which JAX would cut to int32.
  counts = jnp.asarray(confusion.astype(np.float32))
  both = jnp.diagonal(counts)
  either = jnp.sum(counts, axis=0) + jnp.sum(counts, axis=1) - both
  return jnp.where(either > 0, both / jnp.maximum(either, 1.0), jnp.nan)


def mean_iou(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, ""]:
  """The mean of `iou_from_confusion` over the classes that truth or prediction has; NaN when there is none."""
  return jnp.nanmean(iou_from_confusion(confusion))
