"""Datasets by kind and path: the values of a config or a command line in, a `Source` out.

The source of outlines of objects, as labeling tools store them, is here too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from etils import epath
from jaxtyping import UInt8

from seggpt_jax.data.records import RecordSource
from seggpt_jax.data.sources import FileSource, ImageFiles, Sample, Source, View
from seggpt_jax.errors import InputError, one_line, reading_values
from seggpt_jax.files import expand
from seggpt_jax.formats.images import decode_image, file_stamp, remote_or_local, upright_size
from seggpt_jax.formats.labels import IGNORE, LabelFormat, check_size
from seggpt_jax.formats.layouts import list_items
from seggpt_jax.formats.outlines import BACKGROUND, UNKNOWN, Annotations, draw_shapes
from seggpt_jax.formats.recognize import KINDS, OUTLINES

_LARGE = 50_000_000  # pixels; larger sizes are compared with the image before they are drawn


class OutlineSource(ImageFiles):
  """Samples whose labels are outlines. Implements `EncodedSource`. A wrong object is an error of its sample alone.

  Args:
    annotations: the images and their objects.
    num_classes: number of classes, background included.
    class_names: categories that become classes 1, 2, ...; all others are background. () takes all categories.

  Raises:
    InputError: there are too many classes, a name is no category, or two images have one name.
  """

  def __init__(self, annotations: Annotations, num_classes: int, class_names: Sequence[str] = ()):
    self.num_classes = num_classes
    self.categories, self.stated = tuple(class_names) or annotations.categories, annotations.categories
    self.notes = annotations.notes
    self._where, self._smallest_on_top = annotations.where, annotations.smallest_on_top
    self._class_of = _classes(annotations, num_classes, class_names)
    self._stamp = f"{file_stamp(annotations.where)} {self.categories}"
    self.items = sorted(annotations.entries, key=lambda entry: entry.name)
    for first, second in zip(self.items, self.items[1:], strict=False):
      if first.name == second.name:
        found = f"{os.path.basename(second.image)} and {os.path.basename(first.image)}"
        raise InputError(f"{self._where}: found {found}, expected one image for the name {first.name}")

  def __getitem__(self, index: int) -> Sample:
    image, stated = decode_image(*self.encoded_image(index)), self._stated_size(index)
    if stated and stated != image.shape[:2]:
      # The size in the annotations is wrong, so the message names their file.
      check_size(np.broadcast_to(np.uint8(0), stated), image.shape[:2], self._place(index))
    label = self._draw(index, image.shape[:2])
    return {"image": image, "label": label, "name": self.name(index)}

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    return self._draw(index, None)

  def classes(self, index: int) -> tuple[int, ...] | None:
    shapes = self.items[index].shapes
    known = {self._class_of.get(shape.category, 0) for shape in shapes if not (shape.crowd or shape.problem)}
    return tuple(sorted(known - {0, IGNORE}))

  def label_stamp(self, index: int) -> str:
    where = self.items[index].where
    # An image without a file of annotations is background.
    return file_stamp(where) if where and epath.Path(where).exists() else self._stamp

  def field(self, index: int, key: str) -> str:
    fields = self.items[index].fields
    if key not in fields:
      raise InputError(f"{self._place(index)}: found no {key!r}, expected one of {', '.join(fields) or 'no field'}")
    return str(fields[key])

  def _place(self, index: int) -> str:
    entry = self.items[index]
    return entry.where or f"{self._where}: {entry.name}{os.path.splitext(entry.image)[1]}"

  def _stated_size(self, index: int) -> tuple[int, int] | None:
    """Returns the height and width that the annotations state for an image, if they do."""
    size = self.items[index].size
    # bool is a kind of int, and files may have either.
    if size is not None and not all(type(side) is int and 0 < side < 2**31 for side in size):
      raise InputError(f"{self._place(index)}: found size {size[1]!r} x {size[0]!r}, expected pixels")
    return size

  def _draw(self, index: int, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w"]:
    """Draws the label of a sample; `size` is that of its image, if it was read already."""
    entry = self.items[index]
    size = self._stated_size(index) or size or upright_size(*self.encoded_image(index))
    if size[0] * size[1] > _LARGE and (real := upright_size(*self.encoded_image(index))) != size:
      # Before anything of the stated size is allocated.
      raise InputError(f"{self._place(index)}: found {size[1]} x {size[0]} pixels, expected {real[1]} x {real[0]}")
    kept = []
    for shape in entry.shapes:
      # An object without a category may be of any class.
      if shape.category and shape.category not in self._class_of:
        continue
      if shape.problem:
        raise InputError(f"{self._place(index)}: {shape.problem}")
      if shape.size is not None and shape.size != size:
        raise InputError(
          f"{self._place(index)}: found run lengths for {shape.size[1]} x {shape.size[0]} pixels, expected "
          f"{size[1]} x {size[0]} as its image has"
        )
      kept.append((shape, self._class_of[shape.category]))
    try:
      return draw_shapes(kept, size, self._smallest_on_top)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
      raise InputError(f"{self._place(index)}: found an outline that cannot be read: {one_line(error)}") from error


def _refuse_category(where: str, name: str, known: Sequence[str]) -> NoReturn:
  raise InputError(f"{where}: found no category {name!r}, expected one of {', '.join(known)}")


def _classes(annotations: Annotations, num_classes: int, class_names: Sequence[str]) -> dict[str, int]:
  """Returns the class of each category that is drawn."""
  # One split may lack a category that another has; `check_categories` knows all of them.
  if class_names and not set(class_names) & set(annotations.categories):
    _refuse_category(annotations.where, class_names[0], annotations.categories)
  names = tuple(class_names) or annotations.categories
  if len(names) >= num_classes:
    raise InputError(
      f"{annotations.where}: found category {names[num_classes - 1]!r} as class {num_classes}, expected "
      f"0..{num_classes - 1} (data.num_classes={num_classes}); choose categories with class_names"
    )
  return {**{name: 1 + place for place, name in enumerate(names)}, BACKGROUND: 0, UNKNOWN: IGNORE}


def check_categories(sources: Sequence[Any]) -> None:
  """Checks that the sources of a dataset's splits have the same classes in the same order.

  Args:
    sources: sources; those whose classes have no names are not compared.

  Raises:
    InputError: class 1 or another one means something else in two splits.
  """
  stated = [source for source in sources if getattr(source, "stated", ())]
  known = {name: None for source in stated for name in source.stated}
  for name in (name for source in stated for name in source.categories if name not in known):
    _refuse_category("class_names", name, list(known))
  named = [tuple(source.categories) for source in sources if getattr(source, "categories", ())]
  for other in named[1:]:
    if other != named[0]:
      raise InputError(
        f"class_names: found categories {', '.join(named[0])} in one split and {', '.join(other)} in another, expected "
        "the same in the same order; name those to use"
      )


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Location of labeled images and how to read them.

  Attributes:
    kind: one of `KINDS`.
    path: folder, local or remote.
    num_classes: number of classes, background included.
    label_format: meaning of the label files.
    class_names: names of classes 1, 2, ... for masks and outlines of objects; () takes all of them.
  """

  kind: str
  path: str
  num_classes: int
  label_format: LabelFormat = dataclasses.field(default_factory=LabelFormat)
  class_names: tuple[str, ...] = ()


