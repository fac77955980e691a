"""Predictions as files: label maps, colored label maps, and pictures to look at. Annotations are in `annotation_files`.

In: arrays of one image. Out: PNG, TIFF and JSON files, each written whole or not at all.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, TiffImagePlugin, TiffTags
from pycocotools import mask as mask_module

from seggpt_jax.errors import InputError, warn_once
from seggpt_jax.files import write_whole, writing
from seggpt_jax.formats.images import ORIENTATION, open_image, read_bytes
from seggpt_jax.inference import tiling
from seggpt_jax.inference.pictures import overlay, titled_row, write_png
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.queries import Query
from seggpt_jax.palette import display_palette
from seggpt_jax.written import remove_own

Kind = Literal["label", "color", "concat", "overlay", "confidence", "rle", "geotiff", "coco", "labelme", "yolo"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ANNOTATION_KINDS: tuple[Kind, ...] = ("coco", "labelme", "yolo")  # of `annotation_files`
_NEEDS_FILE = (*ANNOTATION_KINDS, "geotiff")  # which `annotation_files` and `write_geotiff` write
_ENDINGS = {"rle": ".json", "geotiff": ".tif", "coco": ".json", "labelme": ".json", "yolo": ".txt"}  # all others: .png
DEFAULT_KINDS: tuple[Kind, ...] = ("label", "color", "concat")
# Tags of a GeoTIFF: pixel scale, tie points, transformation, and the three of the keys of the projection.
_TAGS = {**dict.fromkeys((33550, 33922, 34264, 34736), TiffTags.DOUBLE), 34735: TiffTags.SHORT, 34737: TiffTags.ASCII}
_MOST_PANEL = 2048  # pixels: a picture of panels is for looking at, and an aerial image has 100 million pixels


def check_kinds(kinds: Sequence[str]) -> None:
  """Checks the kinds of results that a user asked for.

  Raises:
    InputError: the list is empty, or a kind is unknown.
  """
  for kind in kinds:
    if kind not in KINDS:
      raise InputError(f"--save: found {kind!r}, expected some of {', '.join(KINDS)}")
  if not kinds:
    raise InputError(f"--save: found nothing, expected some of {', '.join(KINDS)}")


def concat(
  query: UInt8[np.ndarray, "h w 3"],
  prompt: tuple[np.ndarray, np.ndarray] | None,
  prediction: Prediction,
  truth: Integer[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Draws everything about one image in a row of panels with titles.

  Args:
    query: the image.
    prompt: image and labels of the first prompt, of any size; None for a learned prompt.
    prediction: the prediction for the query.
    truth: the query's true label map, if known.

  Returns:
    Left to right, each panel as large as the query but at most 2048 pixels a side: the query, the prompt, the prompt's
    mask, the network's own colors, the prediction over the query, and the truth over the query.
  """
  height, width = query.shape[:2]
  scale = min(1, _MOST_PANEL / max(height, width))
  size = max(round(scale * height), 1), max(round(scale * width), 1)
  query, raw, found = (
    tiling.resize_image(query, size),
    tiling.resize_colors(prediction.colors, size),
    tiling.resize_labels(prediction.labels, size),
  )
  truth = None if truth is None else tiling.resize_labels(truth, size)
  # The truth may hold classes that no prompt has shown.
  largest = 0 if truth is None else int(truth.max())
  colors = display_palette(max(len(prediction.palette), 1 + largest))
  panels = [("query", query)]
  if prompt is not None:
    image, labels = prompt
    panels.append(("prompt", tiling.resize_image(image, size)))
    panels.append(("prompt mask", colors[tiling.resize_labels(labels, size)]))
  panels += [("raw colors", raw), ("prediction", overlay(query, found, colors))]
  if truth is not None:
    panels.append(("truth", overlay(query, truth, colors)))
  return titled_row(panels)


def run_lengths(prediction: Prediction, name: str) -> list[dict[str, Any]]:
  """Describes a prediction as COCO results: one entry for each class that was found, except the background.

  Returns:
    JSON values: `image_id` (the name), `category_id` (the class index), `segmentation` (compressed run lengths with
    their `size`, height and width), `area` in pixels, `bbox` (left, top, width, height), and as `score` the mean
    confidence of the class's pixels, 0..1.
  """
  confidence, entries = prediction.confidence(), []
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


