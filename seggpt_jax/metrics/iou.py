"""Intersection over union and Dice, from confusion counts.

In: predicted and true class indices. Out: an `n x n` table of pixel counts, and from it the IoU and Dice of each class
and their means. Counts of several batches, images or hosts add up, so the IoU of a set is that of the summed table. All
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


def total_confusion(tables: Iterable[Integer[Array | np.ndarray, "_ _"]]) -> Int64[np.ndarray, "n n"]:
  """The counts of several batches, images or processes as one table.

  Sums of JAX arrays stay int32 and wrap around after 2^31 pixels, some 2000 images of 1024 x 1024. These do not.

  Args:
    tables: counts as of `confusion_counts`. One with fewer classes than the largest has none of the later ones.

  Returns:
    int64 counts; 0 x 0 when there are no tables.
  """
  total = np.zeros((0, 0), np.int64)
  for table in tables:
    table = np.asarray(table, np.int64)
    n = max(len(total), len(table))
    total, table = (np.pad(counts, (0, n - len(counts))) for counts in (total, table))
    total = total + table
  return total


def iou_from_confusion(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, "n"]:
  """The IoU of each class, 0..1; NaN for a class that neither truth nor prediction has.

  Args:
    confusion: counts as of `confusion_counts`, or sums of such.
  """
  both, predicted, true = _class_pixels(confusion)
  either = predicted + true - both
  return jnp.where(either > 0, both / jnp.maximum(either, 1.0), jnp.nan)


def mean_iou(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, ""]:
  """The mean of `iou_from_confusion` over the classes that truth or prediction has; NaN when there is none."""
  return jnp.nanmean(iou_from_confusion(confusion))


def dice_from_confusion(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, "n"]:
  """The Dice coefficient of each class, 0..1; NaN for a class that neither truth nor prediction has.

  Dice, also called F1, is twice the pixels that both have over the pixels of one plus those of the other:
  2 IoU / (1 + IoU), never less than the IoU.

  Args:
    confusion: counts as of `confusion_counts`, or sums of such.
  """
  both, predicted, true = _class_pixels(confusion)
  pixels = predicted + true
  return jnp.where(pixels > 0, 2.0 * both / jnp.maximum(pixels, 1.0), jnp.nan)


def mean_dice(confusion: Num[Array | np.ndarray, "n n"]) -> Float[Array, ""]:
  """The mean of `dice_from_confusion` over the classes that truth or prediction has; NaN when there is none."""
  return jnp.nanmean(dice_from_confusion(confusion))


def _class_pixels(confusion):
  """Of each class, as float32: pixels that truth and prediction both have, the predicted and the true ones."""
  # Cast before JAX sees it: counts summed over a large set are int64, which JAX would cut to int32.
  counts = jnp.asarray(confusion.astype(np.float32))
  return jnp.diagonal(counts), jnp.sum(counts, axis=0), jnp.sum(counts, axis=1)
