"""Access to the files of one split, sample by sample, so that one bad file does not hide the others."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.audit.label_values import FileValues, file_values
from seggpt_jax.data.datasets import Dataset, list_items, open_dataset
from seggpt_jax.data.outline_source import OutlineSource
from seggpt_jax.data.sources import FileSource, Source
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import open_image, read_bytes, remote_or_local
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import Item
from seggpt_jax.formats.stored_labels import read_stored
from seggpt_jax.palette import IGNORE

_MOST_NAMES = 32
FILE_KINDS = ("folder", "class_folders", "masks", "voc")


class UnreadableError(InputError):
  """The file of a label is damaged: no label format can read it."""


@runtime_checkable
class SampleFiles(Protocol):
  """Access to the files of each sample."""

  def __len__(self) -> int: ...

  def name(self, index: int) -> str: ...

  def image_file(self, index: int) -> tuple[bytes, str]:
    """Returns the bytes of the image file and its path.

    Raises:
      InputError: the file cannot be read.
    """
    ...

  def label(
    self, index: int, size: tuple[int, int] | None, label_format: LabelFormat, noted: list[FileValues]
  ) -> UInt8[np.ndarray, "h w"]:
    """Reads the label of a sample.

    Args:
      index: index of the sample.
      size: height and width of its image, if known.
      label_format: format of the label file.
      noted: list to which the stored values of its files are appended, also when an error follows.

    Returns:
      The label map.

    Raises:
      InputError: the label does not fit the format.
      UnreadableError: the file is damaged.
    """
    ...

  def field(self, index: int, key: str) -> str:
    """Returns a field of a record, see `Source.field`."""
    ...

  @property
  def categories(self) -> tuple[str, ...]:
    """Names of classes 1, 2, ... that the files state; () if they state none."""
    ...

  @property
  def folders(self) -> tuple[str, ...]:
    """Folders with the images and with the label files; () if the samples are not in folders."""
    ...

  @property
  def notes(self) -> tuple[str, ...]:
    """Lines for the user on how the files were read."""
    ...

  def num_boxes(self, index: int) -> int:
    """Returns the number of objects of a sample whose outline is only a rectangle."""
    ...


@dataclasses.dataclass(frozen=True)
class _Noting(LabelFormat):
  """A label format that also records the values stored in the files that it decodes."""

  noted: list[FileValues] = dataclasses.field(default_factory=list)

  def decode(self, data: bytes, where: str) -> UInt8[np.ndarray, "h w"]:
    try:
      stored = read_stored(open_image(data, where), where)
    except InputError as error:
      raise UnreadableError(str(error)) from error
    self.noted.append(file_values(stored, where))
    return self.classes(stored, where)


class FolderFiles:
  """Samples of a dataset in folders, see `SampleFiles`."""

  def __init__(self, items: Sequence[Item], categories: Sequence[str] = ()):
    self._items, self.categories, self.notes = items, tuple(categories), ()

  def __len__(self) -> int:
    return len(self._items)

  def name(self, index: int) -> str:
    return self._items[index].name

  def image_file(self, index: int) -> tuple[bytes, str]:
    path = self._items[index].image
    return read_bytes(path), path

  def label(
    self, index: int, size: tuple[int, int] | None, label_format: LabelFormat, noted: list[FileValues]
  ) -> UInt8[np.ndarray, "h w"]:
    if not self._items[index].label and size is not None:
      return np.zeros(size, np.uint8)  # an image without masks is all background
    values = {field.name: getattr(label_format, field.name) for field in dataclasses.fields(LabelFormat)}
    # The largest number of classes, so that the audit also sees classes that training would refuse.
    return FileSource([self._items[index]], IGNORE, _Noting(**values, noted=noted)).label(0)

  def field(self, index: int, key: str) -> str:
    raise InputError(f"field {key!r}: found files, which have no fields, expected a dataset with records")

  @property
  def folders(self) -> tuple[str, ...]:
    images = [os.path.dirname(item.image) for item in self._items]
    labels = [os.path.dirname(item.label) for item in self._items if isinstance(item.label, str)]
    return tuple(os.path.commonpath(each) for each in (images, labels) if each)

  def num_boxes(self, index: int) -> int:
    return 0


class SourceFiles:
  """Samples of a source that opens as a whole, see `SampleFiles`; the source decodes the labels."""

  def __init__(self, source: Source):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def name(self, index: int) -> str:
    return self._source.name(index)

  def image_file(self, index: int) -> tuple[bytes, str]:
    return self._source.encoded_image(index)

  def label(
    self, index: int, size: tuple[int, int] | None, label_format: LabelFormat, noted: list[FileValues]
  ) -> UInt8[np.ndarray, "h w"]:
    return self._source.label(index)

  def field(self, index: int, key: str) -> str:
    return self._source.field(index, key)

  @property
  def categories(self) -> tuple[str, ...]:
    return getattr(self._source, "categories", ())

  @property
  def folders(self) -> tuple[str, ...]:
    return ()

  @property
  def notes(self) -> tuple[str, ...]:
    return getattr(self._source, "notes", ())

  def num_boxes(self, index: int) -> int:
    shapes = self._source.shapes(index) if isinstance(self._source, OutlineSource) else ()
    return sum(shape.box for shape in shapes)


def open_files(dataset: Dataset, split: str, problems: list[str]) -> SampleFiles:
  """Lists the samples of a split.

  Args:
    dataset: layout and path of the dataset; its number of classes does not matter.
    split: name of the split.
    problems: list to which messages about files that are left out are appended.

  Returns:
    Access to the samples; empty if the split cannot be listed.
  """
  try:
    if dataset.kind in FILE_KINDS:
      items = list_items(dataset, split, problems)
      return FolderFiles(items, dataset.class_names or _mask_classes(dataset, split, items))
    return SourceFiles(open_dataset(dataclasses.replace(dataset, num_classes=IGNORE), split, problems=problems))
  except InputError as error:
    problems.append(str(error))
    return FolderFiles([])


def _mask_classes(dataset: Dataset, split: str, items: Sequence[Item]) -> list[str]:
  """Returns the names of the classes if masks are in a folder for each class."""
  if dataset.kind != "masks" or not any(mask.class_index > 1 for item in items for mask in item.label):
    return []
  labels = remote_or_local(dataset.path) / split / "labels"
  return sorted(each.name for each in labels.iterdir() if each.is_dir() and not each.name.startswith("."))


def guess_class_names(dataset: Dataset, splits: Sequence[str]) -> tuple[str, ...]:
  """Guesses the class names of masks from the words that their file names begin with, such as crack of crack_2.png.

  Args:
    dataset: a dataset of kind masks without class names.
    splits: names of its splits.

  Returns:
    The words, sorted; () if all masks begin with the same word, or with as many words as names of classes cannot be.
  """
  words: collections.Counter[str] = collections.Counter()
  for split in splits:
    try:
      items = list_items(dataset, split, [])
    except InputError:
      continue  # `open_files` reports it
    if any(mask.class_index > 1 for item in items for mask in item.label):
      return ()  # there is a folder for each class
    stems = (os.path.splitext(os.path.basename(mask.path))[0] for item in items for mask in item.label)
    words.update(re.sub(r"[\W_\d]+$", "", stem) for stem in stems)
  many = len(words) > min(_MOST_NAMES, words.total() / 2)
  return () if len(words) < 2 or many or "" in words else tuple(sorted(words))
