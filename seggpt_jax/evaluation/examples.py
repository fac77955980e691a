"""Pictures to look at beside the numbers of a benchmark: images and masks in, rows of equally large panels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from seggpt_jax.inference import outputs, tiling
from seggpt_jax.palette import IGNORE, fixed_palette

_HEIGHT, _WIDTH, _GAP, _TITLE = 144, 192, 4, 14
_ASKED = np.array([(0, 0, 0), (255, 0, 200)], np.uint8)


def panel(
  image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"] | None = None, num_objects: int = 1
) -> UInt8[np.ndarray, "panel_h panel_w 3"]:
  """An image at the size of a panel, as large as it goes; with a mask or label map over it.

  Args:
    image: of any size.
    labels: of the same size; IGNORE is left as it is.
    num_objects: the largest label, which decides on the colors.
  """
  height, width = image.shape[:2]
  scale = min(_HEIGHT / height, _WIDTH / width)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  image = tiling.resize_image(image, size)
  if labels is not None:
    labels = tiling.resize_labels(np.where(labels == IGNORE, 0, labels), size)
    image = outputs.overlay(image, labels, _colors(num_objects))
  top, left = (_HEIGHT - size[0]) // 2, (_WIDTH - size[1]) // 2
  framed = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
  framed[top : top + size[0], left : left + size[1]] = image
  return framed


def strip(
  rows: Sequence[Sequence[UInt8[np.ndarray, "panel_h panel_w 3"]]], titles: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
  """Panels in rows, each row under its title.

  Args:
    rows: of panels, equally many in each.
    titles: of the rows.
  """
  height, width = _TITLE + _HEIGHT + _GAP, len(rows[0]) * (_WIDTH + _GAP)
  sheet = Image.new("RGB", (width, len(rows) * height), "white")
  pen = ImageDraw.Draw(sheet)
  for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
    # Pillow's built-in font has no letters beyond Latin-1, and folders may be named in any.
    pen.text((2, line * height), title.encode("latin-1", "replace").decode("latin-1"), fill="black")
    for column, pixels in enumerate(row):
      sheet.paste(Image.fromarray(pixels), (column * (_WIDTH + _GAP), line * height + _TITLE))
  return np.asarray(sheet)


def _colors(num_objects: int) -> UInt8[np.ndarray, "n 3"]:
  return _ASKED if num_objects == 1 else fixed_palette(1 + num_objects)
