"""Sizes of the regions of each class: label maps in, areas relative to the image out."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from seggpt_jax.palette import IGNORE

_STEPS = 16  # bins for each factor of two in area: a median is known to 2 %
_BINS = 32 * _STEPS
_SPECK = 3  # pixels


class ClassRegions:
  """Histogram of the areas of connected regions of one class in many images.

  Attributes:
    num_regions: number of regions.
    smallest: area of the smallest region, relative to its image.
    num_specks: number of regions of at most 3 pixels.
  """

  def __init__(self):
    self.num_regions = 0
    self.smallest = 1.0
    self.num_specks = 0
    self._speck_area = 0.0
    self._counts = np.zeros(_BINS, np.int64)
    self._areas = np.zeros(_BINS)

  def add(self, areas: Float32[np.ndarray, "n"], num_pixels: int) -> None:
    """Adds the regions of one image with this number of pixels."""
    if areas.size:
      self.num_regions += areas.size
      self.smallest = min(self.smallest, float(areas.min()))
      bins = np.minimum((-np.log2(areas) * _STEPS).astype(np.int64), _BINS - 1)
      np.add.at(self._counts, bins, 1)
      np.add.at(self._areas, bins, areas)
      specks = areas[areas * num_pixels < _SPECK + 0.5]
      self.num_specks += specks.size
      self._speck_area += float(specks.sum())

  @property
  def speck_share(self) -> float:
    """Share of the class's area that its specks hold, 0..1."""
    return self._speck_area / max(float(self._areas.sum()), 1e-12)

  @property
  def median(self) -> float:
    """Median area of a region, relative to its image; 0 without regions."""
    return max(_middle(self._counts), self.smallest) if self.num_regions else 0.0

  @property
  def median_of_pixels(self) -> float:
    """Area of the region that contains the median pixel, relative to its image; 0 without regions.

    Specks count for little. Images count as if all had the same size.
    """
    return _middle(self._areas)


def _middle(weights: np.ndarray) -> float:
  total = weights.sum()
  if not total:
    return 0.0
  middle = int(np.searchsorted(np.cumsum(weights), total / 2))
  return float(2 ** (-(middle + 0.5) / _STEPS))


def count_pixels(label: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "256"]:
  """Counts the pixels of each class; counts above 16 million are rounded to seven digits."""
  # Takes a tenth of the time of `numpy.bincount`, and releases the interpreter lock.
  return cv2.calcHist([label], [0], None, [IGNORE + 1], [0, IGNORE + 1]).ravel().astype(np.int64)


def region_areas(
  label: UInt8[np.ndarray, "h w"], pixels: Int64[np.ndarray, "256"]
) -> list[tuple[int, Float32[np.ndarray, "n"]]]:
  """Measures the connected regions (8-connected) of each class except the background.

  Args:
    label: label map.
    pixels: `count_pixels` of the label map.

  Returns:
    For each class in the label map: the class and the areas of its regions, relative to the image.
  """
  found = []
  for class_index in np.flatnonzero(pixels[1:IGNORE]) + 1:
    mask = cv2.inRange(label, int(class_index), int(class_index))
    x, y, width, height = cv2.boundingRect(mask)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask[y : y + height, x : x + width])
    found.append((int(class_index), (stats[1:, cv2.CC_STAT_AREA] / label.size).astype(np.float32)))
  return found
