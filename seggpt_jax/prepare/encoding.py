"""Labeled images as files to be stored: image bytes as they are where that is possible, labels as PNG."""

from __future__ import annotations

import collections
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax.data.images import decode_image, open_image
from seggpt_jax.data.labels import classes_in
from seggpt_jax.data.sources import EncodedSource, check_size
from seggpt_jax.errors import InputError, one_line

_ORIENTATION = 0x0112


class EncodedSample(NamedTuple):
  """An image file, a label file (PNG of class indices and IGNORE), the label's classes but the background."""

  name: str
  group: str
  image: bytes
  label: bytes
  classes: tuple[int, ...]


class BadSample(NamedTuple):
  """A sample that cannot be used, and the line that says why."""

  name: str
  reason: str


def encode_sample(source: EncodedSource, index: int, group: str = "", shorter_side: int = 0) -> EncodedSample:
  """One sample as files.

  JPEG and PNG files with three channels or one are kept byte for byte. Others, and those that an EXIF tag turns, become
  PNG of the pixels that training would see. What is shrunk stays JPEG if it was.

  Args:
    source: the samples.
    index: which.
    group: its group.
    shorter_side: in pixels; images whose shorter side is longer are shrunk to it with their labels. 0 shrinks none.

  Raises:
    InputError: a file is missing, damaged or does not fit; also where only part of the image cannot be decoded.
  """
  data, where = source.encoded_image(index)
  image = decode_image(data, where)
  label = source.label(index)
  if label.shape != image.shape[:2]:
    label = source[index]["label"]  # says which file it is
    check_size(label, image.shape[:2], where)
  if 0 < shorter_side < min(label.shape):
    image, label = _shrunk(image, label, shorter_side)
    data = _jpeg(image) if image_ending(data) == ".jpg" else _png(image)
  elif not _kept(data, where):
    data = _png(image)
  return EncodedSample(source.name(index), group, data, _png(label), classes_in(label))


def _kept(data: bytes, where: str) -> bool:
  image = open_image(data, where)
  return (
    image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
  )


def _shrunk(
  image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], shorter_side: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"]]:
  """Bicubic with antialiasing for the image, nearest for the label; the shape is kept."""
  factor = shorter_side / min(label.shape)
  height, width = (max(round(length * factor), 1) for length in label.shape)
  smaller = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(smaller), np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """As good as the camera's own: what was lost before is not to be lost twice."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
  return file.getvalue()


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def image_ending(data: bytes) -> str:
  """The ending of a file of `EncodedSample.image`."""
  return ".jpg" if data.startswith(b"\xff\xd8") else ".png"


def encoded_samples(
  source: EncodedSource,
  positions: Iterable[int],
  groups: Sequence[str],
  num_workers: int,
  skip_bad: bool,
  shorter_side: int = 0,
) -> Iterator[EncodedSample | BadSample]:
  """Samples at positions, in order, encoded by threads: decoding and compression run outside Python's lock.

  Args:
    source: the samples.
    positions: which.
    groups: the group of every sample of the source.
    num_workers: threads.
    skip_bad: gives a `BadSample` in the place of one that cannot be used.
    shorter_side: see `encode_sample`.

  Raises:
    InputError: a sample cannot be used, unless skip_bad.
  """

  def encode(index: int) -> EncodedSample | BadSample:
    try:
      return encode_sample(source, index, groups[index], shorter_side)
    except InputError as error:
      if not skip_bad:
        raise
      return BadSample(source.name(index), one_line(error))

  return _ordered(encode, positions, num_workers)


def _ordered(
  function: Callable[[int], EncodedSample | BadSample], items: Iterable[int], num_workers: int
) -> Iterator[EncodedSample | BadSample]:
  """`map` by threads that run only a little ahead, so that memory stays small."""
  pending: collections.deque[Future] = collections.deque()
  executor = ThreadPoolExecutor(num_workers)
  try:
    for item in items:
      pending.append(executor.submit(function, item))
      if len(pending) > 4 * num_workers:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    executor.shutdown(cancel_futures=True)
