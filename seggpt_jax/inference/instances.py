"""Instances: a prediction in, its objects with class, area, box, confidence and polygon out.

An instance is an 8-connected component of one class. Its outlines follow the edges of pixels, drawn in by `INSET`, and
are simplified. Coordinates are in pixels: the first pixel of an image reaches from 0 to 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as mask_module

from seggpt_jax.errors import InputError
from seggpt_jax.inference.prediction import Prediction

TOLERANCE = 1.0  # pixels
# The pixels of an edge are the inner ones whether a reader asks for the center of each pixel, as COCO does, or cuts off
# the decimals of each corner and fills up to and including it, as labelme and Ultralytics do.
INSET = 0.05
LEAST_IOU = 0.97  # of an instance and its simplified polygon, for both kinds of readers
_LEAST_TOLERANCE = 0.25  # below it, an outline keeps every corner


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
  """An object in an image.

  Attributes:
    class_index: its class.
    area: number of its pixels.
    box: left, top, width and height in pixels.
    confidence: mean of `Prediction.confidence` over its pixels, 0..1.
    outline: corners x, y of its outer edge.
    holes: corners of the edge of each hole, in the other direction.
    polygon: `outline` with all holes joined to it: a cut of no width leads from the edge on the left to each hole.
  """

  class_index: int
  area: int
  box: tuple[int, int, int, int]
  confidence: float
  outline: Float[np.ndarray, "n 2"]
  holes: tuple[Float[np.ndarray, "_ 2"], ...]
  polygon: Float[np.ndarray, "m 2"]


def instances(prediction: Prediction, least_area: int = 0, tolerance: float | int = TOLERANCE) -> list[Instance]:
  """Lists the objects of a prediction: the 8-connected components of each class except the background.

  Examples:
    >>> for found in seggpt_jax.instances(prediction, least_area=20):
    ...   print(found.class_index, found.area, found.box, found.confidence)
    1 ...

  Args:
    prediction: the prediction for an image.
    least_area: leaves out instances with fewer pixels.
    tolerance: largest distance in pixels by which simplified outlines leave the edges of pixels; 0 keeps every corner.
      It is halved for an instance until its polygon has an IoU of at least `LEAST_IOU` with it, so that small and thin
      objects keep their shape.

  Returns:
    The instances by class, from top to bottom.

  Raises:
    InputError: `tolerance` or `least_area` is negative.
  """
  for name, value in (("polygon_tolerance", tolerance), ("least_area", least_area)):
    if not 0 <= value < np.inf:
      raise InputError(f"{name}: found {value}, expected a number of pixels, or 0")
  found, labels, confidence = [], prediction.labels, prediction.confidence()
  for class_index in np.unique(labels[labels > 0]).tolist():
    _, components, stats, _ = cv2.connectedComponentsWithStats((labels == class_index).astype(np.uint8))
    sums = np.bincount(components.ravel(), confidence.ravel())
    for index, (left, top, width, height, area) in enumerate(np.asarray(stats).tolist()):
      if index and area >= least_area:
        mask = components[top : top + height, left : left + width] == index
        outlines = [ring + np.array([left, top]) for ring in _outlines(mask, tolerance)]
        score = min(float(sums[index] / area), 1.0)
        box = (left, top, width, height)
        polygon = _joined(outlines)
        found.append(Instance(class_index, area, box, score, outlines[0], tuple(outlines[1:]), polygon))
  return found


def _outlines(mask: Bool[np.ndarray, "h w"], tolerance: float | int) -> list[Float[np.ndarray, "_ 2"]]:
  """Returns the outer edge and the edges of the holes of one 8-connected component, simplified."""
  # With two by two pixels for each, the contour, which leads through centers of pixels, tells the sides of one apart.
  doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
  contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
  order = sorted(range(len(contours)), key=lambda index: hierarchy[0, index, 3] >= 0)  # the outer edge has no parent
  corners = [contours[index][:, 0] for index in order]
  exact = [np.where(ring % 2, ring // 2 + 1 - INSET, ring // 2 + INSET) for ring in corners]
  while tolerance >= _LEAST_TOLERANCE and max(map(len, exact)) > 4:  # rectangles have no corner to spare
    found = [cv2.approxPolyDP(ring.astype(np.float32), tolerance, closed=True)[:, 0] for ring in exact]
    kept = zip(exact, found, strict=True)
    simple = [ring if len(corners) < 3 else np.round(corners.astype(np.float64), 2) for ring, corners in kept]
    if _similarity(simple, mask) >= LEAST_IOU:
      return simple
    tolerance /= 2
  return exact


def _joined(outlines: Sequence[Float[np.ndarray, "_ 2"]]) -> Float[np.ndarray, "n 2"]:
  """Joins the outlines of holes to the outer one, by a horizontal cut from the leftmost corner of each to the left."""
  rings = [outlines[0], *sorted(outlines[1:], key=lambda hole: hole[:, 0].min())]
  rings = [np.roll(ring, -int(ring[:, 0].argmin()), axis=0) for ring in rings]
  cuts = _cuts(rings)
  # A cut leads to a ring further left, so all that is joined to a ring is known before the ring itself is joined.
  for index in reversed(range(len(rings))):
    ring, place, pieces = rings[index], 0, []
    for edge, _, corner, hole in sorted(cuts[index], key=lambda cut: cut[:2]):
      pieces += [ring[place : edge + 1], corner, rings[hole], rings[hole][:1], corner]
      place = edge + 1
    rings[index] = np.concatenate([*pieces, ring[place:]])
  polygon = rings[0]
  return polygon[(polygon != np.roll(polygon, 1, axis=0)).any(axis=1)]  # a cut may start at a corner


def _cuts(rings: Sequence[Float[np.ndarray, "_ 2"]]) -> list[list[tuple[int, float, np.ndarray, int]]]:
  """Returns for each ring (holes from left to right) its cuts to holes: edge, distance along it, point, hole."""
  start, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
  ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
  low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
  order, tallest = np.argsort(low), (high - low).max()
  sorted_low, first = low[order], np.searchsorted(ring_of, np.arange(len(rings)))
  cuts: list[list[tuple[int, float, np.ndarray, int]]] = [[] for _ in rings]
  for hole in range(1, len(rings)):
    x, y = rings[hole][0]
    edges = order[np.searchsorted(sorted_low, y - tallest) : np.searchsorted(sorted_low, y, "right")]
    edges = edges[(ring_of[edges] < hole) & (high[edges] > y)]
    share = (y - start[edges, 1]) / (end[edges, 1] - start[edges, 1])
    meets = start[edges, 0] + share * (end[edges, 0] - start[edges, 0])
    if (meets <= x).any():
      edge = int(edges[np.where(meets <= x, meets, -np.inf).argmax()])
      corner = np.array([[meets[meets <= x].max(), y]])
    else:  # a simplified hole may reach out of a simplified object
      edge = int(((start[: first[hole]] - rings[hole][0]) ** 2).sum(axis=1).argmin())
      corner = start[edge : edge + 1]
    ring = int(ring_of[edge])
    cuts[ring].append((edge - int(first[ring]), float(np.abs(corner - start[edge]).sum()), corner, hole))
  return cuts


def _similarity(outlines: Sequence[Float[np.ndarray, "_ 2"]], mask: Bool[np.ndarray, "h w"]) -> float:
  """Returns the IoU of an instance and its outlines, for the kind of reader that makes it smaller."""
  filled = (fill_centers(outlines, mask.shape), fill_corners(outlines, mask.shape))
  return min(float((each & mask).sum() / (each | mask).sum()) for each in filled)


def fill_corners(outlines: Sequence[Float[np.ndarray, "_ 2"]], size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
  """Fills outlines as labelme and Ultralytics do: decimals of corners are cut off, and the edges belong to the object.

  Args:
    outlines: corners x, y in pixels of an outer edge and of holes, or of one polygon.
    size: height and width of the image.
  """
  return cv2.fillPoly(np.zeros(size, np.uint8), [ring.astype(np.int32) for ring in outlines], 1) > 0


def fill_centers(outlines: Sequence[Float[np.ndarray, "_ 2"]], size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
  """Fills outlines as COCO does, by the even-odd rule.

  Args:
    outlines: corners x, y in pixels of an outer edge and of holes, or of one polygon.
    size: height and width of the image.
  """
  drawn = mask_module.frPyObjects([ring.ravel().tolist() for ring in outlines], *size)
  return mask_module.decode(drawn).sum(axis=-1) % 2 == 1
