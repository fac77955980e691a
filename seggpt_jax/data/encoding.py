"""Labelled images as files to be stored: image bytes as they are where that is possible, labels as PNG."""

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
from seggpt_jax.data.labels import IGNORE
from seggpt_jax.data.sources import EncodedSource, check_size
from seggpt_jax.errors import InputError

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


def encode_sample(source: EncodedSource, index: int, group: str = "") -> EncodedSample:
  """One sample as files.

  JPEG and PNG files with three channels or one are kept byte for byte. Others, and those that an EXIF tag turns, become
  PNG of the pixels that training would see.

  Raises:
    InputError: a file is missing, damaged or does not fit; also where only part of the image cannot be decoded.
  """
  data, where = source.encoded_image(index)
  image = decode_image(data, where)
  label = source.label(index)
  if label.shape != image.shape[:2]:
    label = source[index]["label"]  # says which file it is
    check_size(label, image.shape[:2], where)
  if not _kept(data, where):
    data = _png(image)
  found = np.flatnonzero(np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE])
  return EncodedSample(source.name(index), group, data, _png(label), tuple(found[found > 0].tolist()))


def _kept(data: bytes, where: str) -> bool:
  image = open_image(data, where)
  return (
    image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
  )


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def image_ending(data: bytes) -> str:
  """The ending of a file of `EncodedSample.image`."""
  return ".png" if data.startswith(b"\x89PNG") else ".jpg"


def encoded_samples(
  source: EncodedSource, positions: Iterable[int], groups: Sequence[str], num_workers: int, skip_bad: bool
) -> Iterator[EncodedSample | BadSample]:
  """Samples at positions, in order, encoded by threads: decoding and compression run outside Python's lock.

  Args:
    source: the samples.
    positions: which.
    groups: the group of every sample of the source.
    num_workers: threads.
    skip_bad: gives a `BadSample` in the place of one that cannot be used.

  Raises:
    InputError: a sample cannot be used, unless skip_bad.
  """

  def encode(index: int) -> EncodedSample | BadSample:
    try:
      return encode_sample(source, index, groups[index])
    except InputError as error:
      if not skip_bad:
        raise
      return BadSample(source.name(index), " ".join(str(error).split()))

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
