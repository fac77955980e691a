"""Label Studio's annotations: its JSON export in, images with their objects out.

Source: Label Studio's "Export annotations" and "Units of image annotations"; run lengths of brushes as in
`label_studio_sdk/converter/brush.py`. Coordinates are percentages of the image's width and height.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.errors import InputError, one_line, reading_values, refuse
from seggpt_jax.formats.folders import DatasetFiles, read_json
from seggpt_jax.formats.images import is_image
from seggpt_jax.formats.outlines import Annotations, Entry, Shape, ellipse_shape, mask_shape, polygon_shape, rotation

_BRUSH_PNG = re.compile(r"(^|/)task-\d+-annotation-\d+-by-.*\.png$")
_KINDS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")


def label_studio_files(files: DatasetFiles) -> list[str]:
  """Returns the relative paths of JSON exports.

  Raises:
    InputError: there are only masks of brushes, which name tasks instead of images.
  """
  heads = {path: files.head(path) for path in files.ending(".json") if path.count("/") <= 1}
  keys = (b'"annotations"', b'"completions"', b'"original_width"', b'"annotation_id"', b'"annotator"')
  found = [path for path, head in heads.items() if head.startswith(b"[") and any(key in head for key in keys)]
  brushes = [path for path in files.ending(".png") if _BRUSH_PNG.search(path)]
  if brushes and not found:
    raise InputError(
      f"{files.full(brushes[0])}: found masks of Label Studio's brushes without a JSON export, which tells the image "
      "of each task, expected one; it holds the masks too"
    )
  return found


def read_label_studio(path: str | os.PathLike, split: str, problems: list[str] | None = None) -> Annotations:
  """Reads all annotations of an export, see `outlines.Reader`, in the form JSON or JSON-MIN.

  The split is the folder of the export, or "." for the only one. Tasks that nobody has annotated are left out.
  Categories are all labels, sorted by name.
  """
  files = DatasetFiles(path)
  exports = label_studio_files(files)
  wanted = [each for each in exports if split in (each.partition("/")[0], each.removesuffix(".json"))]
  wanted = exports if split == "." else wanted
  if len(wanted) != 1:
    found = ", ".join(exports) or files.describe()
    raise InputError(f"{path}: expected one JSON export of Label Studio for the split {split!r}, found {found}")
  tasks = {each: _parse(files.full(each)) for each in exports}
  where = files.full(wanted[0])
  categories = {
    label for each in tasks.values() for task in each for result in _results(task) for label in _labels(result)
  }
  entries = []
  for task in tasks[wanted[0]]:
    name = f"task {task.get('id')}"
    if "annotations" in task and not [each for each in task["annotations"] if not each.get("was_cancelled")]:
      refuse(f"{where}: {name}: found no annotation, expected one", problems)
      continue
    with reading_values(f"{where}: {name}"):
      entries.append(_entry(task, name, files, os.path.dirname(wanted[0]), where))
  return Annotations(where, entries, tuple(sorted(categories)), notes=files.notes())


def _parse(where: str) -> list[dict[str, Any]]:
  content = read_json(where)
  if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
    raise InputError(f"{where}: found no list of tasks, expected a JSON export of Label Studio")
  return content


def _results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """Yields the regions of a task's first annotation, in either form of the export."""
  if isinstance(task.get("annotations"), list):
    valid = [each for each in task["annotations"] if isinstance(each, dict) and not each.get("was_cancelled")]
    yield from (each for each in (valid[0].get("result", []) if valid else []) if isinstance(each, dict))
  else:
    # JSON-MIN has the regions under the name of their control tag, with all values at the top.
    for value in task.values():
      for each in value if isinstance(value, list) else []:
        if isinstance(each, dict) and "original_width" in each:
          yield {**each, "value": each}


def _labels(result: dict[str, Any]) -> list[str]:
  value = result.get("value")
  found = next((value[kind] for kind in _KINDS if isinstance(value, dict) and value.get(kind)), [])
  return [str(label) for label in found] if isinstance(found, list) else []


