"""Samples as files to be stored: images stay byte for byte where possible, labels become PNG files of class indices."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax.data.bad_files import BadFile
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import EncodedSource
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.formats.images import decode_image, open_image
from seggpt_jax.formats.labels import check_size, classes_in

_ORIENTATION = 0x0112


class EncodedSample(NamedTuple):
  """A sample as files: the image, the label (PNG of class indices and IGNORE), and the label's foreground classes."""

  name: str
  group: str
  image: bytes
  label: bytes
  classes: tuple[int, ...]


def encode_sample(source: EncodedSource, index: int, group: str = "", shorter_side: int = 0) -> EncodedSample:
  """Encodes one sample as files.

  JPEG and PNG files with one or three channels are kept byte for byte. Other images, and images that an EXIF tag
  rotates, become PNG files of the pixels that training would see. Images that are shrunk stay JPEG if they were JPEG.

  Args:
    source: the samples.
    index: index of the sample.
    group: group of the sample.
    shorter_side: largest shorter side in pixels. Larger images are shrunk to it with their labels; 0 shrinks none.

  Raises:
    InputError: a file is missing, damaged or cut off, or image and label do not fit together.
  """
  data, where = source.encoded_image(index)
  image = decode_image(data, where)
  label = source.label(index)
  if label.shape != image.shape[:2]:
    label = source[index]["label"]  # raises an error that names the label file
    check_size(label, image.shape[:2], where)
  if 0 < shorter_side < min(label.shape):
    image, label = _shrunk(image, label, shorter_side)
    data = _jpeg(image) if image_ending(data) == ".jpg" else _png(image)
  elif not _can_copy(data, where):
    data = _png(image)
  return EncodedSample(source.name(index), group, data, _png(label), classes_in(label))


def as_stored(data: bytes, where: str) -> tuple[bytes, str]:
  """Returns an image file as it is stored, with the rules of `encode_sample`, and its ending.

  Args:
    data: content of the file.
    where: name of the file, for error messages.

  Raises:
    InputError: the file is damaged, cut off, or no image.
  """
  image = decode_image(data, where)
  data = data if _can_copy(data, where) else _png(image)
  return data, image_ending(data)


def _can_copy(data: bytes, where: str) -> bool:
  """Returns True if the image file can be stored byte for byte."""
  image = open_image(data, where)
  return (
    image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
  )


def _shrunk(
  image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], shorter_side: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"]]:
  """Shrinks image and label and keeps the aspect ratio: bicubic for the image, nearest neighbor for the label."""
  factor = shorter_side / min(label.shape)
  height, width = (max(round(length * factor), 1) for length in label.shape)
  smaller = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(smaller), np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """Encodes pixels as JPEG in high quality, so that little is lost in addition to the first compression."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
  return file.getvalue()


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def image_ending(data: bytes) -> str:
  """Returns the file extension for `EncodedSample.image`: .jpg or .png."""
  return ".jpg" if data.startswith(b"\xff\xd8") else ".png"


def encoded_samples(
  source: EncodedSource,
  positions: Iterable[int],
  groups: Sequence[str],
  num_workers: int,
  skip_bad: bool,
  shorter_side: int = 0,
) -> Iterator[EncodedSample | BadFile]:
  """Yields encoded samples in order. Threads encode ahead; decoding and compression run outside Python's lock.

  Args:
    source: the samples.
    positions: indices of the samples to encode.
    groups: group of every sample of the source.
    num_workers: number of threads.
    skip_bad: True yields a `BadFile` in place of a sample that cannot be used; False raises.
    shorter_side: largest shorter side in pixels, see `encode_sample`.

  Raises:
    InputError: a sample cannot be used, and `skip_bad` is False.
  """

  def encode(index: int) -> EncodedSample | BadFile:
    try:
      return encode_sample(source, index, groups[index], shorter_side)
    except InputError as error:
      if not skip_bad:
        raise
      return BadFile(source.name(index), one_line(error))

  with contextlib.closing(read_ahead(encode, positions, threads=num_workers, ahead=4 * num_workers)) as results:
    for _, result in results:
      yield result.result()
