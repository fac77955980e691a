"""TFDS datasets in ArrayRecord format as a source: random access to millions of labeled images in few files.

Records of any TFDS dataset with an image and a label image do; those of `record_writer` also have an index of names,
groups and classes beside them. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import re
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from seggpt_jax.data.images import decode_image, remote_or_local
from seggpt_jax.data.labels import IGNORE, LabelFormat, check_classes
from seggpt_jax.data.sample_index import SampleIndex
from seggpt_jax.data.sources import Sample, check_size
from seggpt_jax.errors import InputError, one_line

INFO_FILE = "dataset_info.json"
_DEPTH = 4  # dataset / config / version below the folder given


class _Feature(NamedTuple):
  """What a record holds under a key."""

  kind: str
  class_names: tuple[str, ...] = ()


class _Run(NamedTuple):
  """Records that follow one another in one file."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int
  split: str
  first: int  # position in the split of the first one


class RecordSource:
  """Samples of a TFDS dataset; see `sources.Source`.

  Only the header is read at the start. Records are opened when they are asked for, once in each process.

  Args:
    path: the version's folder, which holds dataset_info.json, or one above it: then the newest version is taken.
    split: name of the part; also slices such as train[:90%].
    num_classes: N, background included.
    label_format: how label images are read. Records of `record_writer` hold class indices and IGNORE.
    image_key: the image in a record; keys of nested features are joined by a slash.
    label_key: the label image.

  Raises:
    InputError: there is no such dataset, split or key, it is not in ArrayRecord format, files are missing, or the
      labels are read in another way than they were written.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    split: str,
    num_classes: int,
    label_format: LabelFormat,
    image_key: str = "image",
    label_key: str = "segmentation_mask",
  ):
    self._path = find_version(path)
    self._split, self.num_classes = split, num_classes
    self._image_key, self._label_key = image_key, label_key
    info = _read_info(self._path)
    self._features = _features(info)
    for key in (image_key, label_key):
      if self._features.get(key, _Feature("")).kind not in ("Image", "LabeledImage"):
        raise InputError(f"{self._path}: found no image {key!r}, expected one of the images among {self._listed()}")
    self._runs = _runs(info, split, self._path)
    self._ends = np.cumsum([run.take for run in self._runs]).tolist()
    names = {run.split for run in self._runs}
    places = {name: epath.Path(self._path) / index_name(name) for name in names}
    self._index = {name: SampleIndex.load(place) for name, place in places.items() if place.exists()}
    self._label_format = self._checked(label_format) if self._index else label_format
    self._records = None

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_records": None}  # open files do not travel to other processes

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

  def field(self, index: int, key: str) -> str:
    split, position = self._place(index)
    if split in self._index and key in ("name", "group"):
      return self._index[split].name(position) if key == "name" else self._index[split].group(position)
    feature = self._features.get(key)
    if feature is None or feature.kind in ("Image", "LabeledImage"):
      raise InputError(f"{self._path}: found no field {key!r}, expected one of {self._listed()}, but no image")
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
    """The format of our own records, which say themselves what their labels mean."""
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
    """The features of a record by key, none decoded.

    TFDS' own reader decodes all features of a record, in five times the time that this takes.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    if not 0 <= index < len(self):
      raise IndexError(index)
    if self._records is None:
      from array_record.python.array_record_data_source import ArrayRecordDataSource

      # Two threads may do so at once: one of the two is kept, and none has a file open yet.
      self._records = ArrayRecordDataSource([_instruction(run) for run in self._runs])
    try:
      return tf_example_pb2.Example.FromString(self._records[index]).features.feature
    except (RuntimeError, ValueError, OSError, IndexError, DecodeError) as error:
      run = self._runs[bisect.bisect_right(self._ends, index)]
      reason = one_line(error)
      hint = ""
      if "://" in run.filename:
        hint = "; array_record reads local files, and gs:// with default credentials: copy the folder otherwise"
      raise InputError(f"{run.filename}: cannot be read, is it cut off or damaged? ({reason}){hint}") from error

  def _file(self, record: Any, index: int, key: str) -> bytes:
    values = record[key].bytes_list.value
    if len(values) != 1:
      raise InputError(f"{self._where(index, key)}: found {len(values)} images, expected one")
    return values[0]

  def _place(self, index: int) -> tuple[str, int]:
    """Split and position in it, which a slice does not change."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    i = bisect.bisect_right(self._ends, index)
    run = self._runs[i]
    return run.split, run.first + index - (self._ends[i] - run.take)

  def _where(self, index: int, key: str) -> str:
    return f"{self._path}: {self._split}[{index}] {key}"

  def _listed(self) -> str:
    return ", ".join(f"{key} ({feature.kind})" for key, feature in sorted(self._features.items()))


def index_name(split: str) -> str:
  """File with the index of a split, beside its records."""
  return f"samples-{split}.npz"


def find_version(path: str | os.PathLike) -> str:
  """The newest version of the dataset at or below a folder.

  Raises:
    InputError: there is none, or several datasets are.
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
  # TFDS and `record_writer` call what they have not finished incomplete.
  inside = [path for path in directory.iterdir() if not path.name.startswith((".", "incomplete")) and path.is_dir()]
  return [version for path in sorted(inside) for version in _versions(path, depth - 1)]


def _read_info(path: str) -> Any:
  """The dataset's tfds.core.DatasetInfo."""
  import tensorflow_datasets as tfds
  from google.protobuf import json_format

  try:
    info = tfds.builder_from_directory(path).info
    if _file_format(info) != "array_record" and "array_record" in _alternatives(info):
      info = tfds.builder_from_directory(path, file_format="array_record").info
  except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError, json_format.Error) as error:
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


def _features(info: Any) -> dict[str, _Feature]:
  """What a record holds, by key."""
  found: dict[str, _Feature] = {}

  def visit(feature: Any, key: str) -> None:
    kind = type(feature).__name__
    if kind == "FeaturesDict":
      for name, inner in feature.items():
        visit(inner, f"{key}/{name}" if key else name)
    else:
      found[key] = _Feature(kind, tuple(getattr(feature, "names", None) or ()) if kind == "ClassLabel" else ())

  visit(info.features, "")
  return found


def _runs(info: Any, split: str, path: str) -> list[_Run]:
  """Where the records of a split lie."""
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
  runs = []
  for each in instructions:
    filename = os.fspath(each.filename)
    if os.path.basename(filename) not in present:
      raise InputError(f"{filename}: not found, expected all files of the split {split!r}")
    name, start = first[filename]
    runs.append(_Run(filename, each.skip, each.take, each.examples_in_shard, name, start + each.skip))
  if not runs:
    raise InputError(f"{path}: found no records in {split!r}, expected at least one")
  return runs


def _instruction(run: _Run) -> Any:
  from tensorflow_datasets.core.utils.shard_utils import FileInstruction

  return FileInstruction(run.filename, run.skip, run.take, run.examples_in_shard)
