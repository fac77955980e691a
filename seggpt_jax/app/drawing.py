"""Small pictures of images with their labels, and objects cut out of their background."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.sessions import Session
from seggpt_jax.errors import InputError
from seggpt_jax.inference.pictures import encode

_THUMBNAIL = 160  # pixels of the longer side
_CUT_SIDE, _CUT_ROUNDS = 480, 4  # pixels of the longer side in which an object is cut out, and rounds of GrabCut


def thumbnail(session: Session, key: str) -> bytes:
  """Returns a JPEG file of an image with its label or answer over it."""
  image, result = session.pixels(key), session.result(key)
  scale = min(1.0, _THUMBNAIL / max(image.shape[:2]))
  size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  if result is not None:
    labels = cv2.resize(result.labels, size, interpolation=cv2.INTER_NEAREST)
    colors = session.palette(len(result.palette))[labels]
    small = np.where((labels > 0)[..., None], (0.45 * small + 0.55 * colors).astype(np.uint8), small)
  return encode(small, "jpeg", quality=85)


def cut_out(session: Session, key: str, box: Sequence[int], seed: int = 0) -> UInt8[np.ndarray, "_ _"]:
  """Cuts an object out of its background with GrabCut.

  Args:
    session: the session.
    key: the image.
    box: left, top, width and height of a box around the object.
    seed: radius of a disk at the center of the box that is all of the object; 0 without one.

  Returns:
    For each pixel of the box 1 inside the object, else 0.

  Raises:
    InputError: the box is empty or not inside the image, or has no background around it.
  """
  image, (left, top, width, height) = session.pixels(key), box
  if not (0 < width <= image.shape[1] - left and 0 < height <= image.shape[0] - top):
    raise InputError(f"box: found {width} x {height} pixels at {left}, {top}, expected a box inside the image")
  # What is around the box shows the background.
  x0, y0 = max(left - width // 2 - 2, 0), max(top - height // 2 - 2, 0)
  around = image[y0 : top + height + height // 2 + 2, x0 : left + width + width // 2 + 2]
  scale = min(1.0, _CUT_SIDE / max(around.shape[:2]))
  small = cv2.resize(around, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
  guess = np.full(around.shape[:2], cv2.GC_BGD, np.uint8)
  inside = guess[top - y0 : top - y0 + height, left - x0 : left - x0 + width]
  inside[:] = cv2.GC_PR_BGD if seed else cv2.GC_PR_FGD
  if seed:
    center = left - x0 + width // 2, top - y0 + height // 2
    cv2.circle(guess, center, max(min(width, height) // 4, seed), cv2.GC_PR_FGD, -1)
    cv2.circle(guess, center, seed, cv2.GC_FGD, -1)
  guess = cv2.resize(guess, small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
  if (guess == cv2.GC_BGD).sum() < 8:
    raise InputError("box: found all of the image, expected a box with background around it")
  cv2.setRNGSeed(0)
  models = np.zeros((2, 1, 65))
  cv2.grabCut(small, guess, None, *models, _CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
  found = cv2.resize(guess & 1, around.shape[1::-1], interpolation=cv2.INTER_NEAREST)
  return found[top - y0 : top - y0 + height, left - x0 : left - x0 + width]
