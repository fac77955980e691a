"""Predictions as files: label maps, colored label maps and pictures to look at.

In: arrays of one image. Out: PNG and JSON files, each of which appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole, writing
from seggpt_jax.inference import tiling
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.palette import fixed_palette

Kind = Literal["label", "color", "concat", "overlay", "confidence", "rle"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_KINDS: tuple[Kind, ...] = ("label", "color", "concat")


def check_kinds(kinds: Sequence[str]) -> None:
  """Raises InputError for what cannot be written of a prediction, or not without a package that is missing."""
  for kind in kinds:
    if kind not in KINDS:
      raise InputError(f"--save: found {kind!r}, expected some of {', '.join(KINDS)}")
  if not kinds:
    raise InputError(f"--save: found nothing, expected some of {', '.join(KINDS)}")
  if "rle" in kinds:
    _mask_module()


def overlay(
  image: UInt8[np.ndarray, "h w 3"],
  labels: Integer[np.ndarray, "h w"],
  palette: UInt8[np.ndarray, "n 3"],
  opacity: float = 0.6,
) -> UInt8[np.ndarray, "h w 3"]:
  """Tints an image with the colors of its classes; the background stays as it is."""
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
    Left to right, each panel of the query's size: the query, the prompt, the prompt's mask, the painted colors, the
    decoded labels over the query, and the truth over the query.
  """
  size, palette = query.shape[:2], prediction.palette
  panels = [query]
  if prompt is not None:
    image, labels = prompt
    panels += [tiling.resize_image(image, size), palette[tiling.resize_labels(labels, size)]]
  panels += [prediction.colors, overlay(query, prediction.labels, palette)]
  if truth is not None:
    # The truth may hold classes that no prompt has shown.
    more = fixed_palette(1 + int(truth.max()))[len(palette) :]
    panels.append(overlay(query, truth, np.concatenate([palette, more])))
  return np.concatenate(panels, axis=1)


def run_lengths(prediction: Prediction, name: str) -> list[dict[str, Any]]:
  """A prediction as COCO's results have it: one entry for each class that was found, but the background.

  Args:
    prediction: of an image.
    name: of the image.

  Returns:
    Plain values: `image_id` (the name), `category_id` (the class index), `segmentation` (compressed run lengths with
    their `size`, height and width), `area` in pixels, `bbox` (left, top, width, height), and as `score` the mean
    confidence of its pixels, 0..1.
  """
  mask_module, confidence, entries = _mask_module(), prediction.confidence(), []
  for index in np.unique(prediction.labels[prediction.labels > 0]).tolist():
    mask = prediction.mask(index)
    encoded = mask_module.encode(np.asfortranarray(mask.astype(np.uint8)))
    entries.append(
      {
        "image_id": name,
        "category_id": index,
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": mask_module.toBbox(encoded).tolist(),
        "score": float(confidence[mask].mean()),
      }
    )
  return entries


def _mask_module():
  try:
    from pycocotools import mask
  except ImportError as error:
    raise InputError("--save=rle: expected pycocotools, not installed: pip install 'seggpt-jax[coco]'") from error
  return mask


def write_prediction(
  directory: str | os.PathLike,
  name: str,
  query: UInt8[np.ndarray, "h w 3"],
  prompts: Sequence[tuple[np.ndarray, np.ndarray]],
  prediction: Prediction,
  truth: Integer[np.ndarray, "h w"] | None = None,
  kinds: Sequence[Kind] = DEFAULT_KINDS,
) -> None:
  """Writes KIND/NAME.png for each kind; where seams were painted again, those go to stitch/KIND/NAME.png.

  Args:
    directory: of the results.
    name: of the query.
    query: the image.
    prompts: of which the first is shown.
    prediction: of the query.
    truth: the query's true label map, where there is one.
    kinds: "label" (class indices), "color" (in the palette's colors), "concat" (everything in a row), "overlay" (the
      colors over the image), "confidence" (`Prediction.confidence` as gray values 0..255), and "rle" (`run_lengths` in
      rle/NAME.json).

  Raises:
    InputError: the directory cannot be written to.
  """
  directory = Path(directory)
  if prediction.unstitched is not None:
    _write(directory / "stitch", name, query, prompts, prediction, truth, kinds)
  _write(directory, name, query, prompts, prediction.unstitched or prediction, truth, kinds)


def _write(directory, name, query, prompts, prediction, truth, kinds) -> None:
  pictures = {
    "label": lambda: prediction.labels,
    "color": lambda: prediction.palette[prediction.labels],
    "concat": lambda: concat(query, prompts[0] if prompts else None, prediction, truth),
    "overlay": lambda: overlay(query, prediction.labels, prediction.palette),
    "confidence": lambda: np.round(255 * prediction.confidence()).astype(np.uint8),
  }
  for kind in kinds:
    if kind == "rle":
      write_json(directory / kind / f"{name}.json", run_lengths(prediction, name))
    else:
      write_png(directory / kind / f"{name}.png", pictures[kind]())


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
