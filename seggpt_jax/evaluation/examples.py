"""Draws the pictures that accompany a benchmark's numbers: images and masks in, rows of equally large panels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from seggpt_jax.inference import pictures, tiling
from seggpt_jax.palette import IGNORE, display_palette

_HEIGHT, _WIDTH, _GAP, _TITLE = 144, 192, 4, 14


def panel(
  image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"] | None = None, num_objects: int = 1
) -> UInt8[np.ndarray, "panel_h panel_w 3"]:
  """Returns an image, scaled to fit a panel and centered in it, with labels drawn over the image.

  Args:
    image: image of any size.
    labels: mask or label map of the same size; pixels with IGNORE are drawn as background.
    num_objects: largest label, background not counted.
  """
  height, width = image.shape[:2]
  scale = min(_HEIGHT / height, _WIDTH / width)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  image = tiling.resize_image(image, size)
  if labels is not None:
    labels = tiling.resize_labels(np.where(labels == IGNORE, 0, labels), size)
    image = pictures.overlay(image, labels, display_palette(1 + num_objects))
  top, left = (_HEIGHT - size[0]) // 2, (_WIDTH - size[1]) // 2
  framed = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
  framed[top : top + size[0], left : left + size[1]] = image
  return framed


def strip(
  rows: Sequence[Sequence[UInt8[np.ndarray, "panel_h panel_w 3"]]], titles: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns rows of panels, each row below its title.

  Args:
    rows: panels of each row, the same number in all rows.
    titles: title of each row.
  """
  height, width = _TITLE + _HEIGHT + _GAP, len(rows[0]) * (_WIDTH + _GAP)
  sheet = Image.new("RGB", (width, len(rows) * height), "white")
  pen = ImageDraw.Draw(sheet)
  for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
    # Pillow's built-in font has only Latin-1 letters, and titles contain names of folders.
    pen.text((2, line * height), title.encode("latin-1", "replace").decode("latin-1"), fill="black")
    for column, pixels in enumerate(row):
      sheet.paste(Image.fromarray(pixels), (column * (_WIDTH + _GAP), line * height + _TITLE))
  return np.asarray(sheet)
