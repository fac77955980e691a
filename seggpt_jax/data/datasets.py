"""Datasets by kind and path: the values of a config or a command line in, a `Source` out."""

from __future__ import annotations

import dataclasses
import os

from seggpt_jax.data.outline_source import OutlineSource
from seggpt_jax.data.records import RecordSource
from seggpt_jax.data.sources import FileSource, Source, View
from seggpt_jax.errors import InputError, reading_values
from seggpt_jax.files import expand
from seggpt_jax.formats import layouts
from seggpt_jax.formats.images import remote_or_local
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import Item
from seggpt_jax.formats.recognize import KINDS, OUTLINES


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
  source = _open(dataset, split, problems)
  return source if limit < 0 or limit >= len(source) else View(source, indices=range(limit))


def _open(dataset: Dataset, split: str, problems: list[str] | None) -> Source:
  path = expand(dataset.path)
  if dataset.kind in OUTLINES:
    with reading_values(path):
      return OutlineSource(OUTLINES[dataset.kind](path, split, problems), dataset.num_classes, dataset.class_names)
  if dataset.kind == "tfds":
    return RecordSource(path, split, dataset.num_classes, dataset.label_format)
  return FileSource(list_items(dataset, split, problems), dataset.num_classes, dataset.label_format)


def list_items(dataset: Dataset, split: str, problems: list[str] | None = None) -> list[Item]:
  """Lists the files of one split of a dataset.

  Args:
    dataset: a dataset of kind folder, class_folders, masks or voc.
    split: part of the dataset.
    problems: list for descriptions of files that do not fit, which are then left out; None raises at the first one.

  Raises:
    InputError: files are missing or do not fit together.
  """
  path = expand(dataset.path)
  if dataset.kind == "class_folders":
    return layouts.class_folder_layout(os.path.join(path, split), problems)
  if dataset.kind == "masks":
    return layouts.mask_layout(os.path.join(path, split), dataset.class_names, problems)
  if dataset.kind == "voc":
    return layouts.voc_layout(path, split, problems)
  return layouts.folder_layout(path, split, problems)
