"""Image files of any kind, local or remote: a path or bytes in, upright RGB pixels out.

Training, inference and preparation read pixels through here, so a file means the same thing everywhere.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from seggpt_jax.errors import InputError, refuse

_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@functools.cache
def _extensions() -> frozenset[str]:
  return frozenset(ext for ext, plugin in Image.registered_extensions().items() if plugin in Image.OPEN)


def _walk(directory: str, recursive: bool, prefix: str = "") -> Iterator[tuple[str, str]]:
  """(path below the directory without ending, path) of every image file."""
  # Path objects for each of 100,000 files would take longer than all else before the first step.
  local = os.path.isdir(directory)
  for file in sorted(os.listdir(directory) if local else (path.name for path in epath.Path(directory).iterdir())):
    if file.startswith("."):
      continue
    name, ending = os.path.splitext(file)
    if ending.lower() in _extensions():
      yield prefix + name, f"{directory}/{file}"
    elif recursive and not ending and epath.Path(f"{directory}/{file}").is_dir():
      yield from _walk(f"{directory}/{file}", recursive, f"{prefix}{file}/")


def list_images(
  directory: str | os.PathLike, recursive: bool = False, problems: list[str] | None = None
) -> dict[str, str]:
  """The image files of a folder by name without ending, sorted.

  Args:
    directory: local, or a remote one such as gs://BUCKET/FOLDER.
    recursive: also those of folders in it, under names such as `street/0001`; folders with a dot in their name are not
      looked into.
    problems: is given what is wrong, which then is not raised; of two files for one name the first stays.

  Raises:
    InputError: no such folder, no images in it, or two files that differ only in their ending.
  """
  directory = remote_or_local(directory)
  if not directory.is_dir():
    refuse(f"{directory}: folder not found, expected a folder of images", problems)
    return {}
  found: dict[str, str] = {}
  for name, path in _walk(os.fspath(directory), recursive):
    if name in found:
      refuse(f"{path}: found {os.path.basename(found[name])} beside it, expected one file for each name", problems)
    found.setdefault(name, path)
  if not found:
    refuse(f"{directory}: found no images, expected files that Pillow can read, such as .png or .jpg", problems)
  return dict(sorted(found.items()))


def remote_or_local(path: str | os.PathLike) -> epath.Path:
  """A path object, with ~ expanded; for gs://, s3:// and the like its file system is loaded.

  Raises:
    InputError: what reads that kind of remote path is not installed.
  """
  path = epath.Path(path).expanduser()
  try:
    path.exists()  # the first access loads the file system
  except ImportError as error:
    raise InputError(f"{path}: cannot be reached, expected the package for such paths: {error}") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be reached: {error}") from error
  return path


def read_bytes(path: str | os.PathLike) -> bytes:
  """The content of a file, local or remote.

  Raises:
    InputError: it is missing or cannot be read.
  """
  try:
    return epath.Path(path).read_bytes()
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected an image") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_image(data: bytes, where: str) -> Image.Image:
  """The header of an image file; nothing is decoded yet.

  Args:
    data: the file.
    where: its name, for what may be wrong with it.

  Raises:
    InputError: it is no image, has several pages, or more pixels than Pillow takes for a decompression bomb (179
      million).
  """
  try:
    with warnings.catch_warnings():
      # From half of that number on Pillow warns; aerial images are that large.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      image = Image.open(io.BytesIO(data))
    # Phones store a preview as the second picture of a JPEG (MPO); pages of a TIFF or GIF are another matter.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
      raise InputError(f"{where}: found {image.n_frames} pages, expected a file with one picture")
  except _UNREADABLE as error:
    raise _unreadable(where, error) from error
  return image


def load_upright(image: Image.Image, where: str) -> Image.Image:
  """Decodes what `open_image` opened, turned as its EXIF tag says.

  Raises:
    InputError: the file is damaged or cut off.
  """
  try:
    image.load()
    return ImageOps.exif_transpose(image)
  except _UNREADABLE as error:
    raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> InputError:
  if isinstance(error, InputError):
    return error
  if isinstance(error, UnidentifiedImageError):
    return InputError(f"{where}: cannot be read as an image: found no format that Pillow knows")
  return InputError(f"{where}: cannot be read as an image: {error}")


def decode_image(data: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
  """Pixels of an image file as RGB, upright.

  Grayscale is repeated over the channels, a palette's indices become its colors, 16 bits are scaled to 8 (65535 is
  255), CMYK is converted, alpha is dropped: what lies under transparent pixels shows.

  Args:
    data: the file.
    where: its name, for what may be wrong with it.

  Raises:
    InputError: it is unreadable, damaged, cut off, has several pages or floating-point values; names it.
  """
  image = open_image(data, where)
  if image.format == "JPEG" and image.mode in ("RGB", "L"):
    # The same pixels as Pillow's, in half the time. OpenCV gives nothing for a file that is cut off; Pillow says why.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is not None:
      return pixels
  return upright_pixels(image, where)


def upright_pixels(image: Image.Image, where: str) -> UInt8[np.ndarray, "h w 3"]:
  """Pixels of a Pillow image, as `decode_image` gives those of a file.

  Args:
    image: opened, decoded or not.
    where: its name, for what may be wrong with it.

  Raises:
    InputError: it is damaged, cut off, or has floating-point values; names it.
  """
  image = load_upright(image, where)
  if image.mode in _SIXTEEN_BIT or image.mode == "I":
    values = np.asarray(image).astype(np.float64)
    if not 0 <= values.min(initial=0) <= values.max(initial=0) <= 65535:
      raise InputError(f"{where}: found values {values.min():g}..{values.max():g}, expected 8 or 16 bits, unsigned")
    image = Image.fromarray(np.round(values / 257).astype(np.uint8))
  elif image.mode == "F":
    raise InputError(f"{where}: found floating-point values, expected 8 or 16 bits, unsigned")
  return np.array(image.convert("RGB"))


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
  """`decode_image` of a file.

  Raises:
    InputError: the file is missing or unreadable; names it.
  """
  return decode_image(read_bytes(path), os.fspath(path))
