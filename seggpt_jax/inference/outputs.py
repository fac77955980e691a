"""Predictions as files: label maps, coloured label maps and pictures to look at.

In: arrays of one image. Out: PNG and JSON files, each of which appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from seggpt_jax.files import write_whole, writing
from seggpt_jax.inference import tiling
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.palette import fixed_palette


def overlay(
  image: UInt8[np.ndarray, "h w 3"],
  labels: Integer[np.ndarray, "h w"],
  palette: UInt8[np.ndarray, "n 3"],
  opacity: float = 0.6,
) -> UInt8[np.ndarray, "h w 3"]:
  """Tints an image with the colours of its classes; the background stays as it is."""
  tinted = Image.blend(Image.fromarray(image), Image.fromarray(palette[labels]), opacity)
  return np.where((labels > 0)[..., None], np.asarray(tinted), image)


def concat(
  query: UInt8[np.ndarray, "h w 3"],
  prompt: tuple[np.ndarray, np.ndarray] | None,
  prediction: Prediction,
  truth: Integer[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "h w2 3"]:
  """Everything about one image in a row.

  Args:
    query: the image.
    prompt: the first prompt, of any size; None if there is none to see.
    prediction: of the query.
    truth: the query's true label map, where there is one.

  Returns:
    Left to right, each panel of the query's size: the query, the prompt, the prompt's mask, the painted colours, the
    decoded labels over the query, and the truth over the query.
  """
  size, palette = query.shape[:2], prediction.palette
  panels = [query]
  if prompt is not None:
    image, labels = prompt
    panels += [tiling.resize_image(image, size), palette[tiling.resize_labels(labels, size)]]
  panels += [prediction.colours, overlay(query, prediction.labels, palette)]
  if truth is not None:
    # The truth may hold classes that no prompt has shown.
    more = fixed_palette(1 + int(truth.max()))[len(palette) :]
    panels.append(overlay(query, truth, np.concatenate([palette, more])))
  return np.concatenate(panels, axis=1)


def write_prediction(
  directory: str | os.PathLike,
  name: str,
  query: UInt8[np.ndarray, "h w 3"],
  prompts: Sequence[tuple[np.ndarray, np.ndarray]],
  prediction: Prediction,
  truth: Integer[np.ndarray, "h w"] | None = None,
) -> None:
  """Writes label/NAME.png, color/NAME.png and concat/NAME.png.

  Raises:
    InputError: the directory cannot be written to.
  """
  directory = Path(directory)
  write_png(directory / "label" / f"{name}.png", prediction.labels)
  write_png(directory / "color" / f"{name}.png", prediction.palette[prediction.labels])
  write_png(directory / "concat" / f"{name}.png", concat(query, prompts[0] if prompts else None, prediction, truth))


def write_png(path: Path, pixels: np.ndarray) -> None:
  """Writes `[H, W]` uint8 or uint16, or `[H, W, 3]` uint8.

  Raises:
    InputError: the folder cannot be written to.
  """
  # The least compression: the default takes longer than the network on large pictures, for a tenth of the size.
  write_whole(path, lambda file: Image.fromarray(pixels).save(file, "png", compress_level=1))


def write_json(path: Path, value: Any) -> None:
  """Writes plain values.

  Raises:
    InputError: the folder cannot be written to.
  """
  write_whole(path, lambda file: file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"))


def write_text(path: Path, text: str) -> None:
  """Writes a text file.

  Raises:
    InputError: the folder cannot be written to.
  """
  write_whole(path, lambda file: file.write(text.encode()))


def remove(path: Path) -> None:
  """Removes a file if it is there.

  Raises:
    InputError: it cannot be removed.
  """
  with writing(path):
    path.unlink(missing_ok=True)
