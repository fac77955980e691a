"""Resizing images and labels, and cutting them into the tiles that the network sees.

In: images, label maps or colors of any size, `[H, W]` or `[H, W, 3]`. Out: the same at another size, as `split x split`
tiles row by row, or tiles put together again. Pure functions of NumPy arrays.

The original tool resizes to 1024, cuts, and resizes each tile again. Here images are resized once, to `split` times the
tile's size, which gives the same field of view.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image

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

  Args:
    labels: class indices of at least 0.
    size: height and width of the result.
  """
  if labels.shape == size:
    return labels
  resized = _nearest(labels, size)
  before, after = (np.bincount(each.ravel(), minlength=2) for each in (labels, resized))
  lost = [index for index in np.flatnonzero(before).tolist() if index and (index >= len(after) or not after[index])]
  # The smallest class comes last: where two classes are lost at one place, it covers the other.
  for index in sorted(lost, key=lambda index: -before[index]):
    restore_objects((labels == index).astype(np.uint8), index, resized)
  return resized


def small_classes(labels: Integer[np.ndarray, "h w"], size: _Size) -> dict[int, float]:
  """Returns the classes that resizing leaves less than 2 x 2 pixels of, and their areas in pixels of the new size.

  Args:
    labels: class indices of at least 0.
    size: height and width of the new size.
  """
  if labels.shape == size:
    return {}
  areas = np.bincount(labels.ravel()) * (size[0] * size[1] / labels.size)
  return {index: float(area) for index, area in enumerate(areas) if index and 0 < area < 4}


def _nearest(labels: np.ndarray, size: _Size) -> np.ndarray:
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

  Args:
    labels: labels of all tiles of all prompts.

  Returns:
    True for tiles to keep.
  """
  share = np.mean(labels > 0, axis=(1, 2))
  count = min(1 << (max(int(np.sum(share > 0)), 1) - 1).bit_length(), len(labels))
  kept = np.zeros(len(labels), bool)
  kept[np.argsort(-share, kind="stable")[:count]] = True
  return kept


def pixel_blocks(pixels: Shaped[np.ndarray, "n *c"], size: int, fill: int) -> list[Shaped[np.ndarray, "b *c"]]:
  """Cuts a row of pixels into blocks of equal size. All but the last are views.

  Compiled functions that work pixel by pixel take blocks, so that they are not compiled for each image size.

  Args:
    pixels: the pixels.
    size: number of pixels in a block.
    fill: value for the rest of the last block.
  """
  blocks = [pixels[start : start + size] for start in range(0, len(pixels), size)]
  if blocks:
    last = np.full((size, *pixels.shape[1:]), fill, pixels.dtype)
    last[: len(blocks[-1])] = blocks[-1]
    blocks[-1] = last
  return blocks
