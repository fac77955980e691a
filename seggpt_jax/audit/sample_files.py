"""The samples of one split, read one by one, so that one bad file does not hide the others."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.audit.label_values import FileValues, file_values
from seggpt_jax.data.datasets import Dataset, OutlineSource, open_dataset
from seggpt_jax.data.sources import FileSource, Source, View
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import open_image, remote_or_local
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import Item, list_items
from seggpt_jax.formats.stored_labels import read_stored
from seggpt_jax.palette import IGNORE

_MOST_NAMES = 32
FILE_KINDS = ("folder", "class_folders", "masks", "voc")


class UnreadableError(InputError):
  """The file of a label is damaged: no label format can read it."""


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


class SampleFiles(View):
  """The samples of a split, with labels in any format.

  Args:
    source: the samples.
    categories: names of classes 1, 2, ...; by default those that the source states.
  """

  def __init__(self, source: Source, categories: Sequence[str] = ()):
    super().__init__(source)
    self._source, self.categories = source, tuple(categories) or self.categories

  def read_label(
    self, index: int, size: tuple[int, int] | None, label_format: LabelFormat, noted: list[FileValues]
  ) -> UInt8[np.ndarray, "h w"]:
    """Reads the label of a sample.

    Args:
      index: index of the sample.
      size: height and width of its image, if known.
      label_format: format of the label file, if the source does not know it.
      noted: list to which the stored values of its files are appended, also when an error follows.

    Raises:
      InputError: the label does not fit the format.
      UnreadableError: the file is damaged.
    """
    if not isinstance(self._source, FileSource):
      return self._source.label(index)
    item = self._source.items[index]
    if not item.label and size is not None:
      return np.zeros(size, np.uint8)  # an image without masks is all background
    values = {field.name: getattr(label_format, field.name) for field in dataclasses.fields(LabelFormat)}
    # The largest number of classes, so that the audit also sees classes that training would refuse.
    return FileSource([item], IGNORE, _Noting(**values, noted=noted)).label(0)

  @property
  def folders(self) -> tuple[str, ...]:
    """Folders with the images and with the label files; () if the samples are not in folders."""
    items = self._source.items if isinstance(self._source, FileSource) else []
    images = [os.path.dirname(item.image) for item in items]
    labels = [os.path.dirname(item.label) for item in items if isinstance(item.label, str)]
    return tuple(os.path.commonpath(each) for each in (images, labels) if each)

  @property
  def notes(self) -> tuple[str, ...]:
    """Lines for the user on how the files were read."""
    return getattr(self._source, "notes", ())

  def num_boxes(self, index: int) -> int:
    """Returns the number of objects of a sample whose outline is only a rectangle."""
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
      items = list_items(dataset.kind, dataset.path, split, dataset.class_names, problems)
      categories = dataset.class_names or _mask_classes(dataset, split, items)
      return SampleFiles(FileSource(items, IGNORE, LabelFormat("binary")), categories)
    return SampleFiles(open_dataset(dataclasses.replace(dataset, num_classes=IGNORE), split, problems=problems))
  except InputError as error:
    problems.append(str(error))
    return SampleFiles(FileSource([], IGNORE, LabelFormat()))


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
      items = list_items(dataset.kind, dataset.path, split, dataset.class_names, [])
    except InputError:
      continue  # `open_files` reports it
    if any(mask.class_index > 1 for item in items for mask in item.label):
      return ()  # there is a folder for each class
    stems = (os.path.splitext(os.path.basename(mask.path))[0] for item in items for mask in item.label)
    words.update(re.sub(r"[\W_\d]+$", "", stem) for stem in stems)
  many = len(words) > min(_MOST_NAMES, words.total() / 2)
  return () if len(words) < 2 or many or "" in words else tuple(sorted(words))
