"""Image files of any kind, local or remote: a path or bytes in, upright RGB pixels out.

Training, inference and preparation all read images with this module, so that a file means the same everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from seggpt_jax.errors import InputError, one_line, warn_once
from seggpt_jax.files import decode_text, expand

# Only these decoders see what users have. Others start programs (EPS runs Ghostscript), draw vectors, or read formats
# that no camera and no labeling tool writes.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
# TIFF: the tag that says what a page is, and the bits of overviews and masks.
_SUBFILE_TYPE, _OVERVIEW_OR_MASK, _MOST_OVERVIEWS = 254, 1 | 4, 64
# Cameras and scanners have 8, 12 or 16 bits. Finer steps would give two images of one camera different ranges.
_WHITES = (255, 4095, 65535)
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF tags
_SIXTEEN_BIT_PNG = (2, 4, 6)  # color types with several channels, of which Pillow keeps 8 bits only
_HIDDEN = 255  # the color of transparent pixels, as most viewers show them
_LIMIT = "SEGGPT_MAX_PIXELS"  # in the environment: most pixels of an image
ORIENTATION = 274  # the EXIF tag
HEIF_ENDINGS = frozenset({".heic", ".heif", ".heics", ".heifs", ".hif"})
_HEIF_STARTS = tuple(
  b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)
HEIF_HINT = "to read HEIC, pip install 'seggpt-jax[heif]'"


@functools.cache
def image_endings() -> frozenset[str]:
  """Returns the endings, in lower case, of the files that can be read as images."""
  formats = _known_formats()
  return frozenset(ending for ending, plugin in Image.registered_extensions().items() if plugin in formats)


def is_image(path: str) -> bool:
  """Returns True if a file has an ending of images that Pillow reads."""
  return os.path.splitext(path)[1].lower() in image_endings()


def without_ending(name: str) -> str:
  """Returns the name of an image file without its ending. A dot may be part of a name: `scan.v2` has no ending."""
  stem, ending = os.path.splitext(name)
  return stem if ending.lower() in image_endings() | HEIF_ENDINGS else name


def remote_or_local(path: str | os.PathLike) -> epath.Path:
  """Returns a path object for a local path, with `~` expanded, or for a remote address such as gs:// or s3://.

  Args:
    path: local path or remote address; it need not exist.

  Raises:
    InputError: the remote address cannot be reached, or the package for such addresses is not installed.
  """
  path = epath.Path(expand(path))
  try:
    path.exists()  # the first access loads the package of the remote file system
  except ImportError as error:
    raise InputError(f"{path}: cannot be reached; install the package for such paths: {error}") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be reached: {error}") from error
  return path


def read_bytes(path: str | os.PathLike) -> bytes:
  """Reads a file, local or remote.

  Raises:
    InputError: the file is missing, cannot be read, or is a device or pipe, which may have no end.
  """
  path = expand(path)
  try:
    if "://" in path or stat.S_ISREG(os.stat(path).st_mode):
      return epath.Path(path).read_bytes()
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected a file") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
  except ValueError as error:  # a NUL in the name
    raise InputError(f"{path!r}: cannot be a file: {error}") from error
  raise InputError(f"{path}: found a {'folder' if os.path.isdir(path) else 'device or pipe'}, expected a file")


def read_text(path: str | os.PathLike) -> str:
  """Reads a text file that a person or a tool wrote, local or remote, see `files.decode_text`.

  Raises:
    InputError: the file is missing, or is not UTF-8.
  """
  try:
    return decode_text(read_bytes(path))
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: cannot be read as text: {error.reason} at byte {error.start}, expected UTF-8") from error


def read_lines(path: str | os.PathLike) -> list[str]:
  """Returns the non-empty lines of a text file, without spaces around them, see `read_text`."""
  return [stripped for line in read_text(path).splitlines() if (stripped := line.strip())]


def file_stamp(path: str | os.PathLike) -> str:
  """Returns the size and time of a file, local or remote, as a string that changes with its content.

  Raises:
    InputError: the file is missing.
  """
  path = expand(path)
  try:
    if "://" in path:
      remote = epath.Path(path).stat()
      return f"{remote.length} {remote.mtime}"
    local = os.stat(path)  # with the time in nanoseconds, which the other has in seconds
  except OSError as error:
    raise InputError(f"{path}: not found, expected a file") from error
  return f"{local.st_size} {local.st_mtime_ns}"


def open_image(data: bytes, where: str) -> Image.Image:
  """Reads the header of an image file and decodes nothing yet.

  Args:
    data: content of the file.
    where: name of the file, for error messages.

  Raises:
    InputError: the file is not an image, has several pages, or has more pixels than Pillow accepts (179 million).
  """
  formats = _known_formats()
  with _decoding(where, data):
    with warnings.catch_warnings():
      # Pillow warns from half of its limit on, which aerial images often exceed.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      image = Image.open(io.BytesIO(data), formats=formats)
    # Phones store a preview as the second picture of a JPEG (MPO). Pages of a TIFF or GIF are all real pictures.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO" and not _has_overviews_only(image):
      raise InputError(f"{where}: found {image.n_frames} pages, expected a file with one picture")
  return image


def _has_overviews_only(image: Image.Image) -> bool:
  """Returns whether all pages of a TIFF but the first are smaller copies of it or masks, as GeoTIFFs have them."""
  if image.format != "TIFF" or image.n_frames > _MOST_OVERVIEWS:
    return False
  try:
    for page in range(1, image.n_frames):
      image.seek(page)
      if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _OVERVIEW_OR_MASK:
        return False
    return True
  finally:
    image.seek(0)


@functools.cache
def _known_formats() -> list[str]:
  """Returns the formats that this build of Pillow reads, HEIC among them if the package for it is installed."""
  with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
  Image.init()
  if os.environ.get(_LIMIT, "").isdecimal():
    Image.MAX_IMAGE_PIXELS = int(os.environ[_LIMIT]) // 2  # Pillow refuses twice as many
  return [each for each in FORMATS if each in Image.OPEN]


@contextlib.contextmanager
def _decoding(where: str, data: bytes = b"") -> Iterator[None]:
  """Turns every error of a decoder into an InputError that names the file."""
  try:
    yield
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    found = re.search(r"\d+", str(error))
    raise InputError(
      f"{where}: found {found[0] if found else 'too many'} pixels, expected at most {2 * Image.MAX_IMAGE_PIXELS}; cut "
      f"the image, or set {_LIMIT} to read larger files of your own"
    ) from error
  except UnidentifiedImageError as error:
    hint = f"; {HEIF_HINT}" if data[4:12] in _HEIF_STARTS else ""
    raise InputError(f"{where}: cannot be read as an image: found none of {', '.join(FORMATS)}{hint}") from error
  # Damaged files make decoders raise anything: struct.error, KeyError, IndexError, OverflowError, MemoryError, ...
  except Exception as error:
    raise InputError(f"{where}: cannot be read as an image: {one_line(error) or type(error).__name__}") from error


def upright_size(data: bytes, where: str) -> tuple[int, int]:
  """Reads the height and width of an image file, upright.

  Pixels are decoded only for PNG without an orientation before them, since one may come after them.

  Args:
    data: content of the file.
    where: name of the file, for error messages.

  Raises:
    InputError: the file is not an image.
  """
  image = open_image(data, where)
  # Orientations 5 to 8 exchange width and height. Pillow does so itself for TIFF, already when it opens the file.
  exchanged = _orientation(image, where) in (5, 6, 7, 8) and image.format != "TIFF"
  return image.size if exchanged else image.size[::-1]


def _orientation(image: Image.Image, where: str) -> int:
  """Returns the orientation 1..8 that the EXIF tag of an opened image states; 1 without a valid one."""
  with _decoding(where):
    stated = image.getexif().get(ORIENTATION, 1)
  return stated if stated in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Returns the pixels of an orientation upright."""
  pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
  rows, cols = (-1 if orientation in mirrored else 1 for mirrored in ((3, 4, 7, 8), (2, 3, 6, 7)))
  return np.ascontiguousarray(pixels[::rows, ::cols])


