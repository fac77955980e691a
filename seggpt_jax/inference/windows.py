"""Windows on a picture: which parts of it the network paints, and how what it painted becomes one picture.

In: how a picture of `split x split` tiles is covered. Out: the windows, and the picture put together from their tiles.
All sizes are in pixels of that picture but where patches are named. Pure functions of NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

_Size = tuple[int, int]  # height, width


class Window(NamedTuple):
  """A tile-sized part of a picture that the network paints, or a band of.

  Attributes:
    top: its first row of pixels.
    left: its first column.
    mask: True for the patches that are painted, `[rows, cols]` of a tile.
  """

  top: int
  left: int
  mask: np.ndarray


def tile_windows(split: int, tile: _Size, patch_size: int, overlap: float | int = 0) -> list[Window]:
  """The windows that cover a picture of `split x split` tiles, row by row.

  Args:
    split: tiles along each side.
    tile: height and width of a tile in pixels.
    patch_size: side of a patch in pixels.
    overlap: the share of a tile's side, 0 to below 1, that it has in common with the next, at least; there are as many
      windows more as that takes.
  """
  count = 1 + math.ceil((split - 1) / (1 - overlap) - 1e-9)
  tops, lefts = (np.linspace(0, (split - 1) * side, count).round().astype(int).tolist() for side in tile)
  mask = np.ones((tile[0] // patch_size, tile[1] // patch_size), bool)
  return [Window(top, left, mask) for top in tops for left in lefts]


def seam_windows(split: int, tile: _Size, patch_size: int, width: int) -> tuple[list[Window], list[Window]]:
  """The windows that see both sides of the seams between tiles; each paints only a band along its seam.

  First those across an edge between two tiles: `width` patches on each side of the edge are painted, all along it. Then
  those in the middle of four tiles, where such bands meet: the cross of the two bands. (The square in which they meet
  hides so few patches that a network makes nothing of use of it.) For a split of 2 these are the five windows of the
  original tool, which has no others.

  Args:
    split: tiles along each side, 2 at least.
    tile: height and width of a tile in pixels.
    patch_size: side of a patch in pixels.
    width: patches on each side of a seam, at most half a tile's.

  Returns:
    The windows across edges, those of vertical seams first, and the windows around corners.
  """
  rows, cols = tile[0] // patch_size, tile[1] // patch_size
  # Where a tile has an odd number of patches its middle is none's edge: the seam then lies beside it.
  before = (rows // 2) * patch_size, (cols // 2) * patch_size
  vertical, horizontal = np.zeros((2, rows, cols), bool)
  vertical[:, cols // 2 - width : cols // 2 + width] = True
  horizontal[rows // 2 - width : rows // 2 + width] = True
  starts, seams = range(split), range(1, split)
  edges = [Window(i * tile[0], j * tile[1] - before[1], vertical) for i in starts for j in seams]
  edges += [Window(i * tile[0] - before[0], j * tile[1], horizontal) for i in seams for j in starts]
  corners = [
    Window(i * tile[0] - before[0], j * tile[1] - before[1], vertical | horizontal) for i in seams for j in seams
  ]
  return edges, corners


def blend(
  tiles: UInt8[np.ndarray, "tiles th tw c"], windows: Sequence[Window], size: _Size
) -> UInt8[np.ndarray, "h w c"]:
  """Puts overlapping tiles together: where several have painted, the one whose middle is nearer weighs more.

  Args:
    tiles: what was painted in each window.
    windows: which together cover the picture, a full grid of them row by row.
    size: height and width of the picture.
  """
  weights = []
  for length, starts in ((tiles.shape[1], {w.top for w in windows}), (tiles.shape[2], {w.left for w in windows})):
    # From an edge to where the next tile ends the weight rises in a straight line: two tiles' add up to one.
    common = length - min(np.diff(sorted(starts)), default=length)
    position = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    weights.append(np.minimum(position / max(common, 0.5), 1.0))
  weight = np.multiply.outer(*weights)[..., None].astype(np.float32)
  total, sums = np.zeros((*size, 1), np.float32), np.zeros((*size, tiles.shape[3]), np.float32)
  for window, tile in zip(windows, tiles, strict=True):
    place = np.s_[window.top : window.top + tile.shape[0], window.left : window.left + tile.shape[1]]
    total[place] += weight
    sums[place] += weight * tile
  return np.round(sums / total).astype(np.uint8)


def paste(
  picture: UInt8[np.ndarray, "h w c"], tile: UInt8[np.ndarray, "th tw c"], window: Window, patch_size: int
) -> None:
  """Writes the painted patches of a window into the picture."""
  mask = window.mask.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
  picture[window.top : window.top + len(mask), window.left : window.left + mask.shape[1]][mask] = tile[mask]
