"""A source of samples at the scale of the network, and the measurement of that scale from the labels.

In: a source of labeled images of any size. Out: the same samples, resampled by one factor, the zoom. Images of one
camera show objects at one scale, and a network sees small objects only if a patch is not larger than they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.cells import zoomed, zoomed_shape
from seggpt_jax.data.sources import Sample, Source, View
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import classes_in

_LABELS = 200  # labels that are measured, evenly spaced
_LEAST = 0.05  # the smallest zoom


class ZoomedSource(View):
  """The samples of another source, resampled to the scale of the network. Implements `Source`.

  Args:
    source: the samples.
    zoom: factor from an image's pixels to the network's.
  """

  def __init__(self, source: Source, zoom: float | int):
    super().__init__(source)
    self.zoom = zoom

  def __getitem__(self, index: int) -> Sample:
    return zoomed(super().__getitem__(index), self.zoom)


@runtime_checkable
class Labels(Protocol):
  """Label maps by number: all that `object_sides` asks of a source of samples."""

  def __len__(self) -> int: ...

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    """Returns the label map of a sample."""
    ...


def object_sides(source: Labels, skip: Callable[[InputError], None] | None = None) -> dict[int, float]:
  """Measures how large the objects of each class are.

  Args:
    source: label maps, of which at most 200 are looked at.
    skip: called with the error of each label that cannot be read; None raises the first one.

  Returns:
    For each class that was found the median side of its objects in pixels: the square root of the area of 8-connected
    pixels of the class, of those with at least 4 pixels.

  Raises:
    InputError: a label cannot be read and `skip` is None, or no label shows any class.
  """
  sides: dict[int, list[float]] = {}
  for index in np.unique(np.linspace(0, len(source) - 1, _LABELS).astype(int)).tolist():
    try:
      label = source.label(index)
    except InputError as error:
      if skip is None:
        raise
      skip(error)
      continue
    for value in classes_in(label):
      stats = cv2.connectedComponentsWithStats(cv2.inRange(label, value, value))[2]
      areas = stats[1:, cv2.CC_STAT_AREA]
      sides.setdefault(value, []).extend(np.sqrt(areas[areas >= min(4, areas.max())]).tolist())
  if not sides:
    raise InputError(f"found no foreground in {_LABELS} labels, expected some to measure its size; set data.zoom")
  return {value: float(np.median(found)) for value, found in sorted(sides.items())}


def num_windows(shape: tuple[int, ...], zoom: float | int, square: int) -> int:
  """Returns the number of windows that cover an image without overlap.

  Args:
    shape: shape of the image, height and width first.
    zoom: factor from the image's pixels to the network's.
    square: side of the network's square in pixels.
  """
  height, width = zoomed_shape(shape, zoom)
  return -(-height // square) * -(-width // square)


def measured_zoom(
  sides: dict[int, float], shape: tuple[int, ...], square: int, wanted: int, most_windows: int
) -> float:
  """Chooses the zoom at which the smallest class is as large as wanted, unless that takes too many windows.

  Args:
    sides: median side of each class's objects, from `object_sides`.
    shape: shape of a typical image, height and width first.
    square: side of the network's square in pixels.
    wanted: side in pixels that the objects of the smallest class should have, at least that of a patch.
    most_windows: most windows that an image may take.

  Returns:
    The zoom, three digits: at most 1, because magnified pixels show nothing new, and at least as large as fits a whole
    image into one square.
  """
  whole = square / max(shape[:2])
  zoom = min(1.0, wanted / min(sides.values()))
  while zoom > whole and num_windows(shape, zoom, square) > most_windows:
    zoom *= 0.95
  # Rounded down: a pixel more than a square would take a second one.
  return math.floor(1000 * max(zoom, min(whole, 1.0), _LEAST) + 1e-6) / 1000
