"""CVAT's annotations: the XML file of "CVAT for images 1.1" in, images with their objects out.

Source: CVAT's "CVAT for image" format, https://docs.cvat.ai/docs/manual/advanced/xml_format/.
"""

from __future__ import annotations

import math
import os
import re
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as mask_module

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import plain_name
from seggpt_jax.formats import outlines
from seggpt_jax.formats.folders import DatasetFiles, order_splits
from seggpt_jax.formats.images import read_bytes
from seggpt_jax.formats.outlines import Annotations, Entry, Shape

_SHAPES = ("polygon", "box", "mask", "ellipse", "polyline", "points", "cuboid", "skeleton")


def _cvat_files(files: DatasetFiles) -> list[str]:
  """Returns the relative paths of CVAT's XML files."""
  heads = {path: files.head(path) for path in files.ending(".xml")}
  return [path for path, head in heads.items() if b"<annotations" in head and re.search(b"<image |<meta>", head)]


def cvat_splits(files: DatasetFiles) -> list[str]:
  """Returns the splits of a dataset: subsets of images, or folders with a file each, or "." for all images."""
  found = _cvat_files(files)
  if len(found) > 1:
    return order_splits(
      sorted({path.partition("/")[0] if "/" in path else path.removesuffix(".xml") for path in found})
    )
  if not found:
    return []
  subsets = {image.get("subset") or "." for image in _parse(files.full(found[0])).iter("image")}
  return order_splits(sorted(subsets)) if "." not in subsets else ["."]


def read_cvat(path: str | os.PathLike, split: str, problems: list[str] | None = None) -> Annotations:
  """Reads the annotations of a split, see `outlines.Reader`. Categories are the labels of the task, in its order.

  The split is a subset of the images, or the folder of an XML file, or "." for all images. No object is left out: one
  that cannot be read is an error of its image.
  """
  del problems
  files = DatasetFiles(path)
  found = _cvat_files(files)
  if not found:
    raise InputError(f"{path}: found no annotations.xml of CVAT (found: {files.describe()}), expected one")
  own = [each for each in found if split in (each.partition("/")[0], each.removesuffix(".xml"))]
  trees = {each: _parse(files.full(each)) for each in found}
  if len(found) > 1 and len(own) != 1:
    raise InputError(f"{path}: found {', '.join(found)}, expected one for the split {split!r}")
  relative = own[0] if len(found) > 1 else found[0]
  where, root = files.full(relative), trees[relative]
  images = list(root.iter("image"))
  if len(found) == 1 and split != ".":
    images = [image for image in images if image.get("subset") == split]
  if not images:
    known = ", ".join(cvat_splits(files))
    raise InputError(f"{where}: found no images of the split {split!r}, expected one of {known}")
  categories: dict[str, None] = {}
  for tree in trees.values():
    categories |= dict.fromkeys(name.text or "" for name in tree.iterfind("meta//labels/label/name"))
  if not categories:
    labels = {shape.get("label", "") for tree in trees.values() for image in tree.iter("image") for shape in image}
    categories = dict.fromkeys(sorted(labels - {""}))
  folder = os.path.dirname(relative)
  entries = [_entry(image, files, folder, split, where) for image in images]
  return Annotations(where, entries, tuple(categories), notes=files.notes())


def _parse(where: str) -> ElementTree.Element:
  try:
    return ElementTree.fromstring(read_bytes(where))
  except ElementTree.ParseError as error:
    raise InputError(f"{where}: cannot be read as XML: {one_line(error)}") from error


def _entry(image: ElementTree.Element, files: DatasetFiles, folder: str, split: str, where: str) -> Entry:
  name = plain_name(image.get("name", ""))
  try:
    size = int(image.get("height", "")), int(image.get("width", ""))
  except ValueError as error:
    found = f"{image.get('width')!r} x {image.get('height')!r}"
    raise InputError(f"{where}: image {name!r}: found size {found}, expected pixels") from error
  objects = sorted((each for each in image if each.tag in _SHAPES), key=lambda each: int(each.get("z_order") or 0))
  shapes = tuple(_shape(each, f"{each.tag} {place}", size) for place, each in enumerate(objects))
  near = [os.path.join(folder, "images", split), os.path.join(folder, "images"), folder]
  return Entry(os.path.splitext(name)[0], files.find(name, near, split), shapes, size)


def _shape(element: ElementTree.Element, where: str, size: tuple[int, int]) -> Shape:
  label, values = element.get("label", ""), element.attrib
  if not label:
    return Shape("", problem=f"{where}: found no label, expected one")
  where = f"{where} ({label})"
  try:
    if element.tag == "polygon":
      return outlines.polygon_shape(label, [point.split(",") for point in values["points"].split(";")], where=where)
    angle = math.radians(float(values.get("rotation", 0)))
    if element.tag == "box":
      corners = [float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
      shape = outlines.rectangle_shape(label, corners, where=where)
      if not angle or shape.problem:
        return shape
      points = shape.outline[0].reshape(-1, 2)
      center = points.mean(axis=0)
      return shape._replace(outline=(((points - center) @ outlines.rotation(angle) + center).ravel(),))
    if element.tag == "ellipse":
      center, radii = [[float(values[key]) for key in keys] for keys in (("cx", "cy"), ("rx", "ry"))]
      return outlines.ellipse_shape(label, center, radii, angle)
    if element.tag == "mask":
      left, top, width, height = (int(float(values[key])) for key in ("left", "top", "width", "height"))
      runs = np.array([int(run) for run in values["rle"].split(",")])
      if (
        runs.min(initial=0) < 0 or runs.sum() != width * height or not (0 < width <= size[1] and 0 < height <= size[0])
      ):
        found = f"{runs.sum()} pixels for {width} x {height}"
        return Shape(label, problem=f"{where}: found run lengths of {found}, expected them to agree within the image")
      # CVAT's runs go along rows; pycocotools' go along columns.
      mask = mask_module.decode(
        mask_module.frPyObjects({"counts": runs.tolist(), "size": [width, height]}, width, height)
      )
      return outlines.mask_shape(label, mask.T, (left, top), size)
  except (ValueError, KeyError) as error:
    return Shape(label, problem=f"{where}: cannot be read: {one_line(repr(error))}")
  return Shape(label, problem=f"{where}: covers no pixels, expected a polygon, box, ellipse or mask")
