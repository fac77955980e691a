"""TFDS datasets in ArrayRecord format as a source: random access to millions of labeled images in few files.

Any TFDS dataset with an image and a label image can be read. Datasets that `prepare.writers` writes also have an
index with the names, groups and classes of all samples. TensorFlow is not needed.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from seggpt_jax.data.sample_index import SampleIndex, index_name
from seggpt_jax.data.sources import Sample
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.formats.images import decode_image, file_stamp, remote_or_local
from seggpt_jax.formats.labels import IGNORE, LabelFormat, check_classes, check_size

_INFO_FILE = "dataset_info.json"
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


class _Slice(NamedTuple):
  """Consecutive records: TFDS' instruction to read them, their split, and the position in it of the first one."""

  instruction: Any
  split: str
  first: int


class RecordSource:
  """Samples of a TFDS dataset. Implements `EncodedSource`.

  The constructor reads only the header. Each process opens the files of records when it reads its first sample.

  Args:
    path: folder of the version, which contains dataset_info.json, or a folder above it, whose newest version is taken.
    split: name of the split, or a slice of it such as train[:90%].
    num_classes: number of classes, background included.
    label_format: meaning of the label images. Records of `prepare.writers` have class indices and IGNORE.

  Raises:
    InputError: the dataset, split or image does not exist, the dataset is not in ArrayRecord format, files are missing,
      or the label format contradicts the index.
  """

  def __init__(self, path: str | os.PathLike, split: str, num_classes: int, label_format: LabelFormat):
    self._path = _find_version(path)
    self._split, self.num_classes = split, num_classes
    info = _read_info(self._path)
    self._features = _list_features(info.features)
    self._image_key, self._label_key = _image_and_label(self._features, self._path)
    self._slices = _list_slices(info, split, self._path)
    self._ends = np.cumsum([part.instruction.take for part in self._slices]).tolist()
    names = {part.split for part in self._slices}
    places = {name: epath.Path(self._path) / index_name(name) for name in names}
    self._index = {name: SampleIndex.load(place) for name, place in places.items() if place.exists()}
    for part in self._slices:
      end = part.first + part.instruction.take
      if part.split in self._index and (found := len(self._index[part.split])) < end:
        raise InputError(f"{places[part.split]}: found {found} samples, expected {end} or more, as in {_INFO_FILE}")
    self._label_format = self._checked(label_format) if self._index else label_format
    self._records = None

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_records": None}  # open files cannot be sent to other processes

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Sample:
    record = self._record(index)
    image = decode_image(self._file(record, index, self._image_key), self._where(index, self._image_key))
    label = self._decode_label(record, index)
    check_size(label, image.shape[:2], self._where(index, self._label_key))
    return {"image": image, "label": label, "name": self.name(index)}

  def name(self, index: int) -> str:
    split, position = self._place(index)
    return self._index[split].name(position) if split in self._index else f"{split}/{position:06d}"

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    return self._decode_label(self._record(index), index)

  def classes(self, index: int) -> tuple[int, ...] | None:
    split, position = self._place(index)
    if split not in self._index:
      return None
    ignored = self._label_format.ignore
    return tuple(c for c in self._index[split].classes(position) if c not in ignored)

  def label_stamp(self, index: int) -> str:
    return f"{self._label_format!r} {file_stamp(epath.Path(self._path) / 'dataset_info.json')}"

  def field(self, index: int, key: str) -> str:
    split, position = self._place(index)
    if split in self._index and key in ("name", "group"):
      return self._index[split].name(position) if key == "name" else self._index[split].group(position)
    feature = self._features.get(key)
    if feature is None or feature.is_image:
      known = ", ".join(
        f"{key} ({feature.kind})" for key, feature in sorted(self._features.items()) if not feature.is_image
      )
      raise InputError(f"{self._path}: found no field {key!r}, expected one of {known}")
    stored = self._record(index)[key]
    kind = stored.WhichOneof("kind")
    values = getattr(stored, kind).value if kind else ()
    if len(values) != 1:
      raise InputError(f"{self._where(index, key)}: found {len(values)} values, expected one")
    if feature.class_names and 0 <= values[0] < len(feature.class_names):
      return feature.class_names[values[0]]
    return values[0].decode(errors="replace") if isinstance(values[0], bytes) else str(values[0])

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    return self._file(self._record(index), index, self._image_key), self._where(index, self._image_key)

  def _checked(self, label_format: LabelFormat) -> LabelFormat:
    """Checks the label format against the index and adds IGNORE to it."""
    if label_format.mode != "index":
      raise InputError(
        f"{self._path}: found labels={label_format.mode}, expected labels=index: these records hold class indices "
        f"0.. and {IGNORE} for ignored pixels"
      )
    for index in self._index.values():
      largest = int(np.flatnonzero(index.holds.any(axis=0)).max(initial=0))
      if largest >= self.num_classes and largest not in label_format.ignore:
        raise InputError(
          f"{self._path}: found class {largest}, expected 0..{self.num_classes - 1} "
          f"(data.num_classes={self.num_classes})"
        )
    return dataclasses.replace(label_format, ignore=tuple(dict.fromkeys((*label_format.ignore, IGNORE))))

  def _decode_label(self, record: Any, index: int) -> UInt8[np.ndarray, "h w"]:
    where = self._where(index, self._label_key)
    label = self._label_format.decode(self._file(record, index, self._label_key), where)
    check_classes(label, self.num_classes, where)
    return label

  def _record(self, index: int) -> Any:
    """Returns the features of a record by key, not decoded.

    TFDS' own reader decodes all features of a record and takes five times as long.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    if not 0 <= index < len(self):
      raise IndexError(index)
    if self._records is None:
      from array_record.python.array_record_data_source import ArrayRecordDataSource

      # If two threads get here at once, one of the two objects is dropped. Neither has opened a file yet.
      self._records = ArrayRecordDataSource([part.instruction for part in self._slices])
    try:
      return tf_example_pb2.Example.FromString(self._records[index]).features.feature
    except (RuntimeError, ValueError, OSError, IndexError, DecodeError) as error:
      filename = self._slices[bisect.bisect_right(self._ends, index)].instruction.filename
      hint = ""
      if "://" in filename:
        hint = "; array_record reads local files, and gs:// with default credentials: copy the folder otherwise"
      raise InputError(f"{filename}: cannot be read, is it cut off or damaged? ({one_line(error)}){hint}") from error

  def _file(self, record: Any, index: int, key: str) -> bytes:
    values = record[key].bytes_list.value
    if len(values) != 1:
      raise InputError(f"{self._where(index, key)}: found {len(values)} images, expected one")
    return values[0]

  def _place(self, index: int) -> tuple[str, int]:
    """Returns the split of a sample and its position in the whole split, even if this source is a slice."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    i = bisect.bisect_right(self._ends, index)
    part = self._slices[i]
    return part.split, part.first + index - (self._ends[i] - part.instruction.take)

  def _where(self, index: int, key: str) -> str:
    return f"{self._path}: {self._split}[{index}] {key}"


