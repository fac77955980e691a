"""Pictures that people look at: arrays of pixels and labels in, arrays of pixels or PNG files out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from seggpt_jax.files import write_whole

_PIXELS_AT_A_TIME = 2**22  # of large images, whose intermediate results would fill the memory


def overlay(
  image: UInt8[np.ndarray, "h w 3"],
  labels: Integer[np.ndarray, "h w"],
  palette: UInt8[np.ndarray, "n 3"],
  opacity: float | int = 0.6,
) -> UInt8[np.ndarray, "h w 3"]:
  """Tints an image with the colors of its classes. The background stays as it is.

  Args:
    image: the image.
    labels: class indices 0..N-1.
    palette: the color of each class.
    opacity: 0 shows the image alone, 1 the colors alone.
  """
  picture = np.empty_like(image)
  rows = max(_PIXELS_AT_A_TIME // max(image.shape[1], 1), 1)
  for start in range(0, len(image), rows):
    own, part = image[start : start + rows], labels[start : start + rows]
    tinted = Image.blend(Image.fromarray(own), Image.fromarray(palette[part]), opacity)
    picture[start : start + rows] = np.where((part > 0)[..., None], np.asarray(tinted), own)
  return picture


def title_height(width: int) -> int:
  """Returns the height in pixels of the titles above panels of a width, so that they can be read at any size."""
  return min(max(width // 14, 12), 64)


def titled_row(panels: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]]) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Puts panels side by side, each below its title.

  Args:
    panels: titles and pixels; all panels have the same size.
  """
  width = panels[0][1].shape[1]
  height = title_height(width)
  bar = Image.new("RGB", (width * len(panels), height), "white")
  for index, (title, _) in enumerate(panels):
    # Drawn apart, so that a title that is too long ends at its panel's edge.
    cell = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(cell).text((2, 0), title, fill="black", font=ImageFont.load_default(0.75 * height))
    bar.paste(cell, (index * width, 0))
  return np.concatenate([np.asarray(bar), np.concatenate([pixels for _, pixels in panels], axis=1)])


def encode_png(pixels: np.ndarray) -> bytes:
  """Returns a PNG file of `[H, W]` uint8 or uint16, or of `[H, W, 3]` uint8."""
  # The least compression: the default takes longer than the network on large images, and saves a tenth of the size.
  return encode(pixels, "png", compress_level=1)


def encode(pixels: np.ndarray, form: str, **options: Any) -> bytes:
  """Returns an image file of a form that Pillow writes."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form, **options)
  return file.getvalue()


def write_png(path: Path, pixels: np.ndarray, *, replace: bool = False) -> None:
  """Writes `[H, W]` uint8 or uint16, or `[H, W, 3]` uint8.

  Args:
    path: the file.
    pixels: its pixels.
    replace: see `files.write_whole`.

  Raises:
    InputError: the folder cannot be written to, or the file is one of the user's.
  """
  write_whole(path, lambda file: file.write(encode_png(pixels)), replace=replace)
