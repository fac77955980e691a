"""The samples of a split, read one by one, and the values and colors stored in their label files.

One bad file does not hide the others. Contents of files in, counts of their values out.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from seggpt_jax.data.datasets import Dataset, OutlineSource, open_dataset
from seggpt_jax.data.sources import FileSource, Source, View
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import open_image, remote_or_local
from seggpt_jax.formats.labels import LabelFormat, Value, same_color
from seggpt_jax.formats.layouts import list_items
from seggpt_jax.formats.stored_labels import StoredLabel, count_values, is_gray, pack_colors, read_stored, unpack_color
from seggpt_jax.palette import IGNORE

# A file with more values than the first limit holds noise or a photo. So does a dataset with more than the second.
_MOST_IN_FILE = 1024
_MOST = 100_000
# JPEG at quality 75 changes values of a 0/255 mask by less than this, except for a few pixels at the edges.
NEAR_ENDS = 48
# A value in the file, or None for a color; and the color that it shows, packed into one number, or None for a gray.
Key = tuple[int | None, int | None]
_MOST_NAMES = 32


def file_values(stored: StoredLabel, where: str) -> StoredValues:
  """Counts the values of a label file. Those of a file whose pixels are not its labels are left out.

  Args:
    stored: content of the file.
    where: name of the file.
  """
  formats = collections.Counter([f"{stored.form}{' with loss' if stored.codec else ''}"])
  if stored.fault:
    return StoredValues(formats, 1)
  near = _surroundings(stored.pixels, NEAR_ENDS)
  pixels = pack_colors(stored.pixels) if stored.in_color else stored.pixels
  values, counts = _count(pixels, near.inner, near.between)
  if len(values) > _MOST_IN_FILE:
    kept = np.argpartition(-counts[:, 0], _MOST_IN_FILE)[:_MOST_IN_FILE]
    values, counts = values[kept], counts[kept]
  if stored.in_color:
    keys: list[Key] = [(None, value) for value in values.tolist()]
  elif stored.palette is not None:
    keys = list(zip(values.tolist(), pack_colors(stored.palette[None])[0][values].tolist(), strict=True))
  else:
    keys = [(value, None) for value in values.tolist()]
  by_key = dict(zip(keys, np.insert(counts, 3, 1, axis=1), strict=True))
  examples = {key: where for key in keys if None not in key}
  return StoredValues(formats, 1, int(bool(stored.codec)), by_key, examples, near.steep, near.soft, near.middle)


def _count(pixels: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the values of an image, and the number of their pixels in all of it and in each mask."""
  if pixels.dtype == np.uint8:
    columns = [count_values(pixels), *(count_values(np.ascontiguousarray(pixels[mask])[None]) for mask in masks)]
    values = np.flatnonzero(columns[0])
    return values, np.stack(columns, axis=1)[values]
  values, total = np.unique(pixels, return_counts=True)
  inside = [np.bincount(np.searchsorted(values, pixels[mask]), minlength=len(values)) for mask in masks]
  return values, np.stack([total, *inside], axis=1)


class ValueFacts(NamedTuple):
  """Facts about one stored value."""

  share: float  # share of all pixels
  files: int  # number of files that hold it
  inner: float  # share of its pixels that are away from borders
  between: float  # share of its pixels that are between lower and higher values