def open_dataset(dataset: Dataset, split: str, limit: int = -1, problems: list[str] | None = None) -> Source:
  """Opens one split of a dataset. File names are read, images and labels are not.

  Args:
    dataset: location and format.
    split: part of the dataset, such as train or val.
    limit: number of samples to take, first by name; -1 takes all.
    problems: list for descriptions of files that do not fit, which are then left out; None raises at the first one.

  Raises:
    InputError: the dataset is missing, or its files do not fit together.
  """
  if dataset.kind not in KINDS:
    raise InputError(f"dataset: found kind {dataset.kind!r}, expected one of {', '.join(KINDS)}")
  if not dataset.path or not remote_or_local(dataset.path).is_dir():
    raise InputError(f"{dataset.path!r}: folder not found, expected {KINDS[dataset.kind]}")
  path = expand(dataset.path)
  if dataset.kind in OUTLINES:
    with reading_values(path):
      annotations = OUTLINES[dataset.kind](path, split, problems)
      source = OutlineSource(annotations, dataset.num_classes, dataset.class_names)
  elif dataset.kind == "tfds":
    source = RecordSource(path, split, dataset.num_classes, dataset.label_format)
  else:
    items = list_items(dataset.kind, path, split, dataset.class_names, problems)
    source = FileSource(items, dataset.num_classes, dataset.label_format)
  return source if limit < 0 or limit >= len(source) else View(source, indices=range(limit))
