"""The meaning of label files: bytes in, class indices out. All code that reads label files uses this module.

A label map is uint8 [H, W] with class indices 0..254. Class 0 is the background. IGNORE (255) marks pixels of unknown
class, which count neither in the loss nor in a score.
"""

from __future__ import annotations

import ast
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import open_image, read_bytes
from seggpt_jax.formats.stored_labels import StoredLabel, count_values, read_stored, reading_hint, unpack_color
from seggpt_jax.palette import IGNORE

LabelMode = Literal["index", "binary", "table"]
LABEL_MODES = ("index", "binary", "table")
Value = int | tuple[int, ...]

_SAME_COLOR = 16  # largest difference in a channel of two colors that count as one


@dataclasses.dataclass(frozen=True)
class LabelFormat:
  """The meaning of the values in label files.

  Files that are read with one object must agree: the same color for the same palette index, and masks without a
  threshold the same foreground value.

  Attributes:
    mode: "index": values are class indices 0..254. "binary": values above `threshold` are class 1, the others
      background. "table": the i-th entry of `table` is class i.
    threshold: for "binary", 0..255. Masks stored as JPEG have values near 0 and near 255, which 127 separates. None is
      for masks that hold 0 and one other value, and refuses all others.
    table: for "table", gray values 0..65535, or colors (red, green, blue) with 0..255 each.
    ignore: values that become IGNORE, in every mode; colors if the table has colors.

  Raises:
    InputError: `table`, `threshold` or `ignore` does not fit the mode, or they contradict each other.
  """

  mode: LabelMode = "index"
  threshold: int | None = None
  table: tuple[Value, ...] = ()
  ignore: tuple[Value, ...] = ()

  def __post_init__(self):
    # No fields: what was read before is no part of what the format means.
    object.__setattr__(self, "_palette", {})  # index -> (color, name of the file)
    object.__setattr__(self, "_foreground", {})  # the key 0 -> (foreground value of masks, name of the file)
    if self.threshold is not None and self.mode != "binary":
      raise InputError(f"threshold: cannot be combined with labels={self.mode}; it is for labels=binary")
    if (self.mode == "table") != bool(self.table):
      found = f"{len(self.table)} entries with labels={self.mode}"
      raise InputError(f"table: found {found}, expected values or colors with labels=table, and only there")
    if len(self.table) > IGNORE:
      raise InputError(f"table: found {len(self.table)} entries, expected at most {IGNORE}")
    for name in ("table", "ignore"):
      for value in getattr(self, name):
        if not _is_value(value, self.colors):
          kind = "three numbers 0..255 as in the table" if self.colors else "an integer 0..65535"
          raise InputError(f"{name}: found {value!r}, expected {kind}")
    both = [value for value in self.table if value in self.ignore or self.table.count(value) > 1]
    if both:
      raise InputError(f"table: found {both[0]!r} twice, or among the ignored too, expected one meaning for each")

  def __str__(self) -> str:
    meaning = {"index": "class indices", "binary": f"binary, foreground above {self.threshold or 0}"}
    ignored = f", without {' '.join(map(str, self.ignore))}" if self.ignore else ""
    return meaning.get(self.mode, f"a table of {len(self.table)} {'colors' if self.colors else 'values'}") + ignored

  @property
  def colors(self) -> bool:
    """True if the table has colors rather than gray values."""
    return bool(self.table) and not isinstance(self.table[0], int)

  def decode(self, data: bytes, where: str) -> UInt8[np.ndarray, "h w"]:
    """Decodes a label file to class indices, upright like its image.

    Args:
      data: content of the file: grayscale with 1, 8 or 16 bits, palette indices, or color channels that are all equal;
        with a table of colors, any image that has colors.
      where: name of the file, for error messages.

    Raises:
      InputError: the file is unreadable, or has values that the format does not allow.
    """
    return self.decode_image(open_image(data, where), where)

  def decode_image(self, image: Image.Image, where: str) -> UInt8[np.ndarray, "h w"]:
    """Converts a Pillow image to class indices, with the rules of `decode`.

    Args:
      image: the label image, decoded or only opened.
      where: name of the image, for error messages.

    Raises:
      InputError: the image is damaged, or has values that the format does not allow.
    """
    return self.classes(read_stored(image, where), where)

  def classes(self, stored: StoredLabel, where: str) -> UInt8[np.ndarray, "h w"]:
    """Converts the content of a label file to class indices, with the rules of `decode`.

    Raises:
      InputError: the file has values that the format does not allow, or values that are not its labels.
    """
    if stored.fault:
      raise InputError(f"{where}: found {stored.fault}")
    if stored.codec and self.mode != "binary":
      raise InputError(
        f"{where}: found {stored.codec}, expected class values in a format without loss; masks of 0 and 255 are read "
        "with labels=binary, threshold=127"
      )
    if self.colors:
      return self._look_up(stored.packed_colors(where), where)
    values = self._values(stored, where)
    if self.mode == "table":
      return self._look_up(values, where)
    ignored = np.isin(values, self.ignore) if self.ignore else None
    if self.mode == "binary":
      if self.threshold is None:
        self._check_foreground(_foreground_value(stored, values, ignored, where), where)
      labels = (values > (self.threshold or 0)).astype(np.uint8)
    else:
      labels = _as_indices(values, ignored, where)
    if ignored is not None:
      labels[ignored] = IGNORE
    return labels

  def _values(self, stored: StoredLabel, where: str) -> Integer[np.ndarray, "h w"]:
    """Returns gray values or palette indices; for binary labels also the brightness of colors."""
    if stored.palette is not None:
      self._check_palette(stored, where)
    if not stored.in_color:
      return stored.pixels
    if self.mode == "binary":
      return cv2.cvtColor(stored.pixels, cv2.COLOR_RGB2GRAY)
    raise InputError(
      f"{where}: found colors, expected a single-channel label image of class indices; colors are read "
      "with labels=table and a table of them"
    )

  def _check_foreground(self, value: int, where: str) -> None:
    """Checks that the foreground of a mask has the value that it has in the files before; 0 is a mask without any."""
    first, other = self._foreground.setdefault(0, (value, where)) if value else (0, "")
    if value != first:
      raise InputError(
        f"{where}: found {value} as the value of the foreground, expected {first} as in {other} with labels=binary; "
        f"{reading_hint(sorted({0, first, value}))}; to make one class of all, set threshold=0"
      )

  def _check_palette(self, stored: StoredLabel, where: str) -> None:
    """Checks that indices mean what they meant in the files before, and that the background is no object."""
    colors = {index: tuple(stored.palette[index].tolist()) for index in stored.used_indices().tolist()}
    if self.mode == "binary" and self.threshold is None:
      grays = [color for index, color in colors.items() if index and len(set(color)) == 1]
      if grays and 0 in colors and len(set(colors[0])) > 1:
        raise InputError(
          f"{where}: found index 0 in the color {colors[0]} and another in {grays[0]}, expected index 0 to be the "
          "background; read the colors with labels=table and a table of both, the background first"
        )
    for index, color in colors.items():
      # Binary labels have one class for all indices but 0.
      if index in self.ignore or (index and self.mode == "binary"):
        continue
      first, other = self._palette.setdefault(index, (color, where))
      if not same_color(first, color):
        raise InputError(
          f"{where}: found {color} as the color of index {index}, expected {first} as in {other}: the palettes differ, "
          "so an index is not one class; read the colors with labels=table, or save the labels without palettes if the "
          "indices are right"
        )

  def _look_up(self, values: np.ndarray, where: str) -> UInt8[np.ndarray, "h w"]:
    """Returns the position of each value in the table."""
    # An entry for each possible value: 0 if it has no class, as the last one, which stands for all larger values.
    # Memory of zeros is only taken where something is written or read.
    classes = np.zeros((1 << (24 if self.colors else 16)) + 1, np.uint16)
    for place, value in [*enumerate(self.table), *((IGNORE, value) for value in self.ignore)]:
      code = value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]
      classes[code] = place + 1
    found = np.take(classes, values.astype(np.uint32, copy=False), mode="clip")  # negative values become large ones
    unknown = found == 0
    if unknown.any():
      value = int(values[unknown][0])
      named = unpack_color(value) if self.colors else value
      what = "color" if self.colors else "value"
      raise InputError(
        f"{where}: found {what} {named} in {unknown.mean():.2%} of the pixels, expected one of the {len(self.table)} "
        f"in the table or an ignored one"
      )
    return (found - 1).astype(np.uint8)


