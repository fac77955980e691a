"""The header of a TFDS dataset in ArrayRecord format: a folder in, its features and the places of its records out.

No record is read here, and TensorFlow is not needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.formats.images import remote_or_local

INFO_FILE = "dataset_info.json"
_LABEL_WORDS = ("mask", "label", "segmentation", "annotation", "trimap")
_DEPTH = 4  # levels below the given folder: dataset / config / version


class Feature(NamedTuple):
  """The type of value that records have under a key, and class names if it is a class label."""

  kind: str
  class_names: tuple[str, ...] = ()

  @property
  def is_image(self) -> bool:
    """True if the values are images."""
    return self.kind in ("Image", "LabeledImage")


class FileSlice(NamedTuple):
  """Consecutive records in one file.

  Attributes:
    filename: path of the file.
    skip: number of records to skip at the beginning of the file.
    take: number of records to take after those.
    examples_in_shard: number of records in the whole file.
    split: split that the file belongs to.
    first: position in that split of the first record taken.
  """

  filename: str
  skip: int
  take: int
  examples_in_shard: int
  split: str
  first: int


def find_version(path: str | os.PathLike) -> str:
  """Finds the newest version of the dataset at or below a folder.

  Args:
    path: folder of a version, of a dataset, or one above it.

  Returns:
    Path of the version's folder.

  Raises:
    InputError: there is no dataset, or there are several.
  """
  directory = remote_or_local(path)
  if not directory.is_dir():
    raise InputError(f"{path}: folder not found, expected a TFDS dataset")
  found = list(_versions(directory, _DEPTH))
  if not found:
    raise InputError(f"{path}: found no {INFO_FILE} in it or below, expected a TFDS dataset in ArrayRecord format")
  datasets = sorted({os.fspath(version.parent) for version in found})
  if len(datasets) > 1:
    raise InputError(f"{path}: found {len(datasets)} datasets, expected one of {', '.join(datasets)}")
  return os.fspath(max(found, key=lambda version: [int(number) for number in re.findall(r"\d+", version.name)]))


def _versions(directory: epath.Path, depth: int) -> list[epath.Path]:
  if (directory / INFO_FILE).exists():
    return [directory]
  if not depth:
    return []
  # TFDS and `prepare.writers` put "incomplete" in front of the names of unfinished folders.
  inside = [path for path in directory.iterdir() if not path.name.startswith((".", "incomplete")) and path.is_dir()]
  return [version for path in sorted(inside) for version in _versions(path, depth - 1)]


def read_info(path: str) -> Any:
  """Reads the header of a version.

  Args:
    path: folder of the version.

  Returns:
    The tfds.core.DatasetInfo.

  Raises:
    InputError: the header cannot be read, or the records are not in ArrayRecord format.
  """
  import tensorflow_datasets as tfds

  try:
    info = tfds.builder_from_directory(path).info
    if _file_format(info) != "array_record" and "array_record" in _alternatives(info):
      info = tfds.builder_from_directory(path, file_format="array_record").info
  except Exception as error:  # TFDS and protobuf raise all kinds of errors for a damaged header
    reason = one_line(error)
    raise InputError(f"{path}: cannot be read as a TFDS dataset: {reason}") from error
  if _file_format(info) != "array_record":
    raise InputError(
      f"{path}: found files in {_file_format(info)} format, expected ArrayRecord, which "
      "`tfds build --file_format=array_record` writes"
    )
  return info


def _file_format(info: Any) -> str:
  return info.file_format.value if info.file_format else "tfrecord"


def _alternatives(info: Any) -> list[str]:
  return [getattr(each, "value", each) for each in info.alternative_file_formats or ()]


def list_features(info: Any) -> dict[str, Feature]:
  """Returns the features of a record by key. Keys of nested features are joined by a slash.

  Args:
    info: result of `read_info`.
  """
  found: dict[str, Feature] = {}

  def visit(feature: Any, key: str) -> None:
    kind = type(feature).__name__
    if kind == "FeaturesDict":
      for name, inner in feature.items():
        visit(inner, f"{key}/{name}" if key else name)
    else:
      found[key] = Feature(kind, tuple(getattr(feature, "names", None) or ()) if kind == "ClassLabel" else ())

  visit(info.features, "")
  return found


def image_and_label(features: Mapping[str, Feature], path: str) -> tuple[str, str]:
  """Returns the keys of the image and of the label image of a record.

  The label is the feature `segmentation_mask`, or else the only one whose name speaks of a label; the image is the
  feature `image`, or else the only other one.

  Args:
    features: features by key, see `list_features`.
    path: folder of the version, for the error message.

  Raises:
    InputError: there is no such feature, or there are several.
  """
  images = [key for key, feature in features.items() if feature.is_image]
  speaking = [key for key in images if any(word in key.rpartition("/")[2] for word in _LABEL_WORDS)]
  labels = ["segmentation_mask"] if "segmentation_mask" in images else speaking
  others = [key for key in images if key not in speaking]
  others = ["image"] if "image" in others else others
  for name, found in (("label", labels), ("image", others)):
    if len(found) != 1:
      listed = ", ".join(sorted(features))
      raise InputError(
        f"{path}: found {', '.join(found) or 'nothing'} as the {name} among {listed}, expected one image: "
        "image and segmentation_mask"
      )
  return others[0], labels[0]


def list_slices(info: Any, split: str, path: str) -> list[FileSlice]:
  """Lists where the records of a split are stored, in their order.

  Args:
    info: result of `read_info`.
    split: name of the split, or a slice of it such as train[:90%].
    path: folder of the version.

  Raises:
    InputError: the split is unknown or empty, or one of its files is missing.
  """
  try:
    instructions = info.splits[split].file_instructions
  except (ValueError, KeyError, AssertionError, AttributeError) as error:
    known = ", ".join(f"{name} ({each.num_examples})" for name, each in info.splits.items())
    raise InputError(f"{path}: found no split {split!r}, expected one of {known} or a slice such as train[:90%]") from (
      error
    )
  first: dict[str, tuple[str, int]] = {}
  for name, each in info.splits.items():
    starts = np.cumsum([0, *each.shard_lengths]).tolist()
    first.update({os.fspath(f): (name, start) for f, start in zip(each.filepaths, starts, strict=False)})
  present = {file.name for file in epath.Path(path).iterdir()}
  slices = []
  for each in instructions:
    filename = os.fspath(each.filename)
    if os.path.basename(filename) not in present:
      raise InputError(f"{filename}: not found, expected all files of the split {split!r}")
    name, start = first[filename]
    slices.append(FileSlice(filename, each.skip, each.take, each.examples_in_shard, name, start + each.skip))
  if not slices:
    raise InputError(f"{path}: found no records in {split!r}, expected at least one")
  return slices