def _entry(task: dict[str, Any], name: str, files: DatasetFiles, folder: str, where: str) -> Entry:
  stated = task.get("data", task)
  paths = [value for value in stated.values() if isinstance(value, str) and is_image(_plain_path(value))]
  if isinstance(task.get("file_upload"), str):
    paths.append(task["file_upload"])
  if not paths:
    raise InputError(f"{where}: {name}: found no image, expected its file under data")
  results = list(_results(task))
  # Relations, choices and texts are no regions of the image.
  regions = [(place, each) for place, each in enumerate(results) if isinstance(each.get("value"), dict)]
  regions = [(place, each) for place, each in regions if {"points", "rle", "radiusX", "width"} & each["value"].keys()]
  shapes = [_shape(each, f"{name}: region {place}") for place, each in regions]
  several = sum(not each.get("was_cancelled") for each in task.get("annotations", []) if isinstance(each, dict))
  if several > 1:
    shapes.append(Shape("", problem=f"{name}: found {several} annotations, expected one"))
  sizes = {(result.get("original_height"), result.get("original_width")) for result in results}
  size = next(iter(sizes)) if len(sizes) == 1 else None
  path = _plain_path(paths[0])
  near = (f"{folder}/images" if folder else "images", folder)
  image = files.find(path, near)
  if os.path.relpath(image, files.root) not in files:
    image = files.find(str(PurePosixPath(path).with_name(_without_prefix(PurePosixPath(path).name))), near)
  fields = {key: value for key, value in stated.items() if isinstance(value, (str, int, float))}
  shown = _without_prefix(PurePosixPath(path).name)
  return Entry(os.path.splitext(shown)[0], image, tuple(shapes), size if size and all(size) else None, fields)


def _plain_path(address: str) -> str:
  """Returns the path of an image without server or query: /data/local-files/?d=a/b.png becomes a/b.png."""
  parts = urlsplit(address.replace("\\", "/"))
  return unquote(parse_qs(parts.query).get("d", [parts.path])[0])


def _without_prefix(name: str) -> str:
  """Removes the eight digits that Label Studio puts before the names of uploaded files."""
  return re.sub(r"^[0-9a-f]{8}-(?=.)", "", name)


def _shape(result: dict[str, Any], where: str) -> Shape:
  labels, value = _labels(result), result.get("value", {})
  if len(labels) != 1:
    return Shape("", problem=f"{where}: found labels {labels}, expected one")
  (label,), where = labels, f"{where} ({labels[0]})"
  try:
    if value.get("points") is not None:
      return polygon_shape(label, np.asarray(value["points"], np.float64) / 100, relative=True, where=where)
    if value.get("rle") is not None:
      size = int(result["original_height"]), int(result["original_width"])
      return mask_shape(label, _decode_brush(value["rle"], size), (0, 0), size)
    if "radiusX" in value:
      center, radii = (value["x"] / 100, value["y"] / 100), (value["radiusX"] / 100, value["radiusY"] / 100)
      if value.get("rotation"):
        return Shape(label, problem=f"{where}: found a rotated ellipse, expected one without rotation, or a polygon")
      return ellipse_shape(label, center, radii, relative=True)
    if "width" in value:
      # Rotated around its top left corner.
      size = np.array([float(result["original_width"]), float(result["original_height"])])
      right, bottom = value["width"], value["height"]
      corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]]) / 100 * size
      origin = np.array([value["x"], value["y"]]) / 100 * size
      points = corners @ rotation(math.radians(value.get("rotation") or 0)) + origin
      return polygon_shape(label, points, where=where)._replace(box=True)
  except (ArithmeticError, LookupError, TypeError, ValueError) as error:
    return Shape(label, problem=f"{where}: cannot be read: {one_line(repr(error))}")
  return Shape(label, problem=f"{where}: covers no pixels, expected a polygon, brush, rectangle or ellipse")


def _decode_brush(run_lengths: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
  """Decodes the run lengths of a brush to its mask, which is the alpha channel of the picture that they encode."""
  bits = np.unpackbits(np.asarray(run_lengths, np.uint8))
  place = 0

  def read(count: int) -> int:
    nonlocal place
    if place + count > len(bits):
      raise ValueError("run lengths end too early")
    value = int("".join(map(str, bits[place : place + count].tolist())), 2)
    place += count
    return value

  total, word = read(32), read(5) + 1
  widths = [read(4) + 1 for _ in range(4)]
  if total != 4 * size[0] * size[1]:
    raise ValueError(f"run lengths of {total} numbers, expected {4 * size[0] * size[1]}")
  values, done = np.zeros(total, np.uint8), 0
  while done < total:
    repeated = read(1)
    count = 1 + read(widths[read(2)])
    if repeated:
      values[done : done + count] = read(word)
    else:
      values[done : done + count] = [read(word) for _ in range(min(count, total - done))]
    done += count
  return values.reshape(*size, 4)[..., 3]
