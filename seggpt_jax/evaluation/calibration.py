"""Chooses the operating point of a network on labeled images: how sensitive to be to each class.

In: predictions of labeled images, with the colors that the network predicted. Out: the sensitivity of each class and
the least area of an object, with the rates that they give, and a picture of all other choices.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole
from seggpt_jax.formats.labels import IGNORE, classes_in
from seggpt_jax.inference.prediction import decode_prediction
from seggpt_jax.inference.trained import OperatingPoint
from seggpt_jax.metrics.inspection import Thresholds

Aim = Literal["f1", "catch", "yield", "balance"]

# Sensitivities that are tried for each class, and then factors on all of them.
_STEPS = 2.0 ** (np.arange(-12, 13) / 4)
_FACTORS = 2.0 ** (np.arange(-6, 7) / 2)
# Least areas that are tried, as shares of the median area of the objects in the labels.
_AREAS = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5)


class Seen(NamedTuple):
  """A labeled image after the network."""

  colors: UInt8[np.ndarray, "h w 3"]  # the predicted colors, uint8 [H, W, 3]
  truth: UInt8[np.ndarray, "h w"]  # the true label map, uint8 [H, W]


@dataclasses.dataclass(frozen=True)
class Rates:
  """The rates of one operating point; shares are 0..1."""

  factor: float  # on the sensitivities of all classes
  point: OperatingPoint
  precision: float  # share of the pixels called foreground that are of the class they are called
  recall: float  # share of the foreground's pixels that are called by their class
  iou: float  # mean IoU of the classes from 1, from pixels of all images: the foreground IoU of `seggpt infer`
  catch: float | None  # share of images with foreground whose IoU is at least 0.3; None without such images
  left_alone: float | None  # share of images without foreground where nothing is called so; None without such images

  @property
  def f1(self) -> float:
    """The harmonic mean of precision and recall, 0..1."""
    return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


def calibrate(
  images: Sequence[Seen], palette: UInt8[np.ndarray, "n 3"], aim: Aim = "f1", least: float | int = 0.0
) -> tuple[Rates, list[Rates]]:
  """Chooses an operating point.

  Classes are as sensitive as one another, or each has the sensitivity with the best F1 of its own pixels against all
  others, whichever has the better F1 of all classes. Then a factor on all sensitivities and a least area are chosen
  for the images as a whole.

  Args:
    images: labeled images after the network.
    palette: the color of each class.
    aim: "f1" takes the best F1 of the pixels of all classes. "catch" takes, among the points that catch at least
      the share `least` of the images with foreground, the one that leaves most of the others alone; "yield" the
      reverse; "balance" the best mean of F1 and of both rates, as far as there are images of both kinds, where
      neighboring points are good as well.
    least: 0 to 1.

  Returns:
    The chosen point, and all that were tried.

  Raises:
    InputError: no image shows a class, or none without any is there to aim for a yield.
  """
  shown = sorted({value for image in images for value in classes_in(image.truth)})
  if not shown:
    raise InputError(f"found no class in the labels of {len(images)} images, expected some to catch")
  if aim == "yield" and all(classes_in(image.truth) for image in images):
    raise InputError(f"--aim=yield: found {len(images)} images that all show a class, expected some without")

  factors = _FACTORS[:: 2 if aim == "balance" else 1].tolist()  # which looks at twice as many sensitivities

  def with_factors(sensitivities: np.ndarray, least_area: int) -> list[Rates]:
    return [rates(images, palette, sensitivities * factor, least_area, factor) for factor in factors]

  bases = np.ones(len(palette) - 1), _own_sensitivities(images, palette, shown)
  lines = [with_factors(base, 0) for base in bases]
  better = int(np.argmax([max(found.f1 for found in line) for line in lines]))
  area = _median_area(images)
  kept = range(2) if aim == "balance" else [better]
  lines = [lines[which] for which in kept]
  for least_area in sorted({round(share * area) for share in _AREAS} - {0}):
    lines += [with_factors(bases[which], least_area) for which in kept]
  tried = [found for line in lines for found in line]
  if aim == "f1":
    return max(tried, key=lambda found: found.f1), tried
  if aim == "balance":
    steady = np.concatenate([_mean_of_neighbors([_balance(found) for found in line]) for line in lines])
    # Among equals the one that drops most specks, which other images may show, then the one next to what the network
    # says by itself.
    order = [
      (round(score, 3), found.point.least_area, -abs(np.log(found.factor)))
      for score, found in zip(steady, tried, strict=True)
    ]
    return tried[order.index(max(order))], tried
  wanted, other = ("catch", "left_alone") if aim == "catch" else ("left_alone", "catch")

  def order(found: Rates) -> tuple[float, ...]:
    reached = getattr(found, wanted)
    # Where the aim is out of reach, the nearest to it; then what the other rate is, then F1.
    return min(reached, least), getattr(found, other) or 0.0, found.f1

  return max(tried, key=order), tried


def _balance(found: Rates) -> float:
  """Returns the sum of F1 and both rates, of those that are known."""
  return found.f1 + (found.catch or 0.0) + (found.left_alone or 0.0)


def _mean_of_neighbors(scores: Sequence[float]) -> Float[np.ndarray, "n"]:
  """Averages each score with those at its sides: on other images, the best point at an edge is beyond the edge."""
  return np.convolve(np.pad(scores, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")


def rates(
  images: Sequence[Seen],
  palette: UInt8[np.ndarray, "n 3"],
  sensitivity: Float[np.ndarray, "m"],
  least_area: int,
  factor: float = 1.0,
) -> Rates:
  """Returns the rates of an operating point.

  Args:
    images: labeled images after the network.
    palette: the color of each class.
    sensitivity: for classes 1, 2, ...
    least_area: in pixels.
    factor: kept with the result.
  """
  point = OperatingPoint(tuple(round(float(value), 4) for value in sensitivity), least_area)
  most = max(len(palette), *(1 + max(classes_in(image.truth), default=0) for image in images))
  confusion, caught, alone = np.zeros((most, most), np.int64), [], []
  for image in images:
    labels = decode_prediction(image.colors, palette, np.arange(len(palette)), None, *point).labels
    known = image.truth != IGNORE
    pairs = image.truth[known].astype(np.int64) * most + labels[known]
    own = np.bincount(pairs, minlength=most * most).reshape(most, most)
    confusion += own
    if own[1:].any():
      caught.append(own[1:, 1:].sum() >= Thresholds.catch_iou * (own.sum() - own[0, 0]))
    else:
      alone.append(not own[:, 1:].any())
  means = (float(np.mean(values)) if values else None for values in (caught, alone))
  right, found, there = np.diag(confusion)[1:], confusion.sum(axis=0)[1:], confusion.sum(axis=1)[1:]
  either = found + there - right
  iou = (right[either > 0] / either[either > 0]).mean() if either.any() else 0.0
  return Rates(factor, point, *(float(right.sum() / max(each.sum(), 1)) for each in (found, there)), float(iou), *means)


def _own_sensitivities(images: Sequence[Seen], palette: np.ndarray, shown: Sequence[int]) -> Float[np.ndarray, "m"]:
  """Returns for each class the sensitivity with the best F1 of its own pixels, 1 for classes that nothing shows."""
  result = np.ones(len(palette) - 1)
  edges = np.concatenate([[0.0], _STEPS, [np.inf]])
  counts = np.zeros((len(palette), 2, len(edges) - 1), np.int64)
  for image in images:
    known = image.truth != IGNORE
    colors, truth = image.colors[known].astype(np.float32), image.truth[known]
    distances = np.linalg.norm(colors[:, None] - palette.astype(np.float32), axis=-1)
    for value in shown:
      # The pixel becomes this class where its sensitivity exceeds this ratio, other classes aside.
      ratio = distances[:, value] / np.maximum(distances[:, 0], 1e-6)
      for is_it in (0, 1):
        counts[value, is_it] += np.histogram(ratio[(truth == value) == is_it], edges)[0]
  for value in shown:
    wrong, right = np.cumsum(counts[value], axis=1)[:, :-1]
    f1 = 2 * right / np.maximum(right + wrong + counts[value, 1].sum(), 1)
    # In the middle of the best ones, where other images are least likely to be on the other side.
    best = np.flatnonzero(f1 == f1.max())
    result[value - 1] = _STEPS[best[len(best) // 2]] if f1.max() > 0 else 1.0
  return result


def _median_area(images: Iterable[Seen]) -> float:
  """Returns the median number of pixels of the foreground objects in the labels."""
  areas: list[int] = []
  for image in images:
    there = ((image.truth > 0) & (image.truth != IGNORE)).astype(np.uint8)
    areas += cv2.connectedComponentsWithStats(there)[2][1:, cv2.CC_STAT_AREA].tolist()
  return float(np.median(areas))


def draw_rates(tried: Sequence[Rates], chosen: Rates, path: str | os.PathLike) -> None:
  """Draws precision against recall and, if there are images of both kinds, catch against yield.

  Args:
    tried: all points.
    chosen: the one that is marked.
    path: PNG file to write.

  Raises:
    InputError: the file cannot be written.
  """
  from matplotlib.figure import Figure

  pairs: list[tuple[str, str, dict[str, Any]]] = [("recall", "precision", {})]
  if chosen.catch is not None and chosen.left_alone is not None:
    labels = {"xlabel": "catch: images with defects that are caught", "ylabel": "yield: others that are left alone"}
    pairs.append(("catch", "left_alone", labels))
  figure = Figure(figsize=(6 * len(pairs), 5), layout="constrained")
  for axis, (x, y, labels) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
    for area in sorted({found.point.least_area for found in tried}):
      line = [(getattr(found, x), getattr(found, y)) for found in tried if found.point.least_area == area]
      axis.plot(*zip(*line, strict=True), marker=".", linewidth=1.0, label=f"objects of {area} pixels or more")
    axis.plot(getattr(chosen, x), getattr(chosen, y), "k*", markersize=14, label="chosen")
    axis.set(**({"xlabel": x, "ylabel": y} | labels), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
  write_whole(Path(path), lambda file: figure.savefig(file, format="png", dpi=100))