def parse_values(text: str, name: str) -> tuple[Value, ...]:
  """Parses values or colors from a command line, such as `0,128,255` or `(0,0,0),(255,0,0)`.

  Args:
    text: numbers or triples of numbers, separated by commas; "" means none.
    name: name of the flag, for error messages.

  Raises:
    InputError: the text has another form.
  """
  try:
    # The comma makes a tuple even of a single value.
    values = ast.literal_eval(f"({text},)") if text.strip() else ()
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
    raise InputError(f"{name}: found {text!r}, expected values such as 0,128,255 or (0,0,0),(255,0,0)") from error
  # The whole list may be in parentheses.
  return values[0] if len(values) == 1 and isinstance(values[0], tuple) and not _is_value(values[0], True) else values


def _is_value(value: Any, color: bool) -> bool:
  if color:
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in value)
  return isinstance(value, int) and 0 <= value <= 65535


def same_color(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
  """Returns whether two colors differ so little that one program may have written the other's."""
  return all(abs(a - b) <= _SAME_COLOR for a, b in zip(first, second, strict=True))


def _as_indices(values: np.ndarray, ignored: np.ndarray | None, where: str) -> UInt8[np.ndarray, "h w"]:
  """Returns values as class indices; raises InputError if a value that is not ignored is not an index."""
  counted = True if ignored is None else ~ignored
  largest, least = int(values.max(initial=0, where=counted)), int(values.min(initial=0, where=counted))
  if largest > 254 or least < 0:
    hint = reading_hint(np.unique(values[counted] if ignored is not None else values).tolist())
    value = largest if largest > 254 else least
    raise InputError(f"{where}: found label value {value}, expected class indices 0..254; {hint}")
  return values.astype(np.uint8)


def _foreground_value(stored: StoredLabel, values: np.ndarray, ignored: np.ndarray | None, where: str) -> int:
  """Returns the only value of a mask other than 0, or 0 if all are 0; several would become one class."""
  if stored.codec:
    raise InputError(
      f"{where}: found {stored.codec}, whose noise near 0 would count as foreground, expected a threshold with "
      "labels=binary: set threshold=127 (--labels=binary:127, in a configuration data.threshold=127)"
    )
  if ignored is not None:
    values = np.where(ignored, values.dtype.type(0), values)
  largest = int(values.max(initial=0))
  count = cv2.countNonZero if values.dtype == np.uint8 else np.count_nonzero
  if count(values) == (count((values == largest).view(np.uint8)) if largest else 0):
    return largest
  found = np.unique(values).tolist()
  if stored.in_color:
    hint = "colors are read with labels=table and a table of them"
  else:
    hint = f"{reading_hint(found)}; to make one class of all, set threshold=0"
  shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
  raise InputError(f"{where}: found the values {shown}, expected 0 and one other with labels=binary; {hint}")


def keep_classes(label: UInt8[np.ndarray, "h w"], classes: Sequence[int], other: int = 0) -> UInt8[np.ndarray, "h w"]:
  """Replaces all foreground classes of a label map except the given ones. Ignored pixels stay.

  Args:
    label: the label map.
    classes: classes to keep.
    other: label for the pixels of all other foreground classes: 0 for background, or IGNORE.
  """
  table = np.full(256, other, np.uint8)
  table[[0, IGNORE, *classes]] = [0, IGNORE, *classes]
  return cv2.LUT(label, table)


def read_labels(path: str | os.PathLike, label_format: LabelFormat) -> UInt8[np.ndarray, "h w"]:
  """Reads a label file, local or remote, as class indices; see `LabelFormat.decode`.

  Args:
    path: the file.
    label_format: meaning of its values.

  Raises:
    InputError: the file is missing, unreadable, or has values that the format does not allow.
  """
  return label_format.decode(read_bytes(path), os.fspath(path))


def classes_in(label: UInt8[np.ndarray, "h w"]) -> tuple[int, ...]:
  """Returns the foreground classes in a label map, ascending."""
  return tuple((1 + np.flatnonzero(count_values(label)[1:IGNORE])).tolist())


def shrink_labels(label: UInt8[np.ndarray, "h w"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
  """Resamples a label map to a smaller size without losing an object.

  A pixel becomes foreground where at least half of it was, and takes the class that covered most of it. An object
  (8-connected pixels of one class) of which nothing would be left keeps the pixels that it covered most, at least half
  as much as its best one, so that a thin line stays a line.

  Args:
    label: class indices, or IGNORE.
    shape: height and width of the result. If one is larger than the label's, this is the nearest neighbor.
  """
  height, width = shape
  nearest = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
  if label.shape == shape or height > label.shape[0] or width > label.shape[1]:
    return nearest
  masks = {value: cv2.inRange(label, value, value) for value in (*classes_in(label), IGNORE)}
  covered = np.stack(
    [cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint16) for mask in masks.values()]
  )
  values = np.array(list(masks), np.uint8)
  result = np.where(covered.sum(axis=0) > 127, values[np.argmax(covered, axis=0)], np.uint8(0))
  for value in values[:-1].tolist():
    restore_objects(masks[value], value, result)
  return result


def restore_objects(mask: UInt8[np.ndarray, "h w"], value: int, resized: Integer[np.ndarray, "h2 w2"]) -> None:
  """Puts back the objects of a class of which a label map of another size shows nothing.

  An object gets the pixels that it covers most, at least half as much as its best one: a thin line stays a line.

  Args:
    mask: pixels of the class at the original size, 0 elsewhere.
    value: the class.
    resized: the label map of another size, which is changed.
  """
  width = resized.shape[1]
  rows, cols = (np.arange(old) * new // old for old, new in zip(mask.shape, resized.shape, strict=True))
  count, objects = cv2.connectedComponents(mask, connectivity=8)
  kept = np.unique(objects[(resized[rows[:, None], cols] == value) & (objects > 0)])
  for lost in np.setdiff1d(np.arange(1, count), kept):
    y, x = np.nonzero(objects == lost)
    place, pixels = np.unique(rows[y] * width + cols[x], return_counts=True)
    resized.flat[place[2 * pixels >= pixels.max()]] = value


def check_classes(label: UInt8[np.ndarray, "h w"], num_classes: int, where: str) -> None:
  """Checks that every pixel of a label map is a known class or IGNORE.

  Args:
    label: the label map.
    num_classes: number of classes, background included.
    where: name of the label file, for the error message.

  Raises:
    InputError: a pixel has a value of `num_classes` or above that is not IGNORE.
  """
  largest = int(label.max(initial=0))
  if largest >= num_classes:
    largest = int(label.max(initial=0, where=label != IGNORE))
  if largest >= num_classes:
    hint = f"; {reading_hint(np.unique(label[label != IGNORE]).tolist())}" if largest > 127 else ""
    raise InputError(
      f"{where}: found label value {largest}, expected 0..{num_classes - 1} (data.num_classes={num_classes}){hint}"
    )


def check_size(label: UInt8[np.ndarray, "h w"], size: tuple[int, ...] | None, where: str) -> None:
  """Checks that a label has the height and width of its image.

  Args:
    label: the label map.
    size: height and width of the image; None accepts any size.
    where: name of the label file, for the error message.

  Raises:
    InputError: the sizes differ.
  """
  if size is None or label.shape == size:
    return
  (found_h, found_w), (h, w) = label.shape, size
  turned = " (does an EXIF tag rotate only the image?)" if (found_w, found_h) == (h, w) else ""
  raise InputError(f"{where}: found {found_w} x {found_h} pixels, expected {w} x {h} as its image has{turned}")
