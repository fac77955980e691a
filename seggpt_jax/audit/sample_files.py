"""Access to the files of one split, sample by sample, so that one bad file does not hide the others."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.audit.label_values import FileValues, file_values
from seggpt_jax.data.datasets import Dataset, list_items, open_dataset
from seggpt_jax.data.images import open_image, read_bytes, remote_or_local
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.data.sources import FileSource, Item, Source
from seggpt_jax.data.stored_labels import read_stored
from seggpt_jax.errors import InputError
from seggpt_jax.palette import IGNORE

FILE_KINDS = ("folder", "class_folders", "masks")


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

  def __init__(self, items: Sequence[Item]):
    self._items = items

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
      return FolderFiles(list_items(dataset, split, problems))
    return SourceFiles(open_dataset(dataclasses.replace(dataset, num_classes=IGNORE), split))
  except InputError as error:
    problems.append(str(error))
    return FolderFiles([])


def guess_kind(path: str) -> str:
  """Guesses the kind of a dataset from the folders and files at its top.

  Args:
    path: folder of the dataset.

  Returns:
    A key of `data.datasets.KINDS`.

  Raises:
    InputError: the folder does not exist.
  """
  directory = remote_or_local(path)
  if not path or not directory.is_dir():
    raise InputError(f"{path!r}: folder not found, expected a dataset")
  below = [folder for folder in sorted(directory.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
  if any(True for depth in ("", "*/", "*/*/") for _ in directory.glob(f"{depth}dataset_info.json")):
    return "tfds"
  if any(list((directory / "annotations").glob("instances_*.json"))) or any(
    (folder / "_annotations.coco.json").exists() for folder in below
  ):
    return "coco"
  for folder in (directory, *below):
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
      # Folders in labels/ that images/ has too belong to names such as street/0001; others hold masks.
      inside = {each.name for each in (folder / "labels").iterdir() if each.is_dir()}
      alike = {each.name for each in (folder / "images").iterdir() if each.is_dir()}
      return "masks" if inside - alike else "folder"
    if any((each / "masks").is_dir() for each in folder.iterdir() if each.is_dir()):
      return "masks"
  # SPLIT/PRODUCT/DEFECT/image. For deeper folders the user has to set --kind.
  if any(True for folder in below for depth in ("", "*/", "*/*/", "*/*/*/") for _ in folder.glob(f"{depth}image")):
    return "class_folders"
  return "folder"


def category_names(dataset: Dataset, split: str) -> list[str]:
  """Returns the names of classes 1, 2, ... that the dataset stores; empty if it stores none."""
  if dataset.class_names:
    return list(dataset.class_names)
  directory = remote_or_local(dataset.path)
  if dataset.kind == "masks" and (directory / split / "labels").is_dir():
    folders = sorted(each.name for each in (directory / split / "labels").iterdir() if each.is_dir())
    places = directory / split / "images"
    images = {each.stem for each in places.iterdir()} if places.is_dir() else set()
    return [] if set(folders) & images else folders
  if dataset.kind == "coco":
    for place in (f"annotations/instances_{split}.json", f"{split}/_annotations.coco.json"):
      with contextlib.suppress(InputError, ValueError, KeyError, TypeError):
        path = os.path.join(dataset.path, place)
        # Annotations make up most of the file, so they are dropped while it is parsed.
        content = json.loads(read_bytes(path), object_hook=lambda each: None if "image_id" in each else each)
        return [str(each["name"]) for each in sorted(content["categories"], key=lambda each: each["id"])]
  return []