def write_prediction(
  directory: str | os.PathLike,
  name: str,
  query: UInt8[np.ndarray, "h w 3"],
  prompts: Sequence[tuple[np.ndarray, np.ndarray]],
  prediction: Prediction,
  truth: Integer[np.ndarray, "h w"] | None = None,
  kinds: Sequence[Kind] = DEFAULT_KINDS,
) -> None:
  """Writes KIND/NAME.png for each kind of result. Predictions with stitched seams go to stitch/KIND/NAME.png.

  Args:
    directory: folder of the results.
    name: name of the query.
    query: the image.
    prompts: images and labels; "concat" shows the first.
    prediction: the prediction for the query.
    truth: the query's true label map, if known.
    kinds: "label" (class indices), "color" (the classes in display colors), "concat" (see `concat`), "overlay" (display
      colors over the image), "confidence" (`Prediction.confidence` as gray values 0..255), and "rle" (`run_lengths` in
      rle/NAME.json). Annotations are left to `annotation_files.write`, and "geotiff" to `write_geotiff`.

  Raises:
    InputError: the directory cannot be written to.
  """
  for folder, each in versions(prediction).items():
    draw = {
      "label": lambda each=each: each.labels,
      "color": each.colored,
      "concat": lambda each=each: concat(query, prompts[0] if prompts else None, each, truth),
      "overlay": lambda each=each: each.overlay(query),
      "confidence": lambda each=each: np.round(255 * each.confidence()).astype(np.uint8),
    }
    for kind in kinds:
      if kind == "rle":
        write_json(Path(directory) / folder / kind / f"{name}.json", run_lengths(each, name))
      elif kind not in _NEEDS_FILE:
        write_png(Path(directory) / folder / kind / f"{name}.png", draw[kind]())


def versions(prediction: Prediction) -> dict[str, Prediction]:
  """Returns the prediction as it was before seams were stitched, and the stitched one if any, by folder of results."""
  if prediction.unstitched is None:
    return {".": prediction}
  return {".": prediction.unstitched, "stitch": prediction}


def planned(directory: Path, name: str, kinds: Iterable[Kind], folders: Iterable[str]) -> Iterator[Path]:
  """Yields the files that a prediction is written to, annotations included."""
  for folder in folders:
    for kind in kinds:
      yield directory / folder / kind / ("labels" if kind == "yolo" else "") / f"{name}{_ENDINGS.get(kind, '.png')}"


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
  """Writes JSON values; without an indent on one line.

  Raises:
    InputError: the folder cannot be written to.
  """
  write_whole(path, lambda file: file.write(json.dumps(value, indent=indent, allow_nan=False).encode() + b"\n"))


def write_text(path: Path, text: str) -> None:
  """Writes a text file.

  Raises:
    InputError: the folder cannot be written to.
  """
  write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def remove(path: Path) -> None:
  """Removes a file if it is there and a run of this package has written it.

  Raises:
    InputError: the file cannot be removed.
  """
  with writing(path):
    remove_own(path)


def write_geotiff(directory: Path, query: Query, prediction: Prediction) -> None:
  """Writes geotiff/NAME.tif, the label map of a query in its coordinates; predictions with stitched seams to stitch/.

  Raises:
    InputError: the directory cannot be written to.
  """
  tags = _coordinates(query)
  for folder, each in versions(prediction).items():
    save = functools.partial(Image.fromarray(each.labels).save, format="TIFF", compression="tiff_lzw", tiffinfo=tags)
    write_whole(directory / folder / "geotiff" / f"{query.name}.tif", save)


def _coordinates(query: Query) -> TiffImagePlugin.ImageFileDirectory_v2:
  """Returns the tags that place an image on the earth; none, and a warning, if it has no such tags."""
  found, path = TiffImagePlugin.ImageFileDirectory_v2(), str(query.image)
  image = open_image(read_bytes(query.image), path)
  stated = getattr(image, "tag_v2", {})
  if stated.get(ORIENTATION, 1) == 1:  # the coordinates of a turned image are those of its pixels before
    for tag, kind in _TAGS.items():
      if tag in stated:
        found.tagtype[tag] = kind
        found[tag] = stated[tag]
  if not found:
    warn_once("images without coordinates of a GeoTIFF: their label maps in geotiff/ have none either")
  return found
