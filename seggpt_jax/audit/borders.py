"""Borders in a label: stored pixels in, and out which of them were made up by smoothing or interpolation."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool

from seggpt_jax.palette import IGNORE

_RADII = (2, 6)  # distances in pixels that count as near, in small and in large images
_SIDE_PER_RADIUS = 150
_MOST_CLASSES = 127


class Surroundings(NamedTuple):
  """Comparison of the pixels of a label with those near them.

  Attributes:
    inner: True where all pixels near are alike.
    between: True where pixels near are lower and others higher, in one of the channels: typical of values that were
      made up along borders by smoothing or by resizing with interpolation.
    steep: number of pixels at a border where some pixel near is lower by 2 or more.
    soft: number of those whose direct neighbors are higher than the lowest pixel near: the border is a ramp.
    middle: number of pixels with middle brightness that are not on a ramp from dark to bright.
  """

  inner: Bool[np.ndarray, "h w"]
  between: Bool[np.ndarray, "h w"]
  steep: int
  soft: int
  middle: int


def surroundings(pixels: np.ndarray, near_ends: int) -> Surroundings:
  """Compares each pixel of a label with those near it.

  Args:
    pixels: values `[H, W]`, or colors `[H, W, 3]`.
    near_ends: largest difference from 0 or 255 of a pixel that is dark or bright.
  """
  if pixels.dtype not in (np.uint8, np.uint16):
    pixels = np.clip(pixels, 0, 65535).astype(np.uint16)
  low_source = np.ascontiguousarray(pixels)
  values = low_source[low_source < IGNORE] if low_source.ndim == 2 else low_source
  # Outlines of 255, the usual value to ignore, are no upper end of a ramp between classes below.
  outlined = low_source.ndim == 2 and values.max(initial=0) < _MOST_CLASSES
  high_source = np.where(low_source == IGNORE, low_source.dtype.type(0), low_source) if outlined else low_source
  radius = int(np.clip(min(pixels.shape[:2]) / _SIDE_PER_RADIUS, *_RADII))
  wide = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
  low, high = cv2.erode(low_source, wide), cv2.dilate(high_source, wide)
  between = (low < low_source) & (low_source < high)
  inner = (low == low_source) & (cv2.dilate(low_source, wide) == low_source)
  if low_source.ndim == 3:
    return Surroundings(inner.all(axis=2), between.any(axis=2), 0, 0, 0)
  beside = cv2.erode(low_source, np.ones((3, 3), np.uint8))
  steep = (beside < low_source) & (low + 1 < low_source) & (high_source == low_source)
  dark, bright = low <= near_ends, high >= 255 - near_ends
  middle = (low_source > near_ends) & (low_source < 255 - near_ends) & ~(dark & bright)
  return Surroundings(inner, between, int(steep.sum()), int((steep & (beside > low)).sum()), int(middle.sum()))
