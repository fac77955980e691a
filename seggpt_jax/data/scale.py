"""Images at the scale of the network, the measurement of that scale from the labels, and prompts made of cells.

Images of one camera show objects at one scale, and a network sees small objects only if a patch is not larger than they
are. All images are resampled by one factor, the zoom, and cut into windows. A prompt is one labeled square of
`grid x grid` cells, each a crop around an object of another class, as far as there are cells. This is the spatial
ensemble of SegGPT (arXiv 2304.03284, section 3.3), which puts several examples into the place of one, but with crops in
place of shrunken examples, because small objects would vanish.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.sources import Sample, Source, View
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import classes_in, shrink_labels

_LABELS = 200  # labels that are measured, evenly spaced
_LEAST = 0.05  # the smallest zoom


def fewest_cells(num_classes: int) -> int:
  """Returns the fewest cells along a side with which a prompt shows a number of classes, at least 1."""
  return max(1, math.ceil(math.sqrt(num_classes)))


def _cell_edges(size: int, grid: int) -> list[int]:
  """Returns the first pixel of each cell along a side, and the end of the last one."""
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
  edges = _cell_edges(size, grid)
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


def _crop_object(sample: Sample, class_index: int, size: int) -> Sample:
  """Cuts a square around the largest object of a class; around the middle for class 0."""
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


@dataclasses.dataclass(frozen=True)
class Scale:
  """The number of the network's pixels that a pixel of an image becomes, and what a prompt consists of.

  Attributes:
    zoom: the factor from an image's pixels to the network's; 0 resizes images to squares of the network instead.
    prompt_grid: cells along a side of a prompt; 0 without a zoom, where a prompt is an image.
    split: squares along a side of an image, and of a prompt, without a zoom.
  """

  zoom: float | int = 0
  prompt_grid: int = 0
  split: int = 1

  @property
  def cells(self) -> int:
    """Number of images that make a prompt."""
    return max(self.prompt_grid, 1) ** 2

  def size(self, shape: tuple[int, ...], tile: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Returns the height and width in pixels at which the network is shown an image.

    Args:
      shape: shape of the image, height and width first.
      tile: height and width of the network's square, which are needed without a zoom.
    """
    if self.zoom:
      return max(1, round(shape[0] * self.zoom)), max(1, round(shape[1] * self.zoom))
    return self.split * tile[0], self.split * tile[1]

  def num_windows(self, shape: tuple[int, ...], square: int) -> int:
    """Returns the number of windows of a side of `square` pixels that cover an image without overlap."""
    height, width = self.size(shape)
    return -(-height // square) * -(-width // square)

  def zoomed(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resamples an image by the zoom: averages of areas if it shrinks, else bicubic."""
    height, width = self.size(image.shape)
    if (height, width) == image.shape[:2]:
      return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if self.zoom < 1 else cv2.INTER_CUBIC)

  def zoomed_sample(self, sample: Sample) -> Sample:
    """Resamples a labeled image by the zoom, without losing an object."""
    shape = self.size(sample["label"].shape)
    if shape == sample["label"].shape:
      return sample
    return {**sample, "image": self.zoomed(sample["image"]), "label": shrink_labels(sample["label"], shape)}


def make_prompts(samples: Sequence[Sample], grid: int, size: int) -> list[Sample]:
  """Makes prompts of cells from labeled images: one for each `grid**2` images, in their order.

  Args:
    samples: labeled images at the scale of the network, a multiple of `grid**2`.
    grid: cells along a side.
    size: side of a prompt in pixels.
  """
  cell, shown = -(-size // grid), collections.Counter[int]()
  cells = [_crop_object(sample, next_class(sample["label"], shown), cell) for sample in samples]
  return [assemble(cells[start : start + grid**2], size) for start in range(0, len(cells), grid**2)]


class ZoomedSource(View):
  """The samples of another source, resampled to the scale of the network. Implements `Source`.

  Args:
    source: the samples.
    scale: a scale with a zoom.
  """

  def __init__(self, source: Source, scale: Scale):
    super().__init__(source)
    self.scale = scale

  def __getitem__(self, index: int) -> Sample:
    return self.scale.zoomed_sample(super().__getitem__(index))


@runtime_checkable
class Labels(Protocol):
  """Label maps by number: all that `object_sides` asks of a source of samples."""

  def __len__(self) -> int: ...

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    """Returns the label map of a sample."""
    ...


def object_sides(source: Labels, skip: Callable[[InputError], None] | None = None) -> dict[int, float]:
  """Measures how large the objects of each class are.

  Args:
    source: label maps, of which at most 200 are looked at.
    skip: called with the error of each label that cannot be read; None raises the first one.

  Returns:
    For each class that was found the median side of its objects in pixels: the square root of the area of 8-connected
    pixels of the class, of those with at least 4 pixels.

  Raises:
    InputError: a label cannot be read and `skip` is None, or no label shows any class.
  """
  sides: dict[int, list[float]] = {}
  for index in np.unique(np.linspace(0, len(source) - 1, _LABELS).astype(int)).tolist():
    try:
      label = source.label(index)
    except InputError as error:
      if skip is None:
        raise
      skip(error)
      continue
    for value in classes_in(label):
      stats = cv2.connectedComponentsWithStats(cv2.inRange(label, value, value))[2]
      areas = stats[1:, cv2.CC_STAT_AREA]
      sides.setdefault(value, []).extend(np.sqrt(areas[areas >= min(4, areas.max())]).tolist())
  if not sides:
    raise InputError(f"found no foreground in {_LABELS} labels, expected some to measure its size; set data.zoom")
  return {value: float(np.median(found)) for value, found in sorted(sides.items())}


def measured_zoom(
  sides: dict[int, float], shape: tuple[int, ...], square: int, wanted: int, most_windows: int
) -> float:
  """Chooses the zoom at which the smallest class is as large as wanted, unless that takes too many windows.

  Args:
    sides: median side of each class's objects, from `object_sides`.
    shape: shape of a typical image, height and width first.
    square: side of the network's square in pixels.
    wanted: side in pixels that the objects of the smallest class should have, at least that of a patch.
    most_windows: most windows that an image may take.

  Returns:
    The zoom, three digits: at most 1, because magnified pixels show nothing new, and at least as large as fits a whole
    image into one square.
  """
  whole = square / max(shape[:2])
  zoom = min(1.0, wanted / min(sides.values()))
  while zoom > whole and Scale(zoom).num_windows(shape, square) > most_windows:
    zoom *= 0.95
  # Rounded down: a pixel more than a square would take a second one.
  return math.floor(1000 * max(zoom, min(whole, 1.0), _LEAST) + 1e-6) / 1000
