"""Values and colors stored in label files, and the label format that fits them.

In: label files. Out: counts of their values, and a guessed `LabelFormat` with the reason for it.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from seggpt_jax.audit.regions import count_pixels
from seggpt_jax.data.images import load_upright, open_image
from seggpt_jax.data.labels import LOSSY_FORMATS, LabelFormat, Value, pack_colors, unpack_color
from seggpt_jax.errors import InputError
from seggpt_jax.palette import IGNORE

# A file with more values than the first limit holds noise or a photo. So does a dataset with more than the second.
_MOST_IN_FILE = 1024
_MOST = 100_000
# JPEG at quality 75 changes values of a 0/255 mask by less than this, except for a few pixels at the edges.
_NEAR = 48
_MOST_TABLE = 64


class FileValues(NamedTuple):
  """Values stored in one label file; a color is packed into one number, red first."""

  file_format: str
  mode: str
  in_color: bool
  values: np.ndarray
  pixels: np.ndarray


def file_values(data: bytes, where: str) -> FileValues:
  """Reads the values stored in a label file; of a palette file the indices, not the colors.

  Raises:
    InputError: the file is unreadable, or holds floating-point values.
  """
  image = open_image(data, where)
  file_format, mode = image.format or "", image.mode
  image = load_upright(image, where)
  if mode in ("1", "L", "P"):
    counts = count_pixels(np.asarray(image).astype(np.uint8, copy=False))
    values = np.flatnonzero(counts)
    return FileValues(file_format, mode, False, values, counts[values])
  if mode == "F":
    raise InputError(f"{where}: found floating-point values, expected whole numbers or colors")
  if mode.startswith("I"):
    values, counts = np.unique(np.asarray(image), return_counts=True)
    return _largest(FileValues(file_format, mode, False, values, counts))
  values, counts = np.unique(pack_colors(np.asarray(image.convert("RGB"))), return_counts=True)
  return _largest(FileValues(file_format, mode, True, values, counts))


def _largest(found: FileValues) -> FileValues:
  if len(found.values) <= _MOST_IN_FILE:
    return found
  kept = np.argpartition(-found.pixels, _MOST_IN_FILE)[:_MOST_IN_FILE]
  return found._replace(values=found.values[kept], pixels=found.pixels[kept])


@dataclasses.dataclass
class StoredValues:
  """Values stored in many label files.

  Attributes:
    formats: number of files by format and mode, such as "PNG P".
    num_files: number of files.
    pixels: number of pixels by value; keys are (in color, value or packed color).
    files: number of files that hold a value, with the same keys.
    crowded: number of files with too many values to keep all.
  """

  formats: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  num_files: int = 0
  pixels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  files: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  crowded: int = 0

  def add(self, found: FileValues) -> None:
    """Adds one file."""
    self.formats[f"{found.file_format} {found.mode}"] += 1
    self.num_files += 1
    self.crowded += len(found.values) >= _MOST_IN_FILE
    for value, count in zip(found.values.tolist(), found.pixels.tolist(), strict=True):
      self.pixels[found.in_color, value] += count
      self.files[found.in_color, value] += 1
    if len(self.pixels) > _MOST:
      self.pixels = collections.Counter(dict(self.pixels.most_common(_MOST // 2)))
      self.files = collections.Counter({key: self.files[key] for key in self.pixels})

  def merge(self, other: StoredValues) -> StoredValues:
    """Returns the sum of both."""
    return StoredValues(
      self.formats + other.formats,
      self.num_files + other.num_files,
      self.pixels + other.pixels,
      self.files + other.files,
      self.crowded + other.crowded,
    )

  @property
  def colors(self) -> bool:
    """True if a file holds a color that is not a gray."""
    return any(in_color and not _is_gray(value) for in_color, value in self.pixels)

  @property
  def lossy(self) -> bool:
    """True if a file is compressed with loss."""
    return any(name.split()[0] in LOSSY_FORMATS for name in self.formats)

  def table(self) -> list[tuple[Value, float, int]]:
    """Returns (value or color, share of the pixels, number of files), most frequent first."""
    colors, total = self.colors, max(self.pixels.total(), 1)
    pixels, files = collections.Counter(), collections.Counter()
    for (in_color, code), count in self.pixels.items():
      value = _meant(in_color, code, colors)
      pixels[value] += count
      files[value] += self.files[in_color, code]
    return [(value, count / total, files[value]) for value, count in pixels.most_common()]


def _is_gray(code: int) -> bool:
  return len(set(unpack_color(code))) == 1


def _meant(in_color: bool, code: int, colors: bool) -> Value:
  """Unpacks a value; it becomes a color if the dataset has colors."""
  if in_color:
    color = unpack_color(code)
    return color if colors else color[0]
  return (code, code, code) if colors and code <= 255 else code


class Guess(NamedTuple):
  """Probable label format of a dataset.

  Attributes:
    label_format: the label format.
    num_classes: number of classes that it gives, background included.
    reason: evidence for it.
    doubt: question that the user has to decide, or "".
  """

  label_format: LabelFormat
  num_classes: int
  reason: str
  doubt: str = ""


def guess_format(stored: StoredValues) -> Guess:
  """Guesses the label format that fits the values of label files."""
  rows = stored.table()
  if not rows:
    return Guess(LabelFormat(), 2, "no label could be read")
  if stored.colors:
    return _guess_colors(stored, rows)
  share_of = {int(value): share for value, share, _ in rows}
  near_ends = sum(share for value, share in share_of.items() if value <= _NEAR or 255 - _NEAR <= value <= 255)
  high = sum(share for value, share in share_of.items() if 255 - _NEAR <= value <= 255)
  noisy = len(share_of) > 8 and near_ends > 0.95 and high > 1e-4 and max(share_of) <= 255
  if stored.lossy or noisy:
    what = "hold 0..255 with noise near both ends: looks like JPEG" if noisy else "are JPEG, which changes values"
    doubt = "" if near_ends > 0.95 and high > 1e-4 else "classes cannot be got back: save labels anew without loss"
    return Guess(LabelFormat("binary", 127), 2, f"labels {what}", doubt)
  return _guess_values(share_of)


def _guess_values(share_of: dict[int, float]) -> Guess:
  """Guesses the label format for gray values without noise."""
  values = sorted(share_of)
  if len(values) == 1 and values[0] <= 1:
    return Guess(LabelFormat("index"), 2, f"labels hold nothing but {values[0]}")
  if len(values) == 1 or (len(values) == 2 and values[0] == 0 and values[1] > 1):
    return Guess(LabelFormat("binary"), 2, f"labels hold {_listed(values)}: background and foreground")
  ignored = IGNORE in share_of and len(values) > 2
  classes = [value for value in values if not (ignored and value == IGNORE)]
  ignore = (IGNORE,) if ignored else ()
  reason = f"labels hold {_listed(classes)}" + (" and 255, the usual value of pixels to ignore" if ignored else "")
  if values[0] < 0 or values[-1] > 65535:
    doubt = "values below 0 or above 65535 cannot be read: write labels anew with class indices 0..254"
    return Guess(LabelFormat("binary"), 2, reason, doubt)
  if len(classes) > _MOST_TABLE and classes[-1] > 254:
    doubt = "classes cannot be told from numbers of instances: if they are classes, write labels anew with at most 255"
    return Guess(LabelFormat("binary"), 2, f"{reason}: looks like a number for each instance", doubt)
  if classes[0] == 0 and classes[-1] < 255 and classes[-1] + 1 <= max(2, 1.5 * len(classes) + 1):
    return Guess(LabelFormat("index", ignore=ignore), max(2, classes[-1] + 1), reason)
  background = 0 if 0 in share_of else max(classes, key=lambda value: share_of[value])
  table = (background, *(value for value in classes if value != background))
  doubt = "" if background == 0 else f"value {background} is taken as the background, as the most frequent: is it?"
  reason += ", with gaps" if classes[0] == 0 else ", without 0"
  return Guess(LabelFormat("table", table=table, ignore=ignore), max(2, len(table)), reason, doubt)


def _guess_colors(stored: StoredValues, rows: list[tuple[Value, float, int]]) -> Guess:
  colors = [value for value, _, _ in rows]
  reason = f"labels hold {len(colors)} colors"
  if stored.lossy or len(colors) > _MOST_TABLE:
    doubt = (
      "labels of this kind are compressed with loss or smoothed, and no table fits them: save them again without "
      "compression and antialiasing"
    )
    return Guess(LabelFormat("binary", 127), 2, reason, doubt)
  background = (0, 0, 0) if (0, 0, 0) in colors else colors[0]
  table = (background, *sorted(color for color in colors if color != background))
  doubt = "" if background == (0, 0, 0) else f"{background} is taken as the background, as the most frequent: is it?"
  return Guess(LabelFormat("table", table=table), max(2, len(table)), reason, doubt)


def _listed(values: list[int]) -> str:
  """Returns 0..5 for a run of values, 0, 2, 9 for a few, and a count for many."""
  if len(values) > 2 and values[-1] - values[0] == len(values) - 1:
    return f"{values[0]}..{values[-1]}"
  if len(values) <= 12:
    return ", ".join(map(str, values))
  return f"{len(values)} values from {values[0]} to {values[-1]}"
