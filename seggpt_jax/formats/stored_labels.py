"""The content of label files: an image file in; values, palette or colors out, and why they may not be trusted.

Also the probable meaning of values: values in, settings that read them out.

`labels.LabelFormat` turns the stored values into classes, and `audit.label_values` counts them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import load_upright
from seggpt_jax.palette import IGNORE

_GRAY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N")
_EQUAL = ("RGB", "RGBA", "RGBa", "RGBX", "LA", "PA")  # modes whose channels are equal where they show grays
_COLOR_NOISE = 24  # largest difference of two channels of a gray after compression with loss
_OPAQUE = 128  # smallest alpha of a pixel that counts as painted
_TRANSPARENT = (
  "the same color where it is transparent and where it is not, so the mask is in the alpha channel, which is not read; "
  "expected gray values or colors: save the alpha channel as a gray image"
)
_ALL_TRANSPARENT = (
  "only transparent pixels, so the mask is in the alpha channel, which is not read; expected gray values or colors: "
  "save the alpha channel as a gray image"
)
_SIXTEEN_BIT_COLORS = (
  "16 bits for each color, of which only 8 are read; expected a label image of one channel, or 8 bits for each color"
)
_MOST_CLASSES = 64  # in addition to 255 as the value to ignore, where it is not known whether values are indices
_MOST_LEVELS = 16  # gray levels of a label that a person may have chosen; more are smooth edges, noise or instances


def count_values(pixels: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "256"]:
  """Counts the pixels of each value; counts above 16 million are rounded to seven digits."""
  # Takes a tenth of the time of `numpy.bincount`, and releases the interpreter lock.
  return cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.int64)


class StoredLabel(NamedTuple):
  """The content of a label file, upright like its image.

  A palette of grays and channels that are all equal are gray values.
  """

  pixels: np.ndarray  # gray values or palette indices `[H, W]`, or colors uint8 `[H, W, 3]`
  palette: np.ndarray | None  # color of each index, uint8 `[256, 3]`; None without a palette of colors
  form: str  # format and mode of the file, such as "PNG P"
  codec: str  # compression that changed the values, such as "JPEG"; "" if they are as they were saved
  fault: str  # reason why the pixels are not the labels, or ""

  @property
  def in_color(self) -> bool:
    """True if the pixels are colors."""
    return self.pixels.ndim == 3

  def used_indices(self) -> Integer[np.ndarray, "n"]:
    """Returns the palette indices, or values 0..255, that occur."""
    return np.flatnonzero(count_values(self.pixels))

  def packed_colors(self, where: str) -> Integer[np.ndarray, "h w"]:
    """Returns the color that each pixel shows, as one number.

    Args:
      where: name of the file, for error messages.

    Raises:
      InputError: the file has gray values above 255.
    """
    if self.in_color:
      return pack_colors(self.pixels)
    if self.palette is not None:
      return pack_colors(self.palette[None])[0][self.pixels]
    if self.pixels.dtype != np.uint8 and not 0 <= self.pixels.min(initial=0) <= self.pixels.max(initial=0) <= 255:
      raise InputError(f"{where}: found gray values up to {self.pixels.max()}, expected colors of 8 bits")
    return self.pixels.astype(np.int32) * 0x010101


def read_stored(image: Image.Image, where: str) -> StoredLabel:
  """Reads the content of a label file.

  Args:
    image: the label image, decoded or only opened.
    where: name of the image, for error messages.

  Raises:
    InputError: the image is damaged, or holds floating-point values.
  """
  # Both must be asked before the image is decoded, which drops the header.
  codec, fault = lossy_codec(image), _SIXTEEN_BIT_COLORS if _drops_bits(image) else ""
  form = f"{image.format or 'image'} {image.mode}"
  image = load_upright(image, where)
  if image.mode == "F":
    raise InputError(f"{where}: found floating-point values, expected integers or colors")
  if image.has_transparency_data and image.mode not in ("L", "RGB", "I;16"):
    image = image.convert("LA") if image.mode == "La" else image
    fault = fault or _alpha_fault(np.asarray(image.convert("RGBA")))
  if image.mode in _GRAY:
    pixels = np.asarray(image)
    return StoredLabel(pixels.astype(np.uint8) if pixels.dtype == bool else pixels, None, form, codec, fault)
  if image.mode == "P":
    palette, found = np.zeros((256, 3), np.uint8), np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(found)] = found
    return _read_palette(StoredLabel(np.asarray(image), palette, form, codec, fault))
  colors = np.asarray(image.convert("RGB"))
  if image.mode in _EQUAL and (cv2.absdiff(colors, colors[..., [1, 1, 1]]) <= (_COLOR_NOISE if codec else 0)).all():
    colors = colors[..., 1]
  return StoredLabel(colors, None, form, codec, fault)


def _read_palette(stored: StoredLabel) -> StoredLabel:
  """Replaces indices into a palette of grays by the gray values.

  Programs that make PNG files small store gray images in this way, with the grays in any order. A palette that shows
  two of the indices in the same gray was not made from a gray image, so its indices stay.
  """
  palette = stored.palette
  if not (palette == palette[:, :1]).all():
    return stored
  shown = palette[: int(stored.pixels.max(initial=0)) + 1, 0].tolist()
  if len(set(shown)) < len(shown):
    return stored
  grays = cv2.LUT(stored.pixels, palette[:, 0])
  return stored._replace(pixels=grays, palette=None, form=f"{stored.form} of grays")


def _alpha_fault(pixels: UInt8[np.ndarray, "h w 4"]) -> str:
  """Returns a sentence if transparency tells more than the colors, or ""."""
  alpha = pixels[..., 3]
  least, largest = int(alpha.min(initial=255)), int(alpha.max(initial=0))
  if least == 255 or (least == largest and least > 0):
    return ""
  colors = pack_colors(pixels[..., :3])
  one_color = bool((colors == colors.flat[0]).all())
  if least == largest:
    # Programs that ignore transparency write 0 everywhere; then the colors are the labels.
    return _ALL_TRANSPARENT if one_color and colors.flat[0] else ""
  painted = np.unique(colors[alpha >= _OPAQUE])
  return _TRANSPARENT if one_color or np.isin(np.unique(colors[alpha == 0]), painted).any() else ""


def _drops_bits(image: Image.Image) -> bool:
  """Returns whether Pillow keeps only the upper 8 of 16 bits, which it does to colors."""
  tiles = getattr(image, "tile", None) or []
  args = [tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in tiles]
  return not image.mode.startswith("I") and any(isinstance(rawmode, str) and ";16" in rawmode for rawmode in args)


# --------------------------------------------------------------------------------------------------- lossy compression


def lossy_codec(image: Image.Image) -> str:
  """Returns the name of the compression that changed the values of an image file, or "" if none did.

  WebP, JPEG 2000 and AVIF exist with and without loss; the header tells which. If the file of an image that was
  decoded already is gone, these three count as lossy.
  """
  if image.format in ("JPEG", "MPO"):
    return "JPEG"
  if image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
    return f"TIFF compressed as {image.info['compression'].removeprefix('tiff_')} with loss"
  keeps = {"WEBP": _webp_keeps, "JPEG2000": _jpeg_2000_keeps, "AVIF": _avif_keeps}.get(image.format)
  return "" if keeps is None or keeps(_file_bytes(image)) else f"{image.format} compressed with loss"


def _file_bytes(image: Image.Image) -> bytes:
  """Returns the file that an image was opened from, or other bytes if that is not known any more."""
  name = getattr(image, "filename", "")
  if name and os.path.isfile(name):
    with open(name, "rb") as file:
      return file.read()
  stream = getattr(image, "fp", None)
  if stream is None or stream.closed:
    return b""
  place = stream.tell()
  stream.seek(0)
  data = stream.read()
  stream.seek(place)
  return data


def _webp_keeps(data: bytes) -> bool:
  """Returns whether a WebP file is lossless, which its chunks tell: VP8L is lossless, VP8 is not."""
  place, chunks = 12, set()
  while data[:4] == b"RIFF" and place + 8 <= len(data):
    chunks.add(data[place : place + 4])
    (length,) = struct.unpack_from("<I", data, place + 4)
    place += 8 + length + length % 2
  return b"VP8L" in chunks and b"VP8 " not in chunks


def _jpeg_2000_keeps(data: bytes) -> bool:
  """Returns whether a JPEG 2000 file uses the reversible transform."""
  place = data.find(b"\xff\x4f\xff\x51") + 2  # start of the codestream, and its first segment
  while place >= 2 and place + 14 <= len(data):
    if data[place : place + 2] == b"\xff\x52":  # coding style
      return data[place + 13] == 1
    (length,) = struct.unpack_from(">H", data, place + 2)
    place += 2 + length
  return False


def _avif_keeps(data: bytes) -> bool:
  """Returns whether an AVIF file stores red, green and blue as they are, which only lossless files do."""
  place = data.find(b"colrnclx")
  return place >= 0 and data[place + 12 : place + 14] == b"\0\0"


# -------------------------------------------------------------------------------------------------------------- colors


def pack_colors(colors: UInt8[np.ndarray, "h w 3"]) -> Integer[np.ndarray, "h w"]:
  """Returns each color as one number: red << 16 | green << 8 | blue."""
  red, green, blue = (colors[..., c].astype(np.int32) for c in range(3))
  return red << 16 | green << 8 | blue


def unpack_color(code: int) -> tuple[int, int, int]:
  """Returns (red, green, blue) of a number from `pack_colors`."""
  return code >> 16, code >> 8 & 255, code & 255


def is_gray(code: int) -> bool:
  """Returns whether a number from `pack_colors` is a gray, black or white."""
  return len(set(unpack_color(code))) == 1


def evenly_spaced(values: Sequence[int]) -> bool:
  """Returns whether ascending values are gray levels that divide 0..255 evenly, such as 0, 128, 255."""
  if not 3 <= len(values) <= _MOST_LEVELS or values[0] != 0 or not 250 <= values[-1] <= 255:
    return False
  step = values[-1] / (len(values) - 1)
  return all(abs(value - step * place) <= 1 for place, value in enumerate(values))


def are_indices(values: Sequence[int]) -> bool:
  """Returns whether ascending values are class indices 0, 1, ... with few gaps."""
  return values[0] == 0 and values[-1] < IGNORE and values[-1] + 1 <= max(2, 1.5 * len(values) + 1)


def reading_hint(values: Sequence[int]) -> str:
  """Returns the settings that probably read a label with these ascending values."""
  smooth = "masks with smooth edges or noise are read with labels=binary, threshold=127"
  foreground = [value for value in values if value]
  if len(foreground) <= 1:
    return f"masks of 0 and {foreground[0] if foreground else IGNORE} are read with labels=binary"
  if values[0] < 0 or values[-1] > 65535:
    return "save the label again with class indices 0..254"
  if len(values) > _MOST_LEVELS and values[-1] > IGNORE:
    return "numbers of instances are read as one class with labels=binary, threshold=0"
  if len(values) > _MOST_LEVELS and values[-1] >= 250 and not are_indices(values[:-1]):
    return smooth
  listed = ",".join(map(str, values))
  if evenly_spaced(values):
    return f"gray levels are read with labels=table, table={listed}; {smooth}"
  if values[-1] == IGNORE:
    return (
      "if 255 marks pixels to ignore, set ignore=255 (a flag --ignore=255, in a configuration data.ignore='(255,)'); "
      f"if it is a class, labels=table, table={listed}" + ("" if values[-2] < _MOST_CLASSES else f"; {smooth}")
    )
  if values[-1] < IGNORE:
    return f"class indices are read with labels=index, num_classes={values[-1] + 1}"
  return f"values that stand for classes are read with labels=table, table={listed}"
