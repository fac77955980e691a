"""YOLO's segmentation datasets: text files with one polygon in each line in, images with their objects out.

Source: Ultralytics' "Instance Segmentation Datasets Overview". A line is `CLASS x1 y1 x2 y2 ...`, with classes from 0
and coordinates relative to the upright image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml
from tqdm import tqdm

from seggpt_jax.errors import InputError, one_line, reading_values, refuse
from seggpt_jax.files import plain_name
from seggpt_jax.formats.folders import DatasetFiles, order_splits
from seggpt_jax.formats.images import is_image, read_lines, read_text
from seggpt_jax.formats.outlines import Annotations, Entry, Shape, polygon_shape

_IMAGES, _LABELS = "images", "labels"


def yolo_splits(files: DatasetFiles) -> list[str]:
  """Returns the splits of a dataset whose labels are text files; none if it has no such files."""
  texts = _texts(files)
  if not texts:
    return []
  where, content = _description(files)
  named = [key for key in ("train", "val", "test") if key in content and _images(files, key, content, where)]
  if named:
    return named
  return order_splits(list(dict.fromkeys(_split_of(path, _LABELS) for path in texts)))


def _texts(files: DatasetFiles) -> list[str]:
  return [path for path in files.ending(".txt") if _LABELS in PurePosixPath(path).parts[:-1]]


def read_yolo(path: str | os.PathLike, split: str, problems: list[str] | None = None) -> Annotations:
  """Reads the annotations of a split, see `outlines.Reader`, with the help of data.yaml if there is one.

  The split is train, val or test, or the name of another folder: images/SPLIT and labels/SPLIT, or SPLIT/images and
  SPLIT/labels. Images without a text file, or with an empty one, are all background; text files without an image are
  left out.
  """
  files = DatasetFiles(path)
  where, content = _description(files)
  images = _images(files, split, content, where)
  if not images:
    raise InputError(
      f"{path}: found no images of the split {split!r}, expected images/{split}/ and labels/{split}/, or "
      f"{split}/images/ and {split}/labels/ (found: {files.describe()})"
    )
  texts = {image: _text_of(image) for image in images}
  if not any(text in files for text in texts.values()):
    raise InputError(
      f"{path}: found no text files of the split {split!r}, such as {next(iter(texts.values()))}, expected some"
    )
  folders = {os.path.dirname(text) for text in texts.values()}
  # With lists of images, the files of another split are in the same folder.
  expected = {*texts.values(), *map(_text_of, filter(is_image, files.paths))}
  for text in files.ending(".txt"):
    if os.path.dirname(text) in folders and text not in expected and not text.endswith("classes.txt"):
      refuse(f"{files.full(text)}: found no image for it, expected one of the same name", problems)
  names = _names(files, where, content)
  entries, largest = [], -1
  for image, text in tqdm(texts.items(), desc="reading annotations", unit="file", delay=2.0, leave=False):
    numbered = _read(files.full(text)) if text in files else []
    largest = max([largest, *(number for number, _ in numbered)])
    shapes = tuple(_named(shape, number, names) for number, shape in numbered)
    entries.append(Entry(_name(image, split), files.full(image), shapes, where=files.full(text)))
  if not names:
    # All splits have the same classes.
    others = set(_texts(files)) - set(texts.values())
    largest = max([largest, *(number for path in others for number, _ in _read(files.full(path)))])
    names = {number: str(number) for number in range(largest + 1)}
  return Annotations(
    where or os.fspath(path), entries, tuple(names[number] for number in sorted(names)), True, files.notes()
  )


def _description(files: DatasetFiles) -> tuple[str, dict[str, Any]]:
  """Returns the path and content of data.yaml, or "" and nothing."""
  found = []
  for relative in [path for path in files.ending(".yaml", ".yml") if path.count("/") <= 1]:
    where = files.full(relative)
    try:
      # PyYAML itself fails for values such as `!!timestamp x` or dates that do not exist, in many ways.
      with reading_values(where):
        content = _parse_yaml(read_text(where))
    except yaml.YAMLError as error:
      raise InputError(f"{where}: cannot be read as YAML: {one_line(error)}") from error
    if isinstance(content, dict) and "names" in content:
      found.append((where, content))
  for where, content in found:
    for key in ("train", "val", "test"):
      named = content.get(key) or []
      places = named if isinstance(named, list) else [named]
      if not all(isinstance(place, str) for place in places):
        raise InputError(f"{where}: {key}: found {str(named)[:80]!r}, expected a folder or a list of folders")
  if any(content["names"] != found[0][1]["names"] for _, content in found):
    raise InputError(f"{found[1][0]}: found other names than in {found[0][0]}, expected one list of classes")
  return found[0] if found else ("", {})


def _parse_yaml(text: str) -> Any:
  """Parses YAML without aliases, a few of which stand for values without end."""
  if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
    raise ValueError("found an alias (*NAME), expected plain values")
  content = yaml.safe_load(text)
  str(content)  # fails for numbers of thousands of digits, which no message could show
  return content


def _names(files: DatasetFiles, where: str, content: dict[str, Any]) -> dict[int, str]:
  """Returns the names of classes by number; empty if no file has any."""
  names: Any = content.get("names", {})
  if isinstance(names, dict) and not all(type(number) is int for number in names):
    raise InputError(f"{where}: names: found {str(list(names))[:200]}, expected the numbers of classes 0, 1, ...")
  if not names:
    lists = files.ending("classes.txt")
    names = read_lines(files.full(lists[0])) if lists else []
  if isinstance(names, list):
    names = dict(enumerate(names))
  if not isinstance(names, dict) or sorted(names) != list(range(len(names))):
    raise InputError(f"{where}: names: found {names!r}, expected the names of classes 0, 1, ...")
  if len(set(map(str, names.values()))) < len(names):
    raise InputError(f"{where}: names: found one name twice, expected a name for each class")
  return {number: str(name) for number, name in names.items()}


def _split_of(path: str, folder: str) -> str:
  """Returns the split of a file in FOLDER/SPLIT or SPLIT/FOLDER; "." if it is in FOLDER itself."""
  parts = PurePosixPath(path).parts
  place = parts.index(folder)
  if place:
    return parts[place - 1]
  return parts[1] if len(parts) > 2 else "."


def _images(files: DatasetFiles, split: str, content: Mapping[str, Any], where: str) -> list[str]:
  """Returns the relative paths of a split's images."""
  named = content.get(split) or []
  places = [str(place) for place in ([named] if isinstance(named, str) else named)]
  found = {place: _images_at(files, place, where) for place in places}
  missing = [place for place, images in found.items() if not images]
  if missing and len(places) > 1:
    raise InputError(f"{where}: {split}: found no images in {missing[0]}, expected some in each of its folders")
  if places and not missing:
    return list(dict.fromkeys(image for images in found.values() for image in images))
  usual = (f"{_IMAGES}/{split}", f"{split}/{_IMAGES}") if split != "." else (_IMAGES,)
  return next((images for place in usual if (images := _images_at(files, place, where))), [])


