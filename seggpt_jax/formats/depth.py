"""Reads the numbers of an image: which value is white, and which pixels nobody sees.

In: pixels as a file stores them, of any depth, and its alpha. Out: uint8. The range is chosen by the file alone, by the
same rule for training images, prompts and queries: what the file states, or else the depth that its values need.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax.errors import InputError, warn_once

# Cameras and scanners have 8, 12 or 16 bits. Finer steps would give two images of one camera different ranges.
_WHITES = (255, 4095, 65535)
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF tags
_SIXTEEN_BIT_PNG = (2, 4, 6)  # color types with several channels, of which Pillow keeps 8 bits only
_HIDDEN = 255  # the color of transparent pixels, as most viewers show them


def as_eight_bits(values: np.ndarray, where: str, stated: int | None = None) -> UInt8[np.ndarray, "..."]:
  """Scales numbers to 0..255.

  Args:
    values: integers of any type, 0 or more.
    where: name of the file, for messages.
    stated: the value that is white, if the file states it.

  Raises:
    InputError: a number is negative or above 65535.
  """
  least, most = int(values.min()), int(values.max())
  if least < 0 or most > _WHITES[-1]:
    raise InputError(f"{where}: found values {least}..{most}, expected 8 or 16 bits, unsigned")
  white = stated if stated is not None and most <= stated <= _WHITES[-1] else next(w for w in _WHITES if most <= w)
  if white != _WHITES[-1]:
    _say_white(white)
  return np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)


@functools.cache
def _say_white(white: int) -> None:
  warn_once(f"images of 16 or 32 bits whose values end at {white} or below are read with {white} as white")


def stated_white(image: Image.Image) -> int | None:
  """Returns the largest value that a TIFF file states for its pixels, or None."""
  found = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
  values = found if isinstance(found, tuple) else (found,)
  return max(values) if values and all(isinstance(value, int) and value > 0 for value in values) else None


def deep_colors(data: bytes, image: Image.Image, where: str) -> UInt8[np.ndarray, "h w 3"] | None:
  """Decodes colors of 16 bits, of which Pillow 13 keeps the upper 8 only.

  Args:
    data: content of the file.
    image: the opened image.
    where: name of the file, for messages.

  Returns:
    The pixels as they are stored, before they are turned upright; None for any other file, or if OpenCV cannot read it.

  Raises:
    InputError: the file has values that no image has.
  """
  if image.format == "PNG":
    deep = len(data) > 25 and data[24] == 16 and data[25] in _SIXTEEN_BIT_PNG
  else:
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, ()) if image.format == "TIFF" else ()
    deep = len(bits) >= 3 and set(bits) == {16} and getattr(image, "n_frames", 1) == 1
  if not deep:
    return None
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
    return None
  found = as_eight_bits(pixels[..., 2::-1], where, stated_white(image))
  if pixels.shape[2] == 4 and image.mode in ("RGBA", "LA"):
    found = without_hidden(found, pixels[..., 3])
  return found


def without_hidden(pixels: UInt8[np.ndarray, "h w 3"], alpha: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """Returns an image whose transparent pixels are white: editors leave colors there that nobody sees.

  Args:
    pixels: the image.
    alpha: its opacity `[h, w]`, 0 where a pixel is transparent.
  """
  hidden = alpha == 0
  if not hidden.any():
    return pixels
  _say_hidden()
  return np.where(hidden[..., None], np.uint8(_HIDDEN), pixels)


@functools.cache
def _say_hidden() -> None:
  warn_once("transparent pixels (alpha 0) of images are read as white, regardless of the color stored for them")
