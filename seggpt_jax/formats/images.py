"""Image files of any kind, local or remote: a path or bytes in, upright RGB pixels out.

Training, inference and preparation all read images with this module, so that a file means the same everywhere.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from seggpt_jax.errors import InputError, one_line, refuse, warn_once
from seggpt_jax.files import decode_text, expand, plain_name
from seggpt_jax.formats.depth import as_eight_bits, deep_colors, stated_white, without_hidden
from seggpt_jax.written import is_listed

# Only these decoders see what users have. Others start programs (EPS runs Ghostscript), draw vectors, or read formats
# that no camera and no labeling tool writes.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
# TIFF: the tag that says what a page is, and the bits of overviews and masks.
_SUBFILE_TYPE, _OVERVIEW_OR_MASK, _MOST_OVERVIEWS = 254, 1 | 4, 64
_LIMIT = "SEGGPT_MAX_PIXELS"  # in the environment: most pixels of an image
ORIENTATION = 274  # the EXIF tag
# How to turn the pixels of each orientation upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  1: lambda pixels: pixels,
  2: lambda pixels: pixels[:, ::-1],
  3: lambda pixels: pixels[::-1, ::-1],
  4: lambda pixels: pixels[::-1],
  5: lambda pixels: pixels.swapaxes(0, 1),
  6: lambda pixels: np.rot90(pixels, 3),
  7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
  8: np.rot90,
}


# Junk that systems and programs leave in folders. Hidden files (.DS_Store, ._0001.jpg) are passed over as well.
_JUNK = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})
_HEIF = frozenset({".heic", ".heif", ".heics", ".heifs", ".hif"})
_HEIF_STARTS = tuple(
  b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)
_HEIF_HINT = "to read HEIC, pip install 'seggpt-jax[heif]'"
_MOST_ENDINGS = 5  # that one line names

FolderId = tuple[int, int]
SkipFolder = Callable[[str], str]  # the path of a folder in, the reason to pass it over out; "" to enter it


@functools.cache
def image_endings() -> frozenset[str]:
  """Returns the endings, in lower case, of the files that can be read as images."""
  _register_heif()
  known = {ext for ext, plugin in Image.registered_extensions().items() if plugin in Image.OPEN and plugin in FORMATS}
  return frozenset(known)


def is_image(path: str) -> bool:
  """Returns True if a file has an ending of images that Pillow reads."""
  return os.path.splitext(path)[1].lower() in image_endings()


@functools.cache
def _register_heif() -> None:
  """Lets Pillow read HEIC if the package for it is installed."""
  with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()


def without_ending(name: str) -> str:
  """Returns the name of an image file without its ending. A dot may be part of a name: `scan.v2` has no ending."""
  stem, ending = os.path.splitext(name)
  return stem if ending.lower() in image_endings() | _HEIF else name


def is_junk(name: str) -> bool:
  """Returns True for hidden files and folders, and for files and folders that systems leave everywhere."""
  return name.startswith(".") or name.lower() in _JUNK


def _entries(directory: str, recursive: bool) -> list[tuple[str, bool]]:
  """Returns the name of every file and folder in a folder, sorted, and whether it is a folder."""
  # Strings, because path objects for 100,000 files take longer than everything else before the first step.
  if os.path.isdir(directory):
    with os.scandir(directory) as entries:
      return sorted((entry.name, entry.is_dir()) for entry in entries)
  # Each question to a remote file system takes a round trip, so only those are asked that change the result.
  return sorted(
    (path.name, recursive and os.path.splitext(path.name)[1].lower() not in image_endings() and path.is_dir())
    for path in epath.Path(directory).iterdir()
  )


def is_results_folder(path: str | os.PathLike) -> bool:
  """Returns whether a folder holds the results of a run of `seggpt infer`."""
  return os.path.isfile(os.path.join(path, "run.json")) and os.path.isdir(os.path.join(path, "progress"))


def _why_not(path: str, skip: SkipFolder | None, above: tuple[FolderId, ...]) -> str:
  """Returns the reason to pass a folder over, or "": results of a run are never images to read."""
  if is_results_folder(path):
    return "results of a run"
  if is_circle(path, above):
    return "a link in a circle"
  return skip(path) if skip else ""


def is_circle(path: str, above: Sequence[FolderId]) -> bool:
  """Returns whether a folder is a link to a folder that leads to it."""
  return os.path.islink(path) and folder_id(path) in above


def folder_id(path: str) -> FolderId:
  """Returns the device and number of a local folder, which are the same for all links to it."""
  found = os.stat(path)
  return found.st_dev, found.st_ino


def _walk(
  directory: str,
  recursive: bool,
  skip: SkipFolder | None,
  passed: collections.Counter[str],
  prefix: str = "",
  above: tuple[FolderId, ...] = (),
  has_results: bool = False,
) -> Iterator[tuple[str, str]]:
  """Yields the name and the path of every image file, and counts in `passed` what else there is."""
  local = "://" not in directory
  has_results = has_results or (local and is_results_folder(directory))
  above = (*above, folder_id(directory)) if local else ()
  for file, is_folder in _entries(directory, recursive):
    path, (name, ending) = f"{directory}/{file}", os.path.splitext(file)
    if is_junk(file):
      continue
    if is_folder:
      reason = "not entered" if not recursive else _why_not(path, skip, above) if local else skip(path) if skip else ""
      if reason:
        passed[f"folder ({reason})"] += 1
      else:
        yield from _walk(path, recursive, skip, passed, f"{prefix}{file}/", above, has_results)
    elif has_results and is_listed(path):
      passed[f"{ending} (result of a run)"] += 1
    elif ending.lower() in image_endings():
      yield plain_name(prefix + name), path
    else:
      passed[ending or "without an ending"] += 1


def _passed_over(passed: collections.Counter[str]) -> str:
  """Describes what a listing left out, in words such as "passed over: 2 .txt, 1 without an ending"."""
  named = [
    f"{count} {what.replace('folder', 'folders', 1) if count > 1 else what}"
    for what, count in passed.most_common(_MOST_ENDINGS)
  ]
  rest = passed.total() - sum(count for _, count in passed.most_common(_MOST_ENDINGS))
  hint = f"; {_HEIF_HINT}" if _HEIF & {what.lower() for what in passed} else ""
  return f"passed over: {', '.join(named)}{f', {rest} others' if rest else ''}{hint}"


def list_images(
  directory: str | os.PathLike,
  recursive: bool = False,
  problems: list[str] | None = None,
  skip: SkipFolder | None = None,
) -> dict[str, str]:
  """Lists the image files of a folder, sorted by name. Warns, in one line, about files and folders that it leaves out.

  Args:
    directory: local folder, or a remote one such as gs://BUCKET/FOLDER.
    recursive: True also lists subfolders, with names such as `street/0001`.
    problems: list for descriptions of what is wrong; None raises instead. Of two files with one name the first is kept.
    skip: function that says why a subfolder must be left out, or "".

  Returns:
    Path of each image by its name, which is the relative path without extension, in the form of `files.plain_name`.

  Raises:
    InputError: the folder is missing or has no images, or two files differ only in their extension.
  """
  directory = remote_or_local(directory)
  if not directory.is_dir():
    refuse(
      f"{directory}: {'is a file' if directory.exists() else 'folder not found'}, expected a folder of images", problems
    )
    return {}
  found: dict[str, str] = {}
  passed: collections.Counter[str] = collections.Counter()
  try:
    for name, path in _walk(os.fspath(directory), recursive, skip, passed):
      if name in found:
        refuse(f"{path}: found {os.path.basename(found[name])} next to it, expected one file for each name", problems)
      found.setdefault(name, path)
  except OSError as error:
    raise InputError(f"{directory}: cannot be listed: {error.strerror or error}") from error
  if not found:
    left = f" ({_passed_over(passed)})" if passed else ""
    refuse(f"{directory}: found no images{left}, expected files that Pillow can read, such as .png or .jpg", problems)
  elif passed:
    warn_once(f"{directory}: {_passed_over(passed)}")
  return dict(sorted(found.items()))


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
  _register_heif()
  formats = [each for each in FORMATS if each in _known_formats()]
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
def _known_formats() -> frozenset[str]:
  """Returns the formats that this build of Pillow has."""
  Image.init()
  if os.environ.get(_LIMIT, "").isdecimal():
    Image.MAX_IMAGE_PIXELS = int(os.environ[_LIMIT]) // 2  # Pillow refuses twice as many
  return frozenset(Image.OPEN)


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
    hint = f"; {_HEIF_HINT}" if data[4:12] in _HEIF_STARTS else ""
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
  return stated if stated in _TURNS else 1


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

  Grayscale is repeated over the channels, palette indices become colors, 16 bits are scaled to 8 (see `depth`), CMYK is
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
      return np.ascontiguousarray(_TURNS[_orientation(image, where)](pixels))
  with _decoding(where):
    # A TIFF that is turned is left to Pillow, as OpenCV turns some of them itself.
    deep = None if image.format == "TIFF" and _orientation(image, where) != 1 else deep_colors(data, image, where)
  if deep is not None:
    return np.ascontiguousarray(_TURNS[_orientation(image, where)](deep))
  return upright_pixels(image, where)


def upright_pixels(image: Image.Image, where: str) -> UInt8[np.ndarray, "h w 3"]:
  """Converts a Pillow image to upright RGB pixels, with the rules of `decode_image`.

  Args:
    image: the image, decoded or only opened.
    where: name of the image, for error messages.

  Raises:
    InputError: the image is damaged, cut off, or has floating-point values.
  """
  white = stated_white(image)
  image = load_upright(image, where)
  if image.mode in _SIXTEEN_BIT or image.mode == "I":
    image = Image.fromarray(as_eight_bits(np.asarray(image), where, white))
  elif image.mode == "F":
    raise InputError(f"{where}: found floating-point values, expected 8 or 16 bits, unsigned")
  if not image.has_transparency_data:
    return np.array(image.convert("RGB"))
  found = np.asarray(image.convert("RGBA"))
  return np.ascontiguousarray(without_hidden(found[..., :3], found[..., 3]))


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
  """Reads an image file, local or remote, as upright RGB pixels; see `decode_image`.

  Raises:
    InputError: the file is missing or cannot be read as an image.
  """
  return decode_image(read_bytes(path), os.fspath(path))