def _find_version(path: str | os.PathLike) -> str:
  """Returns the folder of the newest version of the only dataset at or below a folder."""
  directory = remote_or_local(path)
  if not directory.is_dir():
    raise InputError(f"{path}: folder not found, expected a TFDS dataset")
  found = list(_versions(directory, _DEPTH))
  if not found:
    raise InputError(f"{path}: found no {_INFO_FILE} in it or below, expected a TFDS dataset in ArrayRecord format")
  datasets = sorted({os.fspath(version.parent) for version in found})
  if len(datasets) > 1:
    raise InputError(f"{path}: found {len(datasets)} datasets, expected one of {', '.join(datasets)}")
  return os.fspath(max(found, key=lambda version: [int(number) for number in re.findall(r"\d+", version.name)]))


def _versions(directory: epath.Path, depth: int) -> list[epath.Path]:
  if (directory / _INFO_FILE).exists():
    return [directory]
  if not depth:
    return []
  # TFDS and `prepare.writers` put "incomplete" in front of the names of unfinished folders.
  inside = [path for path in directory.iterdir() if not path.name.startswith((".", "incomplete")) and path.is_dir()]
  return [version for path in sorted(inside) for version in _versions(path, depth - 1)]


def _read_info(path: str) -> Any:
  """Reads the header of a version, a tfds.core.DatasetInfo. TensorFlow is not needed."""
  import tensorflow_datasets as tfds

  try:
    info = tfds.builder_from_directory(path).info
    alternatives = [getattr(each, "value", each) for each in info.alternative_file_formats or ()]
    if _file_format(info) != "array_record" and "array_record" in alternatives:
      info = tfds.builder_from_directory(path, file_format="array_record").info
  except Exception as error:  # TFDS and protobuf raise all kinds of errors for a damaged header
    raise InputError(f"{path}: cannot be read as a TFDS dataset: {one_line(error)}") from error
  if _file_format(info) != "array_record":
    raise InputError(
      f"{path}: found files in {_file_format(info)} format, expected ArrayRecord, which "
      "`tfds build --file_format=array_record` writes"
    )
  return info


def _file_format(info: Any) -> str:
  return info.file_format.value if info.file_format else "tfrecord"


def _list_features(feature: Any, key: str = "") -> dict[str, Feature]:
  """Returns the features of a record by key. Keys of nested features are joined by a slash."""
  kind = type(feature).__name__
  if kind != "FeaturesDict":
    return {key: Feature(kind, tuple(getattr(feature, "names", None) or ()) if kind == "ClassLabel" else ())}
  found: dict[str, Feature] = {}
  for name, inner in feature.items():
    found |= _list_features(inner, f"{key}/{name}" if key else name)
  return found


def _image_and_label(features: Mapping[str, Feature], path: str) -> tuple[str, str]:
  """Returns the keys of the image and of the label image of a record.

  The label is the feature `segmentation_mask`, or else the only one whose name speaks of a label; the image is the
  feature `image`, or else the only other one.
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


def _list_slices(info: Any, split: str, path: str) -> list[_Slice]:
  """Lists where the records of a split, or of a slice of it, are stored, in their order."""
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
    slices.append(_Slice(dataclasses.replace(each, filename=filename), name, start + each.skip))
  if not slices:
    raise InputError(f"{path}: found no records in {split!r}, expected at least one")
  return slices
