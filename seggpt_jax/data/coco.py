"""COCO datasets as a source: one JSON file with polygons and run lengths in, samples out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.images import decode_image, read_bytes, remote_or_local
from seggpt_jax.data.labels import IGNORE
from seggpt_jax.data.sources import Sample, check_size
from seggpt_jax.errors import InputError, one_line

# Polygons are arrays of x0, y0, x1, y1, ... in pixels. Run lengths are an array, or bytes if they are compressed.
Outline = tuple[np.ndarray, ...] | np.ndarray | bytes


class _Annotation(NamedTuple):
  """An object as the file describes it, with its category."""

  image_id: int | str
  category_id: int | str
  crowd: bool
  outline: Outline
  size: tuple[int, int] | None  # height and width that run lengths refer to


class _Object(NamedTuple):
  """An object with its class."""

  class_index: int
  crowd: bool
  outline: Outline


class CocoSource:
  """Samples of a COCO dataset. Implements `EncodedSource`.

  The annotations are `annotations/instances_SPLIT.json` with the images in `SPLIT/`, or `SPLIT/_annotations.coco.json`
  with the images beside it. Categories sorted by id become classes 1, 2, ... Where objects overlap, the smaller one is
  on top. Crowd regions are IGNORE where they have no object on top. Images without annotations are all background. A
  sample's name is the file name of its image without extension.

  Args:
    path: folder, local or remote.
    split: part of the dataset, such as train2017.
    num_classes: number of classes, background included.
    class_names: categories that become classes 1, 2, ...; all others are background. () takes all categories.

  Raises:
    InputError: the annotations are missing, damaged or have too many classes, or pycocotools is not installed.
  """

  def __init__(self, path: str | os.PathLike, split: str, num_classes: int, class_names: Sequence[str] = ()):
    _mask_module()
    self.num_classes = num_classes
    self._where = _annotation_file(path, split)
    self._directory = os.path.join(path, split)
    content = _parse(self._where)
    try:
      class_of = _classes(content["categories"], num_classes, class_names, self._where)
      images = {image["id"]: image for image in content["images"]}
      self._images = _by_name(images.values(), self._where)
      self._objects = _by_image(content.get("annotations", []), images, class_of, self._where)
    except (KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f"{self._where}: found no valid COCO annotations ({error!r}), expected object instances"
      ) from error
    self._names = list(self._images)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> Sample:
    image = decode_image(*self.encoded_image(index))
    label = self.label(index)
    # The size in the annotations is wrong, so the message names the annotation file.
    check_size(label, image.shape[:2], f"{self._where}: {self._entry(index)['file_name']}")
    return {"image": image, "label": label, "name": self.name(index)}

  def name(self, index: int) -> str:
    return self._names[index]

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    entry = self._entry(index)
    size = (entry["height"], entry["width"])
    objects = self._objects.get(entry["id"], ())
    try:
      return _draw(objects, size)
    except (ValueError, TypeError, MemoryError) as error:
      raise InputError(f"{self._where}: {entry['file_name']}: found an outline that cannot be read: {error}") from error

  def classes(self, index: int) -> tuple[int, ...] | None:
    objects = self._objects.get(self._entry(index)["id"], ())
    return tuple(sorted({each.class_index for each in objects if not each.crowd}))

  def field(self, index: int, key: str) -> str:
    entry = self._entry(index)
    if key not in entry:
      raise InputError(f"{self._where}: {entry['file_name']}: found no {key!r}, expected one of {', '.join(entry)}")
    return str(entry[key])

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    path = os.path.join(self._directory, self._entry(index)["file_name"])
    return read_bytes(path), path

  def _entry(self, index: int) -> dict[str, Any]:
    return self._images[self._names[index]]


def _mask_module():
  """Returns pycocotools.mask, which defines the meaning of COCO outlines."""
  try:
    from pycocotools import mask
  except ImportError as error:
    raise InputError("pycocotools: not installed, expected for COCO: pip install 'seggpt-jax[coco]'") from error
  return mask


def _annotation_file(path: str | os.PathLike, split: str) -> str:
  """Finds the annotation file of a split."""
  directory = remote_or_local(path)
  places = [directory / "annotations" / f"instances_{split}.json", directory / split / "_annotations.coco.json"]
  for place in places:
    if place.exists():
      return os.fspath(place)
  raise InputError(f"{path}: found neither {places[0]} nor {places[1]}, expected COCO annotations in one of them")


def _parse(where: str) -> dict[str, Any]:
  """Parses the file and packs its annotations on the way, because outlines as lists would need ten times the memory."""
  try:
    content = json.loads(read_bytes(where), object_hook=lambda entry: _pack(entry, where))
  except (ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{where}: cannot be read as JSON: {error}") from error
  if not isinstance(content, dict):
    raise InputError(f"{where}: found a {type(content).__name__}, expected an object with images and annotations")
  for key in ("images", "categories"):
    if not isinstance(content.get(key), list) or not content[key]:
      raise InputError(f"{where}: found no {key}, expected COCO annotations")
  return content


def _pack(entry: dict[str, Any], where: str) -> Any:
  """Turns an annotation into arrays and leaves every other JSON object as it is."""
  if "image_id" not in entry or "category_id" not in entry:
    return entry
  found = entry.get("segmentation")
  try:
    size = None
    if isinstance(found, dict):
      counts, (height, width) = found["counts"], found["size"]
      outline, size = counts.encode() if isinstance(counts, str) else np.array(counts, np.int64), (height, width)
    elif found:
      polygons = [np.array(polygon, np.float64) for polygon in found]
      if any(polygon.ndim != 1 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("coordinates do not come in pairs")
      outline = tuple(polygon for polygon in polygons if len(polygon) >= 6)  # two points have no area
    else:
      raise ValueError("none")
  except (KeyError, ValueError, TypeError) as error:
    raise InputError(
      f"{where}: annotation {entry.get('id')}: found segmentation {one_line(error)}, expected polygons or run lengths"
    ) from error
  return _Annotation(entry["image_id"], entry["category_id"], bool(entry.get("iscrowd", 0)), outline, size)


def _classes(
  categories: list[dict[str, Any]], num_classes: int, class_names: Sequence[str], where: str
) -> dict[int | str, int]:
  """Returns the class of each category id, 0 for categories that are background."""
  names = {category["id"]: str(category["name"]) for category in categories}
  if class_names:
    for name in class_names:
      if name not in names.values():
        raise InputError(f"{where}: found no category {name!r}, expected one of {', '.join(names.values())}")
    class_of = {id_: 1 + class_names.index(name) if name in class_names else 0 for id_, name in names.items()}
  else:
    class_of = {id_: 1 + i for i, id_ in enumerate(sorted(names))}
  for id_, class_index in class_of.items():
    if class_index >= num_classes:
      raise InputError(
        f"{where}: found category {names[id_]!r} as class {class_index}, expected 0..{num_classes - 1} "
        f"(data.num_classes={num_classes}); choose categories with class_names"
      )
  return class_of


def _by_name(images: Any, where: str) -> dict[str, dict[str, Any]]:
  """Returns the entries of images by file name without extension, sorted."""
  found: dict[str, dict[str, Any]] = {}
  for image in images:
    file_name, height, width = image["file_name"], image["height"], image["width"]
    name = os.path.splitext(file_name)[0]
    if name in found:
      raise InputError(f"{where}: found {file_name} beside {found[name]['file_name']}, expected one file for each name")
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
      raise InputError(f"{where}: {file_name}: found size {width!r} x {height!r}, expected pixels")
    found[name] = {key: value for key, value in image.items() if isinstance(value, (str, int, float))}
  return dict(sorted(found.items()))


def _by_image(
  annotations: list[Any], images: dict[Any, dict[str, Any]], class_of: dict[int | str, int], where: str
) -> dict[int | str, list[_Object]]:
  """Returns the objects of each image, without those of background categories."""
  objects: dict[int | str, list[_Object]] = {}
  for annotation in annotations:
    if not isinstance(annotation, _Annotation):
      raise InputError(f"{where}: found an annotation without image_id or category_id, expected both")
    image_id, category_id, crowd, outline, size = annotation
    if image_id not in images:
      raise InputError(f"{where}: found an annotation of image {image_id!r}, expected one that is listed")
    if category_id not in class_of:
      raise InputError(f"{where}: found an annotation of category {category_id!r}, expected one that is listed")
    image = images[image_id]
    if size is not None and size != (image["height"], image["width"]):
      raise InputError(
        f"{where}: {image['file_name']}: found run lengths for {size[1]} x {size[0]} pixels, expected "
        f"{image['width']} x {image['height']} as its image has"
      )
    if class_of[category_id]:
      objects.setdefault(image_id, []).append(_Object(class_of[category_id], crowd, outline))
  return objects


def _draw(objects: Sequence[_Object], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
  """Draws the objects of one image into a label map of the given height and width."""
  mask = _mask_module()
  encoded = [_run_lengths(each.outline, size) for each in objects]
  areas = [float(mask.area(each)) for each in encoded]
  label = np.zeros(size, np.uint8)
  # Crowds come first, then objects from large to small, because later ones cover earlier ones.
  for i in sorted(range(len(objects)), key=lambda i: (not objects[i].crowd, -areas[i])):
    label[mask.decode(encoded[i]) > 0] = IGNORE if objects[i].crowd else objects[i].class_index
  return label


def _run_lengths(outline: Outline, size: tuple[int, int]) -> dict[str, Any]:
  """Returns an outline as compressed run lengths in the form that pycocotools uses."""
  mask = _mask_module()
  if isinstance(outline, bytes):
    return {"counts": outline, "size": list(size)}
  if isinstance(outline, tuple):
    polygons = [polygon.tolist() for polygon in outline] or [[0.0] * 6]
    return mask.merge(mask.frPyObjects(polygons, *size))
  if outline.min(initial=0) < 0 or outline.sum() != size[0] * size[1]:
    raise ValueError(f"run lengths of {outline.sum()} pixels, expected {size[0] * size[1]}")
  return mask.frPyObjects({"counts": outline.tolist(), "size": list(size)}, *size)
