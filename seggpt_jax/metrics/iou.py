"""Intersection over union and Dice, from confusion counts.

In: predicted and true class indices. Out: an `n x n` table of pixel counts, and from it IoU and Dice of each class and
the mean IoU. Counts of batches, images or hosts add up, so the IoU of a set is the IoU of the summed table. All
functions but `total_confusion` take NumPy and JAX arrays and can be jitted.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int64, Integer, Num


def confusion_counts(
  predicted: Integer[Array | np.ndarray, "*pixels"],
  truth: Integer[Array | np.ndarray, "*pixels"],
  num_classes: int,
  valid: Bool[Array | np.ndarray, "*pixels"] | None = None,
) -> Int[Array, "n n"]:
  """Counts the pixels of each pair of true and predicted class.

  Args:
    predicted: class indices of any shape.
    truth: class indices, same shape.
    num_classes: n; pixels whose predicted or true class is not in 0..n-1 are not counted.
    valid: False for pixels that are not counted, same shape; by default all are counted.

  Returns:
    int32 counts; rows are true classes, columns predicted classes. One call counts up to 2^31 - 1 pixels.
  """
  n = num_classes
  predicted, truth = (jnp.asarray(labels, jnp.int32).reshape(-1) for labels in (predicted, truth))
  counted = (predicted >= 0) & (predicted < n) & (truth >= 0) & (truth < n)
  if valid is not None:
    counted &= jnp.asarray(valid).reshape(-1)
  # Pixels that are not counted go into one extra bin, which is dropped.
  cell = jnp.where(counted, truth * n + predicted, n * n)
  return jnp.bincount(cell, length=n * n + 1)[: n * n].reshape(n, n).astype(jnp.int32)


def total_confusion(tables: Iterable[Integer[Array | np.ndarray, "_ _"]]) -> Int64[np.ndarray, "n n"]:
  """Sums the counts of several batches, images or processes.

  Sums of JAX arrays stay int32 and wrap around after 2^31 pixels, about 2,000 images of 1024 x 1024. This sum does not.

  Args:
    tables: counts of `confusion_counts`. Tables may have different numbers of classes.

  Returns:
    int64 counts for the largest number of classes; 0 x 0 if there are no tables.
  """
  total = np.zeros((0, 0), np.int64)
  for table in tables:
    table = np.asarray(table, np.int64)
    n = max(len(total), len(table))
    total, table = (np.pad(counts, (0, n - len(counts))) for counts in (total, table))
    total = total + table
  return total


def iou_from_confusion(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, "n"]:
  """Computes the IoU of each class, 0..1; NaN for a class that neither truth nor prediction has.

  Args:
    confusion: counts of `confusion_counts`, or sums of them.
  """
  both, predicted, true = _class_pixels(confusion)
  either = predicted + true - both
  return jnp.where(either > 0, both / jnp.maximum(either, 1.0), jnp.nan)


def mean_iou(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, ""]:
  """Computes the mean IoU over the classes that truth or prediction has; NaN if there is no class."""
  return jnp.nanmean(iou_from_confusion(confusion))


def dice_from_confusion(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, "n"]:
  """Computes the Dice coefficient of each class, 0..1; NaN for a class that neither truth nor prediction has.

  Dice, also called F1, is twice the number of common pixels over the sum of predicted and true pixels. It equals
  2 IoU / (1 + IoU) and is never less than the IoU.

  Args:
    confusion: counts of `confusion_counts`, or sums of them.
  """
  both, predicted, true = _class_pixels(confusion)
  pixels = predicted + true
  return jnp.where(pixels > 0, 2.0 * both / jnp.maximum(pixels, 1.0), jnp.nan)


def _class_pixels(confusion):
  """Returns the number of common, of predicted and of true pixels of each class, as float32."""
  # Cast before JAX converts it: counts summed over a large set are int64, which JAX would truncate to int32.
  counts = jnp.asarray(confusion.astype(np.float32))
  return jnp.diagonal(counts), jnp.sum(counts, axis=0), jnp.sum(counts, axis=1)
