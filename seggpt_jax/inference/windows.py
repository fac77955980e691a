"""Windows: the parts of an image that the network predicts one by one, and the image put together from them.

In: number of tiles, overlap, and width of stitched seams. Out: windows that cover the image, and the image put together
from their predicted tiles. Sizes are in pixels of the resized image, unless patches are named. Pure functions of NumPy
arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.scale import window_starts

_Size = tuple[int, int]  # height, width


class Window(NamedTuple):
  """A part of an image, of a tile's size, that the network predicts.

  Attributes:
    top: first row of pixels.
    left: first column of pixels.
    mask: True for the patches that are predicted, `[rows, cols]` of a tile.
  """

  top: int
  left: int
  mask: np.ndarray


def tile_windows(split: int, tile: _Size, patch_size: int, overlap: float | int = 0) -> list[Window]:
  """Returns the windows that cover an image of `split x split` tiles, row by row.

  Args:
    split: number of tiles along each side.
    tile: height and width of a tile in pixels.
    patch_size: side of a patch in pixels.
    overlap: smallest share of a tile's side, at least 0 and below 1, by which neighboring windows overlap. It adds
      windows.
  """
  return image_windows((split * tile[0], split * tile[1]), tile, patch_size, overlap)


def image_windows(size: _Size, tile: _Size, patch_size: int, overlap: float | int = 0) -> list[Window]:
  """Returns the windows that cover an image, row by row, evenly spaced.

  Args:
    size: height and width of the image in pixels, at least those of a tile.
    tile: height and width of a tile in pixels.
    patch_size: side of a patch in pixels.
    overlap: smallest share of a tile's side, at least 0 and below 1, by which neighboring windows overlap.
  """
  tops, lefts = (window_starts(*sides, overlap) for sides in zip(size, tile, strict=True))
  mask = np.ones((tile[0] // patch_size, tile[1] // patch_size), bool)
  return [Window(top, left, mask) for top in tops for left in lefts]


def seam_windows(split: int, tile: _Size, patch_size: int, width: int) -> tuple[list[Window], list[Window]]:
  """Returns windows that see both sides of the seams between tiles. Only a band along the seam is predicted in each.

  Windows across an edge between two tiles come first: `width` patches on each side of the edge are predicted, along the
  whole edge. Windows in the middle of four tiles follow, where bands meet: the cross of the two bands is predicted. The
  square in which the bands meet would hide too few patches for a useful prediction. For a split of 2, these are the
  five windows of the original tool, which has no others.

  Args:
    split: number of tiles along each side, at least 2.
    tile: height and width of a tile in pixels.
    patch_size: side of a patch in pixels.
    width: number of patches on each side of a seam, at most half of a tile's.

  Returns:
    The windows across edges (vertical seams first), and the windows around corners.
  """
  rows, cols = tile[0] // patch_size, tile[1] // patch_size
  # With an odd number of patches, the middle of a tile is inside a patch; the seam is then at the edge before it.
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
  """Puts overlapping tiles together. Where tiles overlap, each weighs more toward its middle.

  Args:
    tiles: predicted colors of each window.
    windows: a full grid of windows, row by row, that covers the image.
    size: height and width of the image.
  """
  weights = []
  for length, starts in ((tiles.shape[1], {w.top for w in windows}), (tiles.shape[2], {w.left for w in windows})):
    # Weights rise linearly across the overlap, so that those of two tiles add up to one.
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
  image: UInt8[np.ndarray, "h w c"], tile: UInt8[np.ndarray, "th tw c"], window: Window, patch_size: int
) -> None:
  """Writes the predicted patches of a window into an image, in place.

  Args:
    image: the image.
    tile: predicted colors of the window.
    window: place and mask of the window.
    patch_size: side of a patch in pixels.
  """
  mask = window.mask.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
  image[window.top : window.top + len(mask), window.left : window.left + mask.shape[1]][mask] = tile[mask]
