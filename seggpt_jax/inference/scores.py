"""Scores of a run: IoU, Dice and boundary F of each class, and the IoU of each image.

In: predicted and true class indices of one image after another, or the counts that an earlier run stored. Out: the JSON
values of metrics.json, and the short table that is printed. Scores of a class come from counts summed over all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Integer

from seggpt_jax.inference import tiling
from seggpt_jax.metrics import iou
from seggpt_jax.metrics.boundary import boundary_counts, boundary_scores
from seggpt_jax.palette import IGNORE

_BLOCK = 2**18  # pixels counted at a time

Counts = dict[str, list[list[int]]]  # counts of one image as JSON values


def count(predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"]) -> Counts:
  """Counts the pixels of one image, except ignored pixels.

  Args:
    predicted: predicted class indices.
    truth: true class indices, 255 for ignored pixels.

  Returns:
    `confusion`, a list of [true class, predicted class, pixels], and `boundary`, a list of [class, matched predicted,
    predicted, matched true, true] pixels of contours. Entries with only zeros are left out.
  """
  truth = np.where(truth == IGNORE, -1, truth.astype(np.int32))
  n = 1 + max(1, int(predicted.max()), int(truth.max()))
  confusion = confusion_counts(predicted, truth, n)
  # A palette has no more classes than that.
  boundary = boundary_counts(predicted, truth, min(n, IGNORE))
  rows, cols = np.nonzero(confusion)
  return {
    "confusion": np.stack([rows, cols, confusion[rows, cols]], axis=1).tolist(),
    "boundary": [[index, *row.tolist()] for index, row in enumerate(boundary) if row.any()],
  }


class Scores:
  """The summed counts of a run's images, and the IoU of each image.

  Attributes:
    per_image: IoU of each class, by name of the image.
  """

  def __init__(self):
    self._confusion, self._boundary = np.zeros((2, 2), np.int64), np.zeros((2, 4), np.int64)
    self.per_image: dict[str, list[float | None]] = {}

  def add(self, name: str, counts: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Adds the counts of an image.

    Args:
      name: name of the image.
      counts: counts from `count`. A class beyond those seen so far enlarges the table.
    """
    classes = [index for entry in counts["confusion"] for index in entry[:2]] + [row[0] for row in counts["boundary"]]
    n = max([len(self._confusion), *(1 + index for index in classes)])
    confusion = np.zeros((n, n), np.int64)
    for truth, predicted, pixels in counts["confusion"]:
      confusion[truth, predicted] += pixels
    self._confusion = iou.total_confusion([self._confusion, confusion])
    self._boundary = np.pad(self._boundary, ((0, n - len(self._boundary)), (0, 0)))
    for index, *pixels in counts["boundary"]:
      self._boundary[index] += pixels
    self.per_image[name] = _plain(iou.iou_from_confusion(confusion))

  def summary(self, unscored: Sequence[str] = ()) -> dict[str, Any]:
    """Computes all scores as JSON values. The score of a class that neither truth nor prediction has is None.

    Returns:
      `images` (their number), `unscored` (names), `miou`, `dice` and `boundary_f` (means over classes of the summed
      counts), the same as `foreground_...` (without class 0), `classes` (scores and pixel counts of each class), and
      `per_image` (IoU of each class and their mean, by name).
    """
    table = {
      "iou": _plain(iou.iou_from_confusion(self._confusion)),
      "dice": _plain(iou.dice_from_confusion(self._confusion)),
      "boundary_f": _plain(boundary_scores(self._boundary).f),
    }
    n = len(self._confusion)
    means = {("miou" if key == "iou" else key): mean(values) for key, values in table.items()}
    means |= {f"foreground_{'miou' if key == 'iou' else key}": mean(values[1:]) for key, values in table.items()}
    # Images that were counted before the table was enlarged have no later classes.
    per_image = {name: scores + [None] * (n - len(scores)) for name, scores in self.per_image.items()}
    return {
      "images": len(per_image),
      "unscored": list(unscored),
      **means,
      "classes": [
        {
          "class": index,
          **{key: values[index] for key, values in table.items()},
          "intersection_pixels": int(self._confusion[index, index]),
          "truth_pixels": int(self._confusion[index].sum()),
          "predicted_pixels": int(self._confusion[:, index].sum()),
        }
        for index in range(n)
      ],
      "per_image": {name: {"miou": mean(scores), "iou": scores} for name, scores in per_image.items()},
    }


_count_block = jax.jit(iou.confusion_counts, static_argnames="num_classes")


def confusion_counts(
  predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], num_classes: int
) -> Int[np.ndarray, "n n"]:
  """Applies `iou.confusion_counts` to one image of any size without compiling for that size.

  Args:
    predicted: predicted class indices.
    truth: true class indices; negative values are not counted.
    num_classes: number of classes.

  Returns:
    int64 pixel counts by true class (rows) and predicted class (columns).
  """
  # The last block is filled with -1, which is not counted.
  blocks = (tiling.pixel_blocks(labels.reshape(-1).astype(np.int32), _BLOCK, fill=-1) for labels in (predicted, truth))
  counts = [_count_block(p, t, num_classes=num_classes) for p, t in zip(*blocks, strict=True)]
  return np.sum([np.asarray(table, np.int64) for table in counts], axis=0)


def report(metrics: Mapping[str, Any]) -> str:
  """Formats the scores of a run as a short table."""

  def row(title: str, *scores: float | None) -> str:
    return f"  {title:<12}" + "".join(f"{'-' if score is None else f'{score:.1%}':>12}" for score in scores)

  lines = [f"{metrics['images']} labeled images", f"  {'':<12}{'IoU':>12}{'Dice':>12}{'boundary F':>12}"]
  for entry in metrics["classes"]:
    if entry["iou"] is not None:
      lines.append(row(f"class {entry['class']}", *(entry[key] for key in ("iou", "dice", "boundary_f"))))
  lines.append(row("mean", *(metrics[key] for key in ("miou", "dice", "boundary_f"))))
  lines.append(row("foreground", *(metrics[f"foreground_{key}"] for key in ("miou", "dice", "boundary_f"))))
  if metrics["unscored"]:
    lines.append(f"  {len(metrics['unscored'])} images without labels")
  return "\n".join(lines)


def _plain(scores: Any) -> list[float | None]:
  return [None if math.isnan(score) else score for score in np.asarray(scores).tolist()]


def mean(scores: Sequence[float | None]) -> float | None:
  """Returns the mean of the scores that are there, or None."""
  present = [score for score in scores if score is not None]
  return sum(present) / len(present) if present else None
