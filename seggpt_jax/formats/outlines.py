"""Labels as outlines of objects: polygons and run lengths in, label maps out.

Labelling tools store an image's objects as polygons or run lengths with the name of a class. Each tool's format has a
module that reads its files into `Annotations`; `data.datasets` makes samples of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8
from pycocotools import mask as mask_module

from seggpt_jax.errors import one_line
from seggpt_jax.formats.labels import IGNORE

# Polygons are arrays of x0, y0, x1, y1, ... in pixels. Run lengths are an array, or bytes if they are compressed.
Outline = tuple[np.ndarray, ...] | np.ndarray | bytes
_FAR_OUTSIDE = 16  # widths or heights of an image, whichever is larger, that a polygon may leave it by
BACKGROUND = "_background_"  # category of an outline that is cut out of the objects below it
UNKNOWN = "__ignore__"  # category of pixels without a known class


class Shape(NamedTuple):
  """One object of an image."""

  category: str  # name of its class, or BACKGROUND or UNKNOWN
  outline: Outline = ()  # its polygons or run lengths; () if it has none, for which `problem` may give the reason
  size: tuple[int, int] | None = None  # height and width that run lengths refer to; None for polygons
  relative: bool = False  # True if polygons are relative to the image's width and height, 0..1
  crowd: bool = False  # True for a region whose objects are not told apart. It is IGNORE where no object lies on top
  box: bool = False  # True if the outline is only a rectangle around the object
  problem: str = ""  # reason why the object has no outline that can be drawn; "" if it has one


class Entry(NamedTuple):
  """One image with its objects."""

  name: str  # name of the sample
  image: str  # path of the image
  shapes: tuple[Shape, ...]  # its objects
  size: tuple[int, int] | None = None  # height and width that the annotations state; None if they state none
  fields: Mapping[str, Any] = MappingProxyType({})  # further information by key
  where: str = ""  # file with the annotations of this image alone; "" if one file has those of all images


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The annotations of one split."""

  where: str  # file or folder that they were read from, for error messages
  entries: list[Entry]  # images with their objects
  categories: tuple[str, ...]  # names of classes 1, 2, ...
  smallest_on_top: bool = False  # draws small objects over large ones; False draws in the order of the file
  notes: tuple[str, ...] = ()  # lines for the user on how the annotations were read


# Reads the annotations of a split: takes the folder of the dataset, local or remote, the name of the split, and a list
# for descriptions of what is left out; None raises an InputError at the first one, as missing and damaged files do.
Reader = Callable[[str | os.PathLike, str, list[str] | None], Annotations]


def draw_shapes(
  objects: Sequence[tuple[Shape, int]], size: tuple[int, int], smallest_on_top: bool
) -> UInt8[np.ndarray, "h w"]:
  """Draws objects, given with their classes, into a label map of the given height and width."""
  encoded = [_run_lengths(shape, size) for shape, _ in objects]
  order = list(range(len(objects)))
  if smallest_on_top:
    areas = [float(mask_module.area(each)) for each in encoded]
    # Crowds come first, then objects from large to small, because later ones cover earlier ones.
    order.sort(key=lambda i: (not objects[i][0].crowd, -areas[i]))
  label = np.zeros(size, np.uint8)
  for i in order:
    shape, class_index = objects[i]
    label[mask_module.decode(encoded[i]) > 0] = IGNORE if shape.crowd else class_index
  return label


def _run_lengths(shape: Shape, size: tuple[int, int]) -> dict[str, Any]:
  """Returns an outline as compressed run lengths in the form that pycocotools uses."""
  outline = shape.outline
  if isinstance(outline, bytes):
    if (found := _pixels_of(outline)) != size[0] * size[1]:
      raise ValueError(f"run lengths of {found} pixels, expected {size[0] * size[1]}")
    return {"counts": outline, "size": list(size)}
  if isinstance(outline, tuple):
    scale = np.array(size[::-1]) if shape.relative else 1
    polygons = [(polygon.reshape(-1, 2) * scale).ravel().tolist() for polygon in outline] or [[0.0] * 6]
    # pycocotools allocates memory for every pixel of an edge, and ends the process where that is too much.
    if not all(abs(number) <= _FAR_OUTSIDE * max(size) for polygon in polygons for number in polygon):
      raise ValueError(f"coordinates of a polygon, which are not all numbers within {_FAR_OUTSIDE} times the image")
    return mask_module.merge(mask_module.frPyObjects(polygons, *size))
  if outline.min(initial=0) < 0 or outline.sum() != size[0] * size[1]:
    raise ValueError(f"run lengths of {outline.sum()} pixels, expected {size[0] * size[1]}")
  return mask_module.frPyObjects({"counts": outline.tolist(), "size": list(size)}, *size)