def _images_at(files: DatasetFiles, place: str, where: str) -> list[str]:
  """Returns the relative paths of the images in a folder, or in a text file of images, that data.yaml names."""
  # Roboflow writes ../train/images, which means the folder of data.yaml.
  stated = "/".join(part for part in PurePosixPath(plain_name(place)).parts if part not in ("..", ".", "/"))
  if not stated.endswith(".txt"):
    return [path for path in files.paths if path.startswith(f"{stated}/") and is_image(path)]
  lists = [path for path in files.ending(".txt") if path.endswith(PurePosixPath(stated).name)]
  if not lists:
    raise InputError(f"{where}: found the list {stated}, which does not exist, expected a folder or a list of images")
  return [os.path.relpath(files.find(line, (_IMAGES,)), files.root) for line in read_lines(files.full(lists[0]))]


def _text_of(image: str) -> str:
  """Returns the path of an image's text file, whose last folder `images` is `labels` instead."""
  above, found, name = f"/{os.path.splitext(image)[0]}".rpartition(f"/{_IMAGES}/")
  return f"{above}/{_LABELS}/{name}.txt"[1:] if found else f"{name}.txt"[1:]


def _name(image: str, split: str) -> str:
  parts = list(PurePosixPath(os.path.splitext(image)[0]).parts)
  for part in (_IMAGES, split):
    if part in parts[:-1]:
      parts.remove(part)
  return "/".join(parts)


def _read(where: str) -> list[tuple[int, Shape]]:
  """Reads the class numbers and polygons of a text file."""
  found = []
  for number, line in enumerate(read_text(where).splitlines(), 1):
    values = line.split()
    if not values:
      continue
    place = f"line {number}"
    if not values[0].removesuffix(".0").isdecimal():
      found.append((-1, Shape("", problem=f"{place}: found class {values[0]!r}, expected a number from 0 on")))
      continue
    class_number = int(float(values[0]))
    if len(values) == 5:
      problem = (
        f"{place}: found a box, expected a polygon, CLASS x1 y1 x2 y2 ...; boxes do not tell which pixels are meant"
      )
      found.append((class_number, Shape("", problem=problem)))
    else:
      found.append((class_number, polygon_shape("", values[1:], relative=True, where=place)))
  return found


def _named(shape: Shape, number: int, names: dict[int, str]) -> Shape:
  if number < 0 or not names:
    return shape._replace(category=str(number) if number >= 0 else "")
  if number not in names:
    return shape._replace(problem=f"found class {number}, expected 0..{len(names) - 1} as named")
  return shape._replace(category=names[number])
