"""Prompts made of cells: crops around labeled objects, side by side in one square of the network.

In: labeled images at the scale of the network. Out: one labeled square of `grid x grid` cells, each around an object of
another class, as far as there are cells. This is the spatial ensemble of SegGPT (arXiv 2304.03284, section 3.3), which
puts several examples into the place of one, but with crops in place of shrunken examples, because small objects would
vanish. A single square shows every class at the scale of the query.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.sources import Sample
from seggpt_jax.formats.labels import classes_in, shrink_labels


def fewest_cells(num_classes: int) -> int:
  """Returns the fewest cells along a side with which a prompt shows a number of classes, at least 1."""
  return max(1, math.ceil(math.sqrt(num_classes)))


def cell_edges(size: int, grid: int) -> list[int]:
  """Returns the first pixel of each cell along a side, and the end of the last one.

  Args:
    size: side of the square in pixels.
    grid: number of cells along the side.
  """
  return np.linspace(0, size, grid + 1).round().astype(int).tolist()


def assemble(cells: Sequence[Sample], size: int) -> Sample:
  """Puts cells side by side, row by row.

  Args:
    cells: square samples, n x n of them, each at least as large as its cell.
    size: side of the result in pixels.

  Returns:
    The first sample with `image` uint8 [size, size, 3] and `label` uint8 [size, size].
  """
  grid = round(len(cells) ** 0.5)
  edges = cell_edges(size, grid)
  image, label = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
  for place, cell in enumerate(cells):
    (top, bottom), (left, right) = (edges[i : i + 2] for i in divmod(place, grid))
    window = np.s_[: bottom - top, : right - left]
    image[top:bottom, left:right], label[top:bottom, left:right] = cell["image"][window], cell["label"][window]
  return {**cells[0], "image": image, "label": label}


def next_class(label: UInt8[np.ndarray, "h w"], shown: collections.Counter[int]) -> int:
  """Chooses the class of a label map that cells have shown least, and counts it; 0 if the map shows no class.

  Args:
    label: label map to cut the next cell from.
    shown: number of cells that show each class.
  """
  classes = classes_in(label)
  if not classes:
    return 0
  chosen = min(classes, key=lambda index: shown[index])
  shown[chosen] += 1
  return chosen


def crop_object(sample: Sample, class_index: int, size: int) -> Sample:
  """Cuts a square around the largest object of a class; around the middle for class 0.

  Args:
    sample: labeled image of any size. If it is smaller than the square, it is mirrored at its borders.
    class_index: the class.
    size: side of the square in pixels.
  """
  label = sample["label"]
  row, col = (side // 2 for side in label.shape)
  if class_index:
    count, objects, stats, _ = cv2.connectedComponentsWithStats(cv2.inRange(label, class_index, class_index))
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    rows, cols = np.nonzero(objects == largest)
    # The middle pixel of the object itself: the center of a bent one may lie outside it.
    middle = np.argmin((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2)
    row, col = int(rows[middle]), int(cols[middle])
  image = sample["image"]
  top, left = (max(0, min(place - size // 2, side - size)) for place, side in zip((row, col), label.shape, strict=True))
  window = np.s_[top : top + size, left : left + size]
  return padded({**sample, "image": image[window], "label": label[window]}, size)


def padded(sample: Sample, size: int) -> Sample:
  """Returns a sample whose sides have at least `size` pixels, mirrored at its lower and right borders."""
  return {**sample, "image": padded_image(sample["image"], size), "label": padded_image(sample["label"], size)}


def padded_image(image: UInt8[np.ndarray, "h w *c"], size: int) -> UInt8[np.ndarray, "h2 w2 *c"]:
  """Returns an image or label map whose sides have at least `size` pixels, mirrored at its lower and right borders."""
  rows, cols = (max(size - side, 0) for side in image.shape[:2])
  return cv2.copyMakeBorder(image, 0, rows, 0, cols, cv2.BORDER_REFLECT_101) if rows or cols else image


def window_count(length: int, size: int, overlap: float | int = 0) -> int:
  """Returns the number of evenly spaced windows that cover one side of an image; see `window_starts`."""
  return 1 + math.ceil((length / size - 1) / (1 - overlap) - 1e-9)


def window_starts(length: int, size: int, overlap: float | int = 0) -> list[int]:
  """Returns the first pixels of evenly spaced windows that cover one side of an image.

  Args:
    length: side of the image in pixels, at least `size`.
    size: side of a window in pixels.
    overlap: smallest share of a window's side, at least 0 and below 1, by which neighbors overlap.
  """
  return np.linspace(0, length - size, window_count(length, size, overlap)).round().astype(int).tolist()


def zoomed_shape(shape: tuple[int, ...], zoom: float | int) -> tuple[int, int]:
  """Returns the height and width in pixels of an image at the scale of the network.

  Args:
    shape: shape of the image, height and width first.
    zoom: factor from the image's pixels to the network's.
  """
  return max(1, round(shape[0] * zoom)), max(1, round(shape[1] * zoom))


def zoomed(sample: Sample, zoom: float | int) -> Sample:
  """Resamples a labeled image to the scale of the network, without losing an object.

  Args:
    sample: labeled image.
    zoom: factor from the image's pixels to the network's.
  """
  shape = zoomed_shape(sample["label"].shape, zoom)
  if shape == sample["label"].shape:
    return sample
  return {**sample, "image": zoomed_image(sample["image"], zoom), "label": shrink_labels(sample["label"], shape)}


def zoomed_image(image: UInt8[np.ndarray, "h w 3"], zoom: float | int) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resamples an image to the scale of the network: averages of areas if it shrinks, else bicubic.

  Args:
    image: the image.
    zoom: factor from the image's pixels to the network's.
  """
  height, width = zoomed_shape(image.shape, zoom)
  if (height, width) == image.shape[:2]:
    return image
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)


def make_prompts(samples: Sequence[Sample], grid: int, size: int) -> list[Sample]:
  """Makes prompts of cells from labeled images: one for each `grid**2` images, in their order.

  Args:
    samples: labeled images at the scale of the network, a multiple of `grid**2`.
    grid: cells along a side.
    size: side of a prompt in pixels.
  """
  cell, shown = -(-size // grid), collections.Counter[int]()
  cells = [crop_object(sample, next_class(sample["label"], shown), cell) for sample in samples]
  return [assemble(cells[start : start + grid**2], size) for start in range(0, len(cells), grid**2)]
