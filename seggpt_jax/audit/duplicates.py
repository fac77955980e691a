"""Images that are in a dataset twice: small prints of images in, pairs that show the same out.

An image is printed as a difference hash of 16 x 16 bits and a thumbnail of 48 x 48 grays. Hashes are compared with one
another, all with all, for they cost four words each; thumbnails only where the hashes are near. The hash alone would
call neighbors in a volume of slices the same: slices 2 mm apart differ by 0 to 5 bits, as much as an image differs
from itself resized. What remains of the thumbnails without their coarse shapes tells the two apart (tests have both).

A mirrored or turned copy is not found.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt64

_BITS = 16
_SIDE = 48
_MARGIN = 0.2  # standard deviations: in flat parts, noise alone must not set bits
_NEAR_BITS = 16
# One minus the correlation of two thumbnails' fine shapes. JPEG at quality 60, half the size, brightness +-10 %: 0.020
# at most, 0.023 for all at once; neighboring slices: 0.038 at least.
_SAME = 0.03
_FLAT = 0.25  # gray levels; thumbnails of less fine shape than that are not compared
_ROWS, _COLUMNS = 256, 8192
_MOST = 10_000


class Print(NamedTuple):
  """What is kept of an image: bits of its hash, and its thumbnail."""

  bits: UInt64[np.ndarray, "4"]
  thumbnail: UInt8[np.ndarray, "48 48"]


class NearDuplicate(NamedTuple):
  """Two images that show the same; `difference` is 0 for equal ones, `bits` the number of differing bits of 256."""

  first: int
  second: int
  difference: float
  bits: int


def print_image(image: UInt8[np.ndarray, "h w 3"]) -> Print:
  """The print of an image of any size."""
  gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(gray.astype(np.float32), (_BITS + 1, _BITS), interpolation=cv2.INTER_AREA)
  brighter = np.diff(small, axis=1) > _MARGIN * max(float(small.std()), 1e-3)
  thumbnail = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  return Print(np.packbits(brighter).view(np.uint64), thumbnail)


def near_duplicates(first: list[Print], second: list[Print]) -> tuple[list[NearDuplicate], int]:
  """Pairs of one image of each list that show the same, the most alike first.

  Args:
    first: N prints.
    second: M prints.

  Returns:
    The pairs, at most 10,000, and the number of images of the second list that have one; memory is that of blocks, not
    of N x M.
  """
  if not first or not second:
    return [], 0
  hashes, thumbnails = _stacked(first)
  others, other_thumbnails = _stacked(second)
  found: list[NearDuplicate] = []
  copied = np.zeros(len(second), bool)
  for start in range(0, len(others), _ROWS):
    for column in range(0, len(hashes), _COLUMNS):
      bits = _distances(others[start : start + _ROWS], hashes[column : column + _COLUMNS])
      rows, columns = np.nonzero(bits <= _NEAR_BITS)
      for part in range(0, len(rows), 4096):
        row, col = rows[part : part + 4096] + start, columns[part : part + 4096] + column
        difference = _differences(other_thumbnails[row], thumbnails[col])
        same = np.flatnonzero(difference <= _SAME)
        copied[row[same]] = True
        found += [
          NearDuplicate(int(col[i]), int(row[i]), float(difference[i]), int(bits[row[i] - start, col[i] - column]))
          for i in same
        ]
      if len(found) > 2 * _MOST:
        found = sorted(found, key=lambda pair: pair.difference)[:_MOST]
  return sorted(found, key=lambda pair: pair.difference)[:_MOST], int(copied.sum())


def _stacked(prints: list[Print]) -> tuple[UInt64[np.ndarray, "n 4"], UInt8[np.ndarray, "n 48 48"]]:
  return np.stack([each.bits for each in prints]), np.stack([each.thumbnail for each in prints])


def _distances(rows: UInt64[np.ndarray, "m 4"], columns: UInt64[np.ndarray, "n 4"]) -> np.ndarray:
  """Number of differing bits of all with all."""
  return sum(np.bitwise_count(rows[:, None, w] ^ columns[None, :, w]).astype(np.uint16) for w in range(4))


def _differences(first: UInt8[np.ndarray, "n 48 48"], second: UInt8[np.ndarray, "n 48 48"]) -> Float32[np.ndarray, "n"]:
  """One minus the correlation of fine shapes; 1 where an image has none."""
  (a, flat_a), (b, flat_b) = _fine(first), _fine(second)
  return np.where(flat_a | flat_b, 1, 1 - np.sum(a * b, axis=1)).astype(np.float32)


def _fine(
  thumbnails: UInt8[np.ndarray, "n 48 48"],
) -> tuple[Float32[np.ndarray, "n 2304"], Bool[np.ndarray, "n"]]:
  """What a wide blur takes away, at unit length, and whether that is next to nothing."""
  values = thumbnails.astype(np.float32)
  fine = np.stack([each - cv2.GaussianBlur(each, (0, 0), 2) for each in values]) if len(values) else values
  fine = fine.reshape(len(fine), -1)
  fine -= fine.mean(axis=1, keepdims=True)
  length = np.linalg.norm(fine, axis=1)
  return fine / np.maximum(length, 1e-6)[:, None], length < _FLAT * _SIDE