def _pixels_of(counts: bytes) -> int:
  """Returns the number of pixels that compressed run lengths cover; -1 if one of them is negative.

  pycocotools leaves pixels that they do not cover as they were in memory. Source: `rleFrString` of cocoapi; numbers of
  five bits a byte, with the difference to the run before the last one from the fourth run on.
  """
  runs, value, shift = [], 0, 0
  for byte in counts:
    code = byte - 48
    value |= (code & 31) << shift
    shift += 5
    if not code & 32:
      value -= (1 << shift) if code & 16 else 0
      runs.append(value + (runs[-2] if len(runs) > 2 else 0))
      value = shift = 0
  return sum(runs) if min(runs, default=0) >= 0 and not shift else -1


def polygon_shape(category: str, points: Any, *, relative: bool = False, where: str = "") -> Shape:
  """Returns a polygon as a shape. Points that are no polygon make a shape with a problem.

  Args:
    category: name of its class.
    points: pairs of x and y, or one sequence of x0, y0, x1, y1, ...
    relative: whether they are relative to the size of the image.
    where: name of the object, for the message about a problem.
  """
  try:
    polygon = np.asarray(points, np.float64)
  except (ValueError, TypeError) as error:
    return Shape(category, problem=f"{where}: found points {one_line(error)}, expected numbers")
  if polygon.ndim == 2 and polygon.shape[1] == 2:
    polygon = polygon.ravel()
  if polygon.ndim != 1 or polygon.size % 2 or polygon.size < 6 or not np.isfinite(polygon).all():
    return Shape(category, problem=f"{where}: found {polygon.size / 2:g} points, expected at least 3 pairs of x and y")
  if relative and (polygon.min() < -0.01 or polygon.max() > 1.01):
    found = f"{polygon.min():g}..{polygon.max():g}"
    return Shape(category, problem=f"{where}: found coordinates {found}, expected 0..1, relative to the image")
  return Shape(category, (polygon,), relative=relative)


def rectangle_shape(category: str, corners: Sequence[float], *, where: str = "") -> Shape:
  """Returns a rectangle as a shape.

  Args:
    category: name of its class.
    corners: x and y of two opposite corners.
    where: name of the object, for the message about a problem.
  """
  x0, y0, x1, y1 = corners
  return polygon_shape(category, (x0, y0, x1, y0, x1, y1, x0, y1), where=where)._replace(box=True)


def ellipse_shape(
  category: str, center: Sequence[float], radii: Sequence[float], angle: float = 0.0, *, relative: bool = False
) -> Shape:
  """Returns an ellipse as a polygon of 64 corners.

  Args:
    category: name of its class.
    center: x and y.
    radii: half axes in x and y before the rotation.
    angle: rotation in radians, clockwise in the image.
    relative: whether the numbers are relative to the size of the image.
  """
  turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
  points = np.stack([np.cos(turn) * radii[0], np.sin(turn) * radii[1]], axis=1)
  return polygon_shape(category, points @ rotation(angle) + np.asarray(center), relative=relative)


def rotation(angle: float) -> Float64[np.ndarray, "2 2"]:
  """Returns the matrix that rotates rows of x and y by an angle in radians, clockwise in the image."""
  return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def mask_shape(category: str, mask: UInt8[np.ndarray, "h w"], place: tuple[int, int], size: tuple[int, int]) -> Shape:
  """Returns a mask that is stored as pixels as a shape.

  Args:
    category: name of its class.
    mask: pixels above 0 are the object.
    place: left and top of the mask in the image. What is outside of the image is cut off.
    size: height and width of the image.
  """
  whole = np.zeros(size, np.uint8, order="F")
  left, top = place
  rows, columns = slice(max(top, 0), top + mask.shape[0]), slice(max(left, 0), left + mask.shape[1])
  shown = whole[rows, columns]
  shown[:] = mask[max(-top, 0) :, max(-left, 0) :][: shown.shape[0], : shown.shape[1]] > 0
  return Shape(category, mask_module.encode(whole)["counts"], size)