@dataclasses.dataclass
class StoredValues:
  """Values stored in label files."""

  formats: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by format and mode
  num_files: int = 0
  num_lossy: int = 0  # files that are compressed with loss
  # For each value, its pixels: all, away from borders, between lower and higher ones; and the files that hold it.
  counts: dict[Key, np.ndarray] = dataclasses.field(default_factory=dict)
  # A file that holds it, for each value of files with color palettes.
  examples: dict[Key, str] = dataclasses.field(default_factory=dict)
  steep: int = 0  # see `Surroundings`, as are the next two
  soft: int = 0
  middle: int = 0

  def add(self, other: StoredValues) -> None:
    """Adds the values of other files."""
    self.formats.update(other.formats)
    for name in ("num_files", "num_lossy", "steep", "soft", "middle"):
      setattr(self, name, getattr(self, name) + getattr(other, name))
    for key, count in other.counts.items():
      self.counts[key] = self.counts[key] + count if key in self.counts else count
    if len(self.counts) > _MOST:
      kept = sorted(self.counts, key=lambda key: -self.counts[key][0])[: _MOST // 2]
      self.counts = {key: self.counts[key] for key in kept}
    self.examples = other.examples | self.examples

  @classmethod
  def total(cls, parts: Iterable[StoredValues]) -> StoredValues:
    """Returns the sum of several."""
    total = cls()
    for part in parts:
      total.add(part)
    return total

  @property
  def colors(self) -> bool:
    """True if the labels have to be read by their colors."""
    colored = any(value is None and not is_gray(color) for value, color in self.counts)
    return colored or self.palette_conflict() is not None or self.shown_background() is not None

  @property
  def num_palettes(self) -> int:
    """Number of files with a palette of colors."""
    return sum(count for form, count in self.formats.items() if form.endswith(" P"))

  def palette_conflict(self) -> tuple[int, int, int] | None:
    """Returns an index with two of its colors if the palettes of files differ, or None."""
    colors: dict[int, int] = {}
    for value, color in self._palette_keys():
      first = colors.setdefault(value, color)
      if not same_color(unpack_color(first), unpack_color(color)):
        return value, first, color
    return None

  def shown_background(self) -> int | None:
    """Returns the palette index that shows black although index 0 has a color and is rarer, or None."""
    shown = dict(self._palette_keys())
    if 0 not in shown or is_gray(shown[0]):
      return None
    black = [value for value, color in shown.items() if color == 0]
    return black[0] if black and self.counts[black[0], 0][0] > self.counts[0, shown[0]][0] else None

  def _palette_keys(self) -> Iterator[tuple[int, int]]:
    return ((value, color) for value, color in self.counts if value is not None and color is not None)

  def facts(self) -> dict[Value, ValueFacts]:
    """Returns the facts about each value or color, most frequent first."""
    colors, counts = self.colors, {}
    for key, count in self.counts.items():
      meant = _meant(key, colors)
      counts[meant] = counts[meant] + count if meant in counts else count
    total = max(sum(int(count[0]) for count in counts.values()), 1)
    ordered = sorted(counts.items(), key=lambda item: -item[1][0])
    return {
      value: ValueFacts(pixels / total, files, inner / max(pixels, 1), between / max(pixels, 1))
      for value, (pixels, inner, between, files) in ((value, count.tolist()) for value, count in ordered)
    }


def _meant(key: Key, colors: bool) -> Value:
  """Returns the value or color of a key; all become colors if the dataset has colors."""
  value, color = key
  if not colors:
    return unpack_color(color)[0] if value is None else value
  if color is not None:
    return unpack_color(color)
  return (value, value, value) if value <= 255 else value


_RADII = (2, 6)  # distances in pixels that count as near, in small and in large images
_SIDE_PER_RADIUS = 150
_MOST_CLASSES = 127


class Surroundings(NamedTuple):
  """Comparison of the pixels of a label with those near them."""

  inner: Bool[np.ndarray, "h w"]  # True where all pixels near are alike
  # True where pixels near are lower and others higher, in one of the channels: typical of values that were made up
  # along borders by smoothing or by resizing with interpolation
  between: Bool[np.ndarray, "h w"]
  steep: int  # number of pixels at a border where some pixel near is lower by 2 or more
  soft: int  # number of those whose direct neighbors are higher than the lowest pixel near: the border is a ramp
  middle: int  # number of pixels with middle brightness that are not on a ramp from dark to bright


def _surroundings(pixels: np.ndarray, near_ends: int) -> Surroundings:
  """Compares each pixel of a label with those near it; up to `near_ends` from 0 or 255 it is dark or bright."""
  if pixels.dtype not in (np.uint8, np.uint16):
    pixels = np.clip(pixels, 0, 65535).astype(np.uint16)
  low_source = np.ascontiguousarray(pixels)
  values = low_source[low_source < IGNORE] if low_source.ndim == 2 else low_source
  # Outlines of 255, the usual value to ignore, are no upper end of a ramp between classes below.
  outlined = low_source.ndim == 2 and values.max(initial=0) < _MOST_CLASSES
  high_source = np.where(low_source == IGNORE, low_source.dtype.type(0), low_source) if outlined else low_source
  radius = int(np.clip(min(pixels.shape[:2]) / _SIDE_PER_RADIUS, *_RADII))
  wide = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
  low, high = cv2.erode(low_source, wide), cv2.dilate(high_source, wide)
  between = (low < low_source) & (low_source < high)
  inner = (low == low_source) & (cv2.dilate(low_source, wide) == low_source)
  if low_source.ndim == 3:
    return Surroundings(inner.all(axis=2), between.any(axis=2), 0, 0, 0)
  beside = cv2.erode(low_source, np.ones((3, 3), np.uint8))
  steep = (beside < low_source) & (low + 1 < low_source) & (high_source == low_source)
  dark, bright = low <= near_ends, high >= 255 - near_ends
  middle = (low_source > near_ends) & (low_source < 255 - near_ends) & ~(dark & bright)
  return Surroundings(inner, between, int(steep.sum()), int((steep & (beside > low)).sum()), int(middle.sum()))


class UnreadableError(InputError):
  """The file of a label is damaged: no label format can read it."""


@dataclasses.dataclass(frozen=True)
class _Noting(LabelFormat):
  """A label format that also records the values stored in the files that it decodes."""

  noted: StoredValues = dataclasses.field(default_factory=StoredValues)

  def decode(self, data: bytes, where: str) -> UInt8[np.ndarray, "h w"]:
    try:
      stored = read_stored(open_image(data, where), where)
    except InputError as error:
      raise UnreadableError(str(error)) from error
    self.noted.add(file_values(stored, where))
    return self.classes(stored, where)


class SampleFiles(View):
  """The samples of a split, with labels in any format.

  Args:
    source: the samples.
    categories: names of classes 1, 2, ...; by default those that the source states.
  """

  def __init__(self, source: Source, categories: Sequence[str] = ()):
    super().__init__(source)
    self._source, self.categories = source, tuple(categories) or self.categories

  def read_label(
    self, index: int, size: tuple[int, int] | None, label_format: LabelFormat, noted: StoredValues
  ) -> UInt8[np.ndarray, "h w"]:
    """Reads the label of a sample.

    Args:
      index: index of the sample.
      size: height and width of its image, if known.
      label_format: format of the label file, if the source does not know it.
      noted: object to which the stored values of its files are added, also when an error follows.

    Raises:
      InputError: the label does not fit the format.
      UnreadableError: the file is damaged.
    """
    if not isinstance(self._source, FileSource):
      return self._source.label(index)
    item = self._source.items[index]
    if not item.label and size is not None:
      return np.zeros(size, np.uint8)  # an image without masks is all background
    # The largest number of classes, so that the audit also sees classes that training would refuse.
    return FileSource([item], IGNORE, _Noting(*dataclasses.astuple(label_format), noted)).label(0)

  @property
  def folders(self) -> tuple[str, ...]:
    """Folders with the images and with the label files; () if the samples are not in folders."""
    items = self._source.items if isinstance(self._source, FileSource) else []
    images = [os.path.dirname(item.image) for item in items]
    labels = [os.path.dirname(item.label) for item in items if isinstance(item.label, str)]
    return tuple(os.path.commonpath(each) for each in (images, labels) if each)

  @property
  def notes(self) -> tuple[str, ...]:
    """Lines for the user on how the files were read."""
    return getattr(self._source, "notes", ())

  def num_boxes(self, index: int) -> int:
    """Returns the number of objects of a sample whose outline is only a rectangle."""
    shapes = self._source.items[index].shapes if isinstance(self._source, OutlineSource) else ()
    return sum(shape.box for shape in shapes)


def open_files(dataset: Dataset, split: str, problems: list[str]) -> SampleFiles:
  """Lists the samples of a split.

  Args:
    dataset: layout and path of the dataset; its number of classes does not matter.
    split: name of the split.
    problems: list to which messages about files that are left out are appended.

  Returns:
    Access to the samples; empty if the split cannot be listed.
  """
  try:
    label_format = LabelFormat("binary") if dataset.kind == "masks" else dataset.label_format
    dataset = dataclasses.replace(dataset, num_classes=IGNORE, label_format=label_format)
    source = open_dataset(dataset, split, problems=problems)
    return SampleFiles(source, dataset.class_names or _mask_classes(dataset, split, source))
  except InputError as error:
    problems.append(str(error))
    return SampleFiles(FileSource([], IGNORE, LabelFormat()))


def _mask_classes(dataset: Dataset, split: str, source: Source) -> list[str]:
  """Returns the names of the classes if masks are in a folder for each class."""
  if dataset.kind != "masks" or not any(mask.class_index > 1 for item in source.items for mask in item.label):
    return []
  labels = remote_or_local(dataset.path) / split / "labels"
  return sorted(each.name for each in labels.iterdir() if each.is_dir() and not each.name.startswith("."))


def guess_class_names(dataset: Dataset, splits: Sequence[str]) -> tuple[str, ...]:
  """Guesses the class names of masks from the words that their file names begin with, such as crack of crack_2.png.

  Args:
    dataset: a dataset of kind masks without class names.
    splits: names of its splits.

  Returns:
    The words, sorted; () if all masks begin with the same word, or with as many words as names of classes cannot be.
  """
  words: collections.Counter[str] = collections.Counter()
  for split in splits:
    try:
      items = list_items(dataset.kind, dataset.path, split, dataset.class_names, [])
    except InputError:
      continue  # `open_files` reports it
    if any(mask.class_index > 1 for item in items for mask in item.label):
      return ()  # there is a folder for each class
    stems = (os.path.splitext(os.path.basename(mask.path))[0] for item in items for mask in item.label)
    words.update(re.sub(r"[\W_\d]+$", "", stem) for stem in stems)
  many = len(words) > min(_MOST_NAMES, words.total() / 2)
  return () if len(words) < 2 or many or "" in words else tuple(sorted(words))
