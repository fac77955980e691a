"""LabelMe's annotations: one JSON file with shapes for each image in, images with their objects out.

Source: LabelMe's `labelme/label_file.py` and `labelme/utils/shape.py`, versions 4 and 5.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from seggpt_jax.errors import InputError, one_line, refuse
from seggpt_jax.files import plain_name
from seggpt_jax.formats import outlines
from seggpt_jax.formats.folders import DatasetFiles, read_json
from seggpt_jax.formats.images import is_image, load_upright, open_image
from seggpt_jax.formats.outlines import Annotations, Entry, Shape


def labelme_files(files: DatasetFiles) -> dict[str, list[str]]:
  """Finds LabelMe's files in a dataset.

  Args:
    files: the files of the dataset.

  Returns:
    Relative paths by split, which is the first folder of the path; all are in "." if some are in no folder.
  """
  paths = files.ending(".json")
  if any("/" not in path for path in paths):
    return {".": paths}
  found: dict[str, list[str]] = {}
  for path in paths:
    found.setdefault(path.partition("/")[0], []).append(path)
  return found


def is_labelme(path: str) -> bool:
  """Returns True if a JSON file has shapes as LabelMe writes them."""
  try:
    content = read_json(path)
  except InputError:
    return False
  return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(path: str | os.PathLike, split: str, problems: list[str] | None = None) -> Annotations:
  """Reads the annotations of a split, see `outlines.Reader`.

  The split is the first folder of the files, or "." for all. Images without a file of annotations are left out.
  Categories are the labels in all files of the dataset, sorted by name.
  """
  files = DatasetFiles(path)
  known = labelme_files(files)
  wanted = set(known.get(split, files.ending(".json") if split == "." else []))
  if not wanted:
    found = ", ".join(known) or "no JSON files"
    raise InputError(f"{path}: found no folder {split!r} with JSON files of LabelMe (found: {found}), expected one")
  entries, categories = [], set()
  bar = tqdm(files.ending(".json"), desc="reading annotations", unit="file", delay=2.0, leave=False)
  for relative in bar:
    content = _parse(files.full(relative))
    if content is None:
      if relative in wanted:
        refuse(f"{files.full(relative)}: found no shapes, expected a file of LabelMe", problems)
      continue
    categories |= {label for shape in content["shapes"] if (label := _label(shape))}
    if relative in wanted:
      entries.append(_entry(files, relative, content, split, list(known)))
  named = {entry.image for entry in entries}
  folders = {os.path.dirname(path) for path in named}
  for image in filter(is_image, files.paths):
    if os.path.dirname(files.full(image)) in folders and files.full(image) not in named:
      refuse(
        f"{files.full(image)}: found no JSON file for it, expected one; LabelMe writes none for an empty image",
        problems,
      )
  names = tuple(sorted(categories - {outlines.BACKGROUND, outlines.UNKNOWN}))
  return Annotations(os.fspath(path), entries, names, notes=files.notes())


def _parse(where: str) -> dict[str, Any] | None:
  """Returns the content of a file; None if it is no file of LabelMe."""
  content = read_json(where)
  if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
    return None
  return {key: value for key, value in content.items() if key != "imageData"}


def _entry(files: DatasetFiles, relative: str, content: dict[str, Any], split: str, splits: Sequence[str]) -> Entry:
  where, folder = files.full(relative), os.path.dirname(relative)
  name = os.path.splitext(relative)[0]
  image_path = content.get("imagePath")
  if not isinstance(image_path, str) or not image_path:
    raise InputError(f"{where}: imagePath: found {image_path!r}, expected the name of an image file")
  height, width = content.get("imageHeight"), content.get("imageWidth")
  size = (height, width) if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0 else None
  shapes = tuple(_shape(each, f"shape {place}", size) for place, each in enumerate(content["shapes"]))
  name = name.removeprefix(f"{split}/") if split != "." else name
  # The path is relative to the file and may lead out of the dataset, but only to an image.
  stated = os.path.normpath(os.path.join(os.path.dirname(where), plain_name(image_path)))
  image = (
    stated if is_image(stated) and os.path.isfile(stated) else files.find(image_path, (folder, split), split, splits)
  )
  return Entry(name, image, shapes, size, where=where)


def _label(shape: Any) -> str:
  """Returns the label of a shape; "" if it has none."""
  label = shape.get("label") if isinstance(shape, dict) else None
  return label if isinstance(label, str) else ""


def _shape(found: Any, where: str, size: tuple[int, int] | None) -> Shape:
  """Returns one shape of a file."""
  label = _label(found)
  if not label:
    return Shape("", problem=f"{where}: found no label, expected one")
  kind = found.get("shape_type") or "polygon"
  where = f"{where} ({label})"
  try:
    points = np.asarray(found.get("points"), np.float64).reshape(-1, 2)
    if kind == "polygon":
      return outlines.polygon_shape(label, points, where=where)
    if kind == "rectangle":
      return outlines.rectangle_shape(label, (*points.min(axis=0), *points.max(axis=0)), where=where)
    if kind == "circle":
      radius = math.dist(points[0], points[1])
      return outlines.ellipse_shape(label, points[0].tolist(), (radius, radius))
    if kind == "mask":
      if size is None:
        return Shape(label, problem=f"{where}: found a mask without imageHeight and imageWidth, expected both")
      left, top = np.round(points[0]).astype(int).tolist()
      image = load_upright(open_image(base64.b64decode(found["mask"]), where), where)
      image = image if image.mode in ("1", "L", "P") else image.convert("L")
      return outlines.mask_shape(label, np.asarray(image).astype(np.uint8), (left, top), size)
  except (ValueError, TypeError, IndexError, KeyError, binascii.Error) as error:
    return Shape(label, problem=f"{where}: found a {kind} that cannot be read: {one_line(error)}")
  return Shape(
    label, problem=f"{where}: found a {kind}, which covers no pixels, expected a polygon, rectangle, circle or mask"
  )
