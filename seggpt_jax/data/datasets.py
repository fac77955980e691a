"""A dataset by the name of its kind and its path: what a configuration or a command line says in, a `Source` out."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from seggpt_jax.data import sources
from seggpt_jax.data.images import remote_or_local
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.data.sources import FileSource, Item, Source, Subset
from seggpt_jax.errors import InputError

KINDS = {
  "folder": "SPLIT/images/NAME.* and SPLIT/labels/NAME.*",
  "class_folders": "SPLIT/PRODUCT/DEFECT/image/NAME.* and .../label/NAME.*",
  "masks": "one mask file for each class or instance: SPLIT/images/NAME.* and SPLIT/labels/NAME/*.png, "
  "SPLIT/labels/CLASS/NAME.*, or SPLIT/NAME/{images,masks}/*.png",
  "coco": "annotations/instances_SPLIT.json with SPLIT/*.jpg, or SPLIT/_annotations.coco.json beside its images",
  "tfds": "a TFDS dataset in ArrayRecord format, for example of `python -m seggpt_jax.data.prepare`",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Where labeled images are, and how to read them.

  Attributes:
    kind: one of `KINDS`.
    path: the folder, local or remote.
    num_classes: N, background included.
    label_format: how labels are read.
    class_names: of classes 1, 2, ... for masks and COCO categories; () takes them as they come.
    image_key: the image in a record of a TFDS dataset.
    label_key: the label, likewise.
  """

  kind: str
  path: str
  num_classes: int
  label_format: LabelFormat = dataclasses.field(default_factory=LabelFormat)
  class_names: tuple[str, ...] = ()
  image_key: str = "image"
  label_key: str = "segmentation_mask"


def open_dataset(dataset: Dataset, split: str, limit: int = -1) -> Source:
  """One split of a dataset; only names are read.

  Args:
    dataset: what and where.
    split: name of the part, such as train or val.
    limit: take only the first so many samples by name; -1 takes all.

  Raises:
    InputError: it is not there, or its files do not fit together.
  """
  if dataset.kind not in KINDS:
    raise InputError(f"dataset: found kind {dataset.kind!r}, expected one of {', '.join(KINDS)}")
  if not dataset.path or not remote_or_local(dataset.path).is_dir():
    raise InputError(f"{dataset.path!r}: folder not found, expected {KINDS[dataset.kind]}")
  source = _open(dataset, split)
  return source if limit < 0 or limit >= len(source) else Subset(source, np.arange(limit))


def _open(dataset: Dataset, split: str) -> Source:
  dataset = dataclasses.replace(dataset, path=os.path.expanduser(dataset.path))
  if dataset.kind == "coco":
    from seggpt_jax.data.coco import CocoSource

    return CocoSource(dataset.path, split, dataset.num_classes, dataset.class_names)
  if dataset.kind == "tfds":
    from seggpt_jax.data.records import RecordSource

    return RecordSource(
      dataset.path, split, dataset.num_classes, dataset.label_format, dataset.image_key, dataset.label_key
    )
  return FileSource(list_items(dataset, split), dataset.num_classes, dataset.label_format)


def list_items(dataset: Dataset, split: str, problems: list[str] | None = None) -> list[Item]:
  """The files of one split of a dataset in folders.

  Args:
    dataset: of one of the kinds that are folders of files.
    split: name of the part.
    problems: is given what is wrong with files, which then are left out instead of refused.

  Raises:
    InputError: files are not there or do not fit together.
  """
  directory = os.path.join(dataset.path, split)
  if dataset.kind == "class_folders":
    return sources.class_folder_layout(directory, problems)
  if dataset.kind == "masks":
    return sources.mask_layout(directory, dataset.class_names, problems)
  return sources.folder_layout(directory, problems)
