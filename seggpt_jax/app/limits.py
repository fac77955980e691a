"""Limits of a service: how large a request may be, what it may cost, and how many may be in memory at once.

In: sizes that are known before anything is decoded. Out: nothing, or an error that says which limit was exceeded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator, Sequence

from PIL import Image

from seggpt_jax.data.scale import Scale, window_count
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import open_image
from seggpt_jax.inference.options import InferenceOptions

# Memory of a request while it is answered: each byte of its body is also held decoded from base64, and each pixel as an
# image, resized, as colors, as labels and as confidence.
BYTES_PER_BODY_BYTE, BYTES_PER_PIXEL = 3, 24
_MEMORY = 4 * 2**30  # of all requests together, if nothing else is chosen
_COPIES = {"none": 1, "horizontal": 2, "vertical": 2, "both": 4}  # of an image, by `InferenceOptions.flips`


class TooLargeError(InputError):
  """A request is larger than the service accepts."""


class BusyError(RuntimeError):
  """The service has as much work as it accepts; the same request may succeed later."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of a service.

  Raises:
    InputError: the largest request could never be accepted.
  """

  body_bytes: int = 64 * 2**20  # largest body of a request
  # pixels of all images and label maps of one request together, and again at the zoom if there is one
  pixels: int = 50_000_000
  images: int = 16  # images to segment in one request
  prompts: int = 16  # prompts of one request, or of one stored set
  # passes of one image through the network: its windows times its prompts, for every mirrored copy
  canvases: int = 1024
  seconds: float | int = 60  # time to read a request, and again to answer it
  queue: int = 64  # images that may wait for the network
  # estimated memory of all requests together; 0 for 4 GiB, or more if the largest request needs it
  memory_bytes: int = 0
  prompt_bytes: int = 2**30  # memory of all stored prompts together

  def __post_init__(self):
    largest = self.body_bytes * BYTES_PER_BODY_BYTE + 2 * self.pixels * BYTES_PER_PIXEL
    if not self.memory_bytes:
      object.__setattr__(self, "memory_bytes", max(_MEMORY, largest))
    elif self.memory_bytes < largest:
      raise InputError(
        f"memory_bytes: found {self.memory_bytes} bytes, expected at least {largest} for the largest request"
      )
    if self.queue < self.images:
      raise InputError(f"queue: found {self.queue}, expected at least the {self.images} images of a request")

  def check_count(self, name: str, found: int, most: int) -> None:
    """Raises TooLargeError for more images or prompts than are accepted."""
    if found > most:
      raise TooLargeError(f"{name}: found {found}, expected at most {most}")

  def check_pixels(self, files: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
    """Reads the sizes of image files from their headers and adds up their pixels. Nothing is decoded.

    Args:
      files: name for messages and content of each file.

    Returns:
      Height and width of each file, before it is turned upright.

    Raises:
      TooLargeError: there are more pixels than are accepted.
      InputError: a file is not an image.
    """
    sizes, total = [], 0
    for name, data in files:
      try:
        width, height = open_image(data, name).size
      except InputError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
          raise TooLargeError(error) from error
        raise
      total += height * width
      if total > self.pixels:
        raise TooLargeError(
          f"{name}: found {width} x {height} pixels, {total} with the images before it, expected at most {self.pixels} "
          "in one request"
        )
      sizes.append((height, width))
    return sizes

  def check_zoom(self, sizes: Sequence[tuple[int, int]], scale: Scale) -> int:
    """Returns the pixels of images at a zoom, 0 without one; raises TooLargeError for more than are accepted."""
    total = sum(math.prod(scale.size(size)) for size in sizes)
    if total > self.pixels:
      raise TooLargeError(f"zoom: found {scale.zoom:g}, which makes {total} pixels, expected at most {self.pixels}")
    return total

  def check_canvases(
    self, sizes: Sequence[tuple[int, int]], options: InferenceOptions, prompts: int, tile: tuple[int, int]
  ) -> None:
    """Raises TooLargeError for an image that takes more passes through the network than are accepted."""
    for index, size in enumerate(sizes):
      # A camera may have stored an image lying on its side.
      count = max(count_canvases(options, shape, prompts, tile) for shape in (size, size[::-1]))
      if count > self.canvases:
        raise TooLargeError(
          f"image[{index}]: needs {count} passes through the network, expected at most {self.canvases}; use fewer "
          "prompts, a smaller split or zoom, or fewer flips"
        )


def count_canvases(options: InferenceOptions, shape: tuple[int, int], prompts: int, tile: tuple[int, int]) -> int:
  """Returns how many canvases go through the network for one image, at most.

  Args:
    options: how the image is shown.
    shape: height and width of the image.
    prompts: number of prompts; 0 for a learned prompt.
    tile: height and width of the network's input.
  """
  total = 0
  for scale in options.scales:
    size = [max(side, min(tile)) for side in scale.size(shape, tile)]
    windows = math.prod(window_count(*sides, options.overlap) for sides in zip(size, tile, strict=True))
    if options.stitch_width and scale.split > 1:
      windows += 2 * scale.split * (scale.split - 1) + (scale.split - 1) ** 2
    # A prompt is cut into tiles, or consists of cells, which other images fill.
    total += windows * max(-(-prompts * scale.split**2 // scale.cells), 1)
  return total * _COPIES[options.flips]


class Budget:
  """Memory that requests share. A request that does not fit is refused at once instead of waiting.

  Args:
    capacity: bytes of all requests together.
  """

  def __init__(self, capacity: int):
    self._capacity, self._lock = capacity, threading.Lock()
    self.used = 0

  @contextlib.contextmanager
  def reserve(self, size: int) -> Iterator[None]:
    """Reserves bytes while the context is open.

    Raises:
      BusyError: other requests hold too much.
    """
    with self._lock:
      if self.used + size > self._capacity:
        raise BusyError("the service is busy: its memory for requests is in use")
      self.used += size
    try:
      yield
    finally:
      with self._lock:
        self.used -= size
