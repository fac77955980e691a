"""Resizing images and labels, and cutting them into the tiles and windows that the network sees.

In: images, label maps or colors of any size, `[H, W]` or `[H, W, 3]`. Out: the same at another size, as `split x split`
tiles row by row, or tiles put together again. Pure functions of NumPy arrays.

The original tool resizes to 1024, cuts, and resizes each tile again. Here images are resized once, to `split` times the
tile's size, which gives the same field of view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image

from seggpt_jax.data.scale import window_starts
from seggpt_jax.formats.labels import restore_objects

_Size = tuple[int, int]  # height, width


def resize_image(image: UInt8[np.ndarray, "h w 3"], size: _Size) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resizes an image bicubically with antialiasing, as training does."""
  return _resize(image, size, Image.Resampling.BICUBIC)


def resize_colors(colors: UInt8[np.ndarray, "h w 3"], size: _Size) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resizes predicted colors bilinearly: bicubic overshoot between two colors could look like a third."""
  return _resize(colors, size, Image.Resampling.BILINEAR)


def resize_labels(labels: Integer[np.ndarray, "h w"], size: _Size) -> Integer[np.ndarray, "h2 w2"]:
  """Resizes labels to the nearest neighbor, for integers of any width, without losing a class.

  The objects of a class of which nothing would be left get the pixels that they cover most.
  """
  if labels.shape == size:
    return labels
  sides = zip(size, labels.shape, strict=True)
  rows, cols = (((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for new, old in sides)
  resized = labels[rows[:, None], cols[None, :]]
  before, after = (np.bincount(each.ravel(), minlength=2) for each in (labels, resized))
  lost = [index for index in np.flatnonzero(before).tolist() if index and (index >= len(after) or not after[index])]
  # The smallest class comes last: where two classes are lost at one place, it covers the other.
  for index in sorted(lost, key=lambda index: -before[index]):
    restore_objects((labels == index).astype(np.uint8), index, resized)
  return resized


def small_classes(labels: Integer[np.ndarray, "h w"], size: _Size) -> dict[int, float]:
  """Returns the classes that resizing leaves less than 2 x 2 pixels of, and their areas in pixels of the new size."""
  if labels.shape == size:
    return {}
  areas = np.bincount(labels.ravel()) * (size[0] * size[1] / labels.size)
  return {index: float(area) for index, area in enumerate(areas) if index and 0 < area < 4}


def _resize(pixels: np.ndarray, size: _Size, resampling: Image.Resampling) -> np.ndarray:
  if pixels.shape[:2] == size:
    return pixels
  height, width = size
  return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), resampling))


def cut(pixels: Shaped[np.ndarray, "h w *c"], split: int) -> Shaped[np.ndarray, "tiles th tw *c"]:
  """Cuts an array into `split x split` equal tiles, row by row.

  Args:
    pixels: `[H, W]` or `[H, W, C]`, both sides multiples of `split`.
    split: tiles along each side.

  Returns:
    `[split**2, H / split, W / split, ...]`.
  """
  height, width, *channels = pixels.shape
  rows = pixels.reshape(split, height // split, split, width // split, *channels)
  return np.swapaxes(rows, 1, 2).reshape(split * split, height // split, width // split, *channels)


def join(tiles: Shaped[np.ndarray, "tiles th tw *c"]) -> Shaped[np.ndarray, "h w *c"]:
  """Puts tiles from `cut` together again."""
  count, height, width, *channels = tiles.shape
  split = round(count**0.5)
  rows = tiles.reshape(split, split, height, width, *channels)
  return np.swapaxes(rows, 1, 2).reshape(split * height, split * width, *channels)


def foreground_tiles(labels: Integer[np.ndarray, "tiles th tw"]) -> Bool[np.ndarray, "tiles"]:
  """Chooses the prompt tiles to keep when tiles without foreground are left out. Keeps at least one.

  The number of tiles with foreground is rounded up to a power of two, as far as there are tiles, so that the network is
  compiled for few numbers of prompts. The tiles with the most foreground are kept.
  """
  share = np.mean(labels > 0, axis=(1, 2))
  count = min(1 << (max(int(np.sum(share > 0)), 1) - 1).bit_length(), len(labels))
  kept = np.zeros(len(labels), bool)
  kept[np.argsort(-share, kind="stable")[:count]] = True
  return kept


class Window(NamedTuple):
  """A part of an image, of a tile's size, that the network predicts."""

  top: int  # first row of pixels
  left: int  # first column of pixels
  mask: np.ndarray  # True for the patches that are predicted, `[rows, cols]` of a tile


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
  """Writes the predicted patches of a window into an image, in place."""
  mask = window.mask.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
  image[window.top : window.top + len(mask), window.left : window.left + mask.shape[1]][mask] = tile[mask]
