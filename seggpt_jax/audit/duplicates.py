"""Near-duplicate images in a dataset: small prints of images in, pairs that show the same out.

The print of an image is a difference hash of 16 x 16 bits and a thumbnail of 48 x 48 grays. All hashes are compared
with all others, since each takes only four words; thumbnails are compared only where hashes are near. The hash alone
cannot tell neighboring slices of a volume apart: slices 2 mm apart differ by 0 to 5 bits, as much as an image differs
from a resized copy of it. The fine shapes of the thumbnails tell the two cases apart (the tests cover both).

Mirrored and rotated copies are not found.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt64

_BITS = 16
_SIDE = 48
_MARGIN = 0.2  # standard deviations, so that noise does not set bits where the image is flat
_NEAR_BITS = 16
# One minus the correlation of the fine shapes of two thumbnails. JPEG at quality 60, half the size, or brightness
# +-10 % give at most 0.020, all three at once 0.023. Neighboring slices give at least 0.038.
_SAME = 0.03
_FLAT = 0.25  # gray levels; thumbnails with less fine shape are not compared
_ROWS, _COLUMNS = 256, 8192
_MOST = 10_000


class Print(NamedTuple):
  """Print of an image: the bits of its hash, and its thumbnail."""

  bits: UInt64[np.ndarray, "4"]
  thumbnail: UInt8[np.ndarray, "48 48"]


class NearDuplicate(NamedTuple):
  """Two images that show the same: `difference` is 0 for equal images, `bits` counts differing bits of 256."""

  first: int
  second: int
  difference: float
  bits: int


def print_image(image: UInt8[np.ndarray, "h w 3"]) -> Print:
  """Computes the print of an image."""
  gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(gray.astype(np.float32), (_BITS + 1, _BITS), interpolation=cv2.INTER_AREA)
  brighter = np.diff(small, axis=1) > _MARGIN * max(float(small.std()), 1e-3)
  thumbnail = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  return Print(np.packbits(brighter).view(np.uint64), thumbnail)


def near_duplicates(first: list[Print], second: list[Print]) -> tuple[list[NearDuplicate], int]:
  """Finds pairs of images, one of each list, that show the same.

  Args:
    first: N prints.
    second: M prints.

  Returns:
    At most 10,000 pairs, most alike first, and the number of images of the second list that have a partner. Memory
    grows with N + M, not with N x M.
  """
  if not first or not second:
    return [], 0
  (hashes, thumbnails), (others, other_thumbnails) = (
    map(np.stack, zip(*((each.bits, each.thumbnail) for each in prints), strict=True)) for prints in (first, second)
  )
  found: list[NearDuplicate] = []
  copied = np.zeros(len(second), bool)
  for start in range(0, len(others), _ROWS):
    for column in range(0, len(hashes), _COLUMNS):
      own, theirs = others[start : start + _ROWS], hashes[column : column + _COLUMNS]
      # Counts the differing bits of all pairs.
      bits = sum(np.bitwise_count(own[:, None, w] ^ theirs[None, :, w]).astype(np.uint16) for w in range(4))
      rows, columns = np.nonzero(bits <= _NEAR_BITS)
      for part in range(0, len(rows), 4096):
        row, col = rows[part : part + 4096] + start, columns[part : part + 4096] + column
        (a, flat_a), (b, flat_b) = _fine(other_thumbnails[row]), _fine(thumbnails[col])
        # One minus the correlation of the fine shapes; 1 where an image has none.
        difference = np.where(flat_a | flat_b, 1, 1 - np.sum(a * b, axis=1)).astype(np.float32)
        same = np.flatnonzero(difference <= _SAME)
        copied[row[same]] = True
        found += [
          NearDuplicate(int(col[i]), int(row[i]), float(difference[i]), int(bits[row[i] - start, col[i] - column]))
          for i in same
        ]
      if len(found) > 2 * _MOST:
        found = sorted(found, key=lambda pair: pair.difference)[:_MOST]
  return sorted(found, key=lambda pair: pair.difference)[:_MOST], int(copied.sum())


def _fine(thumbnails: UInt8[np.ndarray, "n 48 48"]) -> tuple[Float32[np.ndarray, "n 2304"], Bool[np.ndarray, "n"]]:
  """Subtracts a wide blur and normalizes to unit length; also returns where almost nothing remains."""
  values = thumbnails.astype(np.float32)
  fine = np.stack([each - cv2.GaussianBlur(each, (0, 0), 2) for each in values]) if len(values) else values
  fine = fine.reshape(len(fine), -1)
  fine -= fine.mean(axis=1, keepdims=True)
  length = np.linalg.norm(fine, axis=1)
  return fine / np.maximum(length, 1e-6)[:, None], length < _FLAT * _SIDE
