"""Cutting pictures into the squares the network sees, and putting what it painted together again.

In: images, label maps or colors of any size, `[H, W]` or `[H, W, 3]`. Out: `split x split` tiles of the canvas
square's size, row by row, or the whole of such tiles. Pure functions of NumPy arrays.

The original tool resizes to 1024, cuts, and resizes each tile again; here pictures go straight to `split` times the
tile's size, which gives the same field of view and samples them once.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image

_Size = tuple[int, int]  # height, width


def resize_image(image: UInt8[np.ndarray, "h w 3"], size: _Size) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Bicubic with antialiasing, as training resizes images."""
  return _resize(image, size, Image.Resampling.BICUBIC)


def resize_colors(colors: UInt8[np.ndarray, "h w 3"], size: _Size) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Bilinear: between two painted colors there are only their mixtures, no overshoot that looks like a third."""
  return _resize(colors, size, Image.Resampling.BILINEAR)


def resize_labels(labels: Integer[np.ndarray, "h w"], size: _Size) -> Integer[np.ndarray, "h2 w2"]:
  """Nearest neighbor, for integers of any width."""
  rows, cols = (
    ((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for new, old in zip(size, labels.shape, strict=True)
  )
  return labels[rows[:, None], cols[None, :]]


def _resize(pixels: np.ndarray, size: _Size, resampling: Image.Resampling) -> np.ndarray:
  if pixels.shape[:2] == size:
    return pixels
  height, width = size
  return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), resampling))


def cut(pixels: Shaped[np.ndarray, "h w *c"], split: int) -> Shaped[np.ndarray, "tiles th tw *c"]:
  """Cuts into `split x split` equal tiles, row by row.

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
  """Inverse of `cut`."""
  count, height, width, *channels = tiles.shape
  split = round(count**0.5)
  rows = tiles.reshape(split, split, height, width, *channels)
  return np.swapaxes(rows, 1, 2).reshape(split * height, split * width, *channels)


def foreground_tiles(labels: Integer[np.ndarray, "tiles th tw"]) -> Bool[np.ndarray, "tiles"]:
  """Which tiles of prompts to keep when those without foreground are not wanted: True for at least one.

  Those with the most foreground come first. To be compiled for few numbers of prompts, a network is given 1, 2, 4, ...
  of them: the number of tiles with foreground, rounded up as long as there are others to fill up with.
  """
  share = np.mean(labels > 0, axis=(1, 2))
  count = min(1 << (max(int(np.sum(share > 0)), 1) - 1).bit_length(), len(labels))
  kept = np.zeros(len(labels), bool)
  kept[np.argsort(-share, kind="stable")[:count]] = True
  return kept


def image_tiles(image: UInt8[np.ndarray, "h w 3"], split: int, tile: _Size) -> UInt8[np.ndarray, "tiles th tw 3"]:
  """Resizes an image to `split` tiles of the given size along each side and cuts it."""
  return cut(resize_image(image, (split * tile[0], split * tile[1])), split)


def label_tiles(labels: Integer[np.ndarray, "h w"], split: int, tile: _Size) -> Integer[np.ndarray, "tiles th tw"]:
  """Likewise for a label map."""
  return cut(resize_labels(labels, (split * tile[0], split * tile[1])), split)


def pixel_blocks(pixels: Shaped[np.ndarray, "n *c"], size: int, fill: int) -> Shaped[np.ndarray, "blocks size *c"]:
  """Cuts a row of pixels into equal blocks, the last one filled up.

  Compiled functions that work pixel by pixel take these, so that they are compiled once and not for each image size.
  """
  count = -(-len(pixels) // size)
  padded = np.full((count * size, *pixels.shape[1:]), fill, pixels.dtype)
  padded[: len(pixels)] = pixels
  return padded.reshape(count, size, *pixels.shape[1:])
