"""COCO datasets: one JSON file with polygons and run lengths in, images with their objects out."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from seggpt_jax.errors import InputError, one_line, refuse
from seggpt_jax.files import plain_name
from seggpt_jax.formats.folders import DatasetFiles, read_json
from seggpt_jax.formats.outlines import Annotations, Entry, Outline, Shape

# Words of file names that say what a file is rather than which split it holds.
_WORDS = ("instances", "annotations", "annotation", "coco", "result", "labels", "segmentation")


class _Annotation(NamedTuple):
  """An object as the file describes it."""

  image_id: int | str
  category_id: int | str
  shape: Shape  # without its category


def read_coco(path: str | os.PathLike, split: str, problems: list[str] | None = None) -> Annotations:
  """Reads the annotations of a split, see `outlines.Reader`.

  They are a JSON file anywhere in the folder that the split gives its name, such as
  `annotations/instances_SPLIT.json`, `SPLIT/_annotations.coco.json` or `SPLIT.json`; for the split "." they are the
  only such file. Images are found by their names. Categories sorted by id become classes 1, 2, ... Where objects
  overlap, the smaller one is on top. Crowd regions are IGNORE where they have no object on top. Images without
  annotations are all background. A sample's name is the file name of its image without extension.
  """
  files = DatasetFiles(path)
  relative = _annotation_file(files, split)
  where = files.full(relative)
  content = _parse(where)
  try:
    names = _unique(content["categories"], "category", where)
    images = _unique(content["images"], "image", where)
    categories = _kept(content["categories"], content.get("annotations", []), where)
    shapes = _by_image(content.get("annotations", []), images, names, where, problems)
    folder = os.path.dirname(relative)
    near = list(dict.fromkeys([*(() if split == "." else (split, f"images/{split}")), folder, "images"]))
    find = functools.partial(files.find, near=near, split=split, splits=list(coco_files(files)))
    entries = [_entry(image, shapes.get(id_, ()), find, where) for id_, image in images.items()]
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{where}: found no valid COCO annotations ({error!r}), expected object instances") from error
  return Annotations(where, entries, categories, True, files.notes())


def coco_files(files: DatasetFiles) -> dict[str, list[str]]:
  """Finds the COCO annotations in a dataset.

  Args:
    files: the files of the dataset.

  Returns:
    Relative paths of annotation files by the split that they hold; "." for files that name none.
  """
  candidates = [path for path in files.ending(".json") if path.count("/") <= 2]
  canonical = [path for path in candidates if re.search(r"(^|/)(instances_[^/]*|_annotations\.coco)\.json$", path)]
  found: dict[str, list[str]] = {}
  if not canonical:
    heads = {path: files.head(path) for path in candidates}
    keys = (b'"images"', b'"annotations"', b'"categories"')
    canonical = [
      path
      for path, head in heads.items()
      if head.startswith(b"{") and b'"shapes"' not in head and any(key in head for key in keys)
    ]
  for path in canonical:
    found.setdefault(_split_name(path), []).append(path)
  return found


def _split_name(path: str) -> str:
  folder, _, file = path.rpartition("/")
  words = [word for word in re.split(r"[_.\- ]+", file[: -len(".json")]) if word and word.lower() not in _WORDS]
  if words:
    return "_".join(words)
  folder = folder.rpartition("/")[2]
  return folder if folder and folder.lower() not in _WORDS else "."


def _annotation_file(files: DatasetFiles, split: str) -> str:
  """Finds the annotation file of a split."""
  found = coco_files(files)
  fitting = found.get(split, [path for paths in found.values() for path in paths] if split == "." else [])
  if len(fitting) == 1:
    return fitting[0]
  if fitting:
    raise InputError(f"{files.root}: found {' and '.join(fitting)} for the split {split}, expected one file")
  known = ", ".join(path for paths in found.values() for path in paths)
  raise InputError(
    f"{files.root}: found no annotations of the split {split!r} (COCO files: {known or 'none'}), expected "
    f"annotations/instances_{split}.json, {split}/_annotations.coco.json or {split}.json"
  )


def _parse(where: str) -> dict[str, Any]:
  """Parses the file and packs its annotations on the way, because outlines as lists would need ten times the memory."""
  content = read_json(where, object_hook=_pack)
  if not isinstance(content, dict):
    raise InputError(f"{where}: found a {type(content).__name__}, expected an object with images and annotations")
  for key in ("images", "categories"):
    if not isinstance(content.get(key), list) or not content[key]:
      raise InputError(f"{where}: found no {key}, expected COCO annotations")
  return content


def _pack(entry: dict[str, Any]) -> Any:
  """Turns an annotation into arrays and leaves every other JSON object as it is."""
  if "image_id" not in entry or "category_id" not in entry:
    return entry
  found, outline, size, problem = entry.get("segmentation"), (), None, ""
  try:
    if not found and not isinstance(found, dict):
      raise ValueError("none" if not entry.get("bbox") else "none, only a box")
    outline, size = _parse_outline(found)
  except (KeyError, ValueError, TypeError, OverflowError) as error:
    outline = ()
    problem = f"annotation {entry.get('id')}: found segmentation {one_line(error)}, expected polygons or run lengths"
  shape = Shape("", outline, size, crowd=bool(entry.get("iscrowd", 0)), problem=problem)
  return _Annotation(entry["image_id"], entry["category_id"], shape)


def _parse_outline(segmentation: Any) -> tuple[Outline, tuple[int, int] | None]:
  """Returns polygons or run lengths as an outline, and the height and width that run lengths refer to."""
  if isinstance(segmentation, dict):
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    if isinstance(counts, str):
      counts = counts.encode()
    return counts if isinstance(counts, bytes) else np.array(counts, np.int64), (height, width)
  polygons = [np.array(polygon, np.float64) for polygon in segmentation]
  if any(polygon.ndim != 1 or len(polygon) % 2 for polygon in polygons):
    raise ValueError("coordinates do not come in pairs")
  return tuple(polygon for polygon in polygons if len(polygon) >= 6), None  # two points have no area


def _unique(entries: list[dict[str, Any]], what: str, where: str) -> dict[Any, dict[str, Any]]:
  """Returns entries by id; two of one id are refused."""
  found: dict[Any, dict[str, Any]] = {}
  key = "name" if what == "category" else "file_name"
  for entry in entries:
    id_ = entry["id"]
    if id_ in found:
      raise InputError(
        f"{where}: found {what} id {id_!r} twice, for {found[id_][key]} and {entry[key]}, expected one {what} for each "
        "id; files that were joined need new ids"
      )
    found[id_] = entry
  return found


def _kept(categories: list[dict[str, Any]], annotations: list[Any], where: str) -> tuple[str, ...]:
  """Returns the names of the categories, sorted by id, without one that only groups the others.

  Roboflow writes such a category with id 0: it is the supercategory of all others and no object has it.
  """
  ordered = sorted(categories, key=lambda category: category["id"])
  names = [str(category["name"]) for category in ordered]
  twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
  if twice is not None:
    raise InputError(f"{where}: found the category {twice!r} under two ids, expected one id for each name")
  first, *others = ordered
  if not others or any(other.get("supercategory") != names[0] for other in others):
    return tuple(names)
  if any(isinstance(each, _Annotation) and each.category_id == first["id"] for each in annotations):
    raise InputError(
      f"{where}: found objects of {names[0]!r}, which is also the supercategory of all other categories, expected only "
      "objects of those; rename the category, or the supercategory"
    )
  return tuple(names[1:])


def _by_image(
  annotations: list[Any],
  images: dict[Any, dict[str, Any]],
  categories: dict[Any, dict[str, Any]],
  where: str,
  problems: list[str] | None,
) -> dict[Any, list[Shape]]:
  """Returns the objects of each image."""
  names = {id_: str(category["name"]) for id_, category in categories.items()}
  shapes: dict[Any, list[Shape]] = {}
  for annotation in annotations:
    if not isinstance(annotation, _Annotation):
      refuse(f"{where}: found an annotation without image_id or category_id, expected both", problems)
    elif annotation.image_id not in images:
      refuse(f"{where}: found an annotation of image {annotation.image_id!r}, expected one that is listed", problems)
    else:
      shape = annotation.shape._replace(category=names.get(annotation.category_id, ""))
      if annotation.category_id not in names and not shape.problem:
        shape = shape._replace(problem=f"found category {annotation.category_id!r}, expected one that is listed")
      shapes.setdefault(annotation.image_id, []).append(shape)
  return shapes


def _entry(image: dict[str, Any], shapes: Sequence[Shape], find: Callable[[str], str], where: str) -> Entry:
  file_name, height, width = plain_name(image["file_name"]), image["height"], image["width"]
  if not all(type(side) is int and side > 0 for side in (height, width)):
    raise InputError(f"{where}: {file_name}: found size {width!r} x {height!r}, expected pixels")
  fields = {key: value for key, value in image.items() if isinstance(value, (str, int, float))}
  return Entry(os.path.splitext(file_name)[0], find(file_name), tuple(shapes), (height, width), fields)