def load_upright(image: Image.Image, where: str) -> Image.Image:
  """Decodes an image that `open_image` opened and rotates it as its EXIF tag says.

  Args:
    image: the opened image.
    where: name of the file, for error messages.

  Raises:
    InputError: the file is damaged or cut off.
  """
  with _decoding(where):
    if image.format == "TIFF" and getattr(image, "tile", None):
      # Pillow 13.0 maps an uncompressed TIFF that has a path with width and height exchanged if a tag rotates it.
      image.filename = ""
    image.load()
    return ImageOps.exif_transpose(image)


def decode_image(data: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes an image file to upright RGB pixels.

  Grayscale is repeated over the channels, palette indices become colors, 16 bits are scaled to 8, CMYK is
  converted, and transparent pixels become white.

  Args:
    data: content of the file.
    where: name of the file, for error messages.

  Raises:
    InputError: the file is unreadable, damaged, cut off, has several pages, or has floating-point values.
  """
  image = open_image(data, where)
  if image.format == "JPEG" and image.mode in ("RGB", "L"):
    # OpenCV gives the same pixels as Pillow in half the time. It returns None for a damaged file; Pillow says why. It
    # also finds orientations in damaged tags, which Pillow does not.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is not None:
      return _turned(pixels, _orientation(image, where))
  with _decoding(where):
    # A TIFF that is turned is left to Pillow, as OpenCV turns some of them itself.
    deep = None if image.format == "TIFF" and _orientation(image, where) != 1 else _deep_colors(data, image, where)
  if deep is not None:
    return _turned(deep, _orientation(image, where))
  return upright_pixels(image, where)


def upright_pixels(image: Image.Image, where: str) -> UInt8[np.ndarray, "h w 3"]:
  """Converts a Pillow image to upright RGB pixels, with the rules of `decode_image`.

  Args:
    image: the image, decoded or only opened.
    where: name of the image, for error messages.

  Raises:
    InputError: the image is damaged, cut off, or has floating-point values.
  """
  white = _stated_white(image)
  image = load_upright(image, where)
  if image.mode in _SIXTEEN_BIT or image.mode == "I":
    image = Image.fromarray(_as_eight_bits(np.asarray(image), where, white))
  elif image.mode == "F":
    raise InputError(f"{where}: found floating-point values, expected 8 or 16 bits, unsigned")
  if not image.has_transparency_data:
    return np.array(image.convert("RGB"))
  found = np.asarray(image.convert("RGBA"))
  return np.ascontiguousarray(_without_hidden(found[..., :3], found[..., 3]))


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
  """Reads an image file, local or remote, as upright RGB pixels; see `decode_image`.

  Raises:
    InputError: the file is missing or cannot be read as an image.
  """
  return decode_image(read_bytes(path), os.fspath(path))


# --------------------------------------------------------------------------------------------- depth and transparency


def _as_eight_bits(values: np.ndarray, where: str, stated: int | None = None) -> UInt8[np.ndarray, "..."]:
  """Scales integers of any type to 0..255.

  The range is chosen by the file alone, by the same rule for training images, prompts and queries: what the file
  states, or else the depth that its values need.
  """
  least, most = int(values.min()), int(values.max())
  if least < 0 or most > _WHITES[-1]:
    raise InputError(f"{where}: found values {least}..{most}, expected 8 or 16 bits, unsigned")
  white = stated if stated is not None and most <= stated <= _WHITES[-1] else next(w for w in _WHITES if most <= w)
  if white != _WHITES[-1]:
    warn_once(f"images of 16 or 32 bits whose values end at {white} or below are read with {white} as white")
  return np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def _stated_white(image: Image.Image) -> int | None:
  """Returns the largest value that a TIFF file states for its pixels, or None."""
  found = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
  values = found if isinstance(found, tuple) else (found,)
  return max(values) if values and all(isinstance(value, int) and value > 0 for value in values) else None


def _deep_colors(data: bytes, image: Image.Image, where: str) -> UInt8[np.ndarray, "h w 3"] | None:
  """Decodes colors of 16 bits, of which Pillow 13 keeps the upper 8 only.

  Returns the pixels before they are turned upright; None for any other file, or if OpenCV cannot read it.
  """
  if image.format == "PNG":
    deep = len(data) > 25 and data[24] == 16 and data[25] in _SIXTEEN_BIT_PNG
  else:
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, ()) if image.format == "TIFF" else ()
    deep = len(bits) >= 3 and set(bits) == {16} and getattr(image, "n_frames", 1) == 1
  if not deep:
    return None
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
    return None
  found = _as_eight_bits(pixels[..., 2::-1], where, _stated_white(image))
  if pixels.shape[2] == 4 and image.mode in ("RGBA", "LA"):
    found = _without_hidden(found, pixels[..., 3])
  return found


def _without_hidden(pixels: UInt8[np.ndarray, "h w 3"], alpha: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """Returns an image whose transparent pixels are white: editors leave colors there that nobody sees."""
  hidden = alpha == 0
  if not hidden.any():
    return pixels
  warn_once("transparent pixels (alpha 0) of images are read as white, regardless of the color stored for them")
  return np.where(hidden[..., None], np.uint8(_HIDDEN), pixels)
