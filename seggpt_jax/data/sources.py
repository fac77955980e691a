"""Random-access sources of labeled images: files in, `Sample`s of NumPy arrays out.

A source has a length and returns the i-th sample. It reads a file only when its sample is asked for. This module has
the interface and the source for plain image files; `formats.layouts` finds those files, `records` and `datasets`
hold the other sources, and `datasets.open_dataset` chooses among them by name.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import file_stamp, read_bytes, read_image
from seggpt_jax.formats.labels import IGNORE, LabelFormat, check_classes, check_size, read_labels
from seggpt_jax.formats.layouts import Item

_START = 2**18  # bytes of a file that tell it from others of its size


class Sample(TypedDict):
  """One labeled image: `image` uint8 [H, W, 3], `label` uint8 [H, W] (see `formats.labels`), `name`."""

  image: np.ndarray
  label: np.ndarray
  name: NotRequired[str]


@runtime_checkable
class Source(Protocol):
  """Random access to labeled images.

  Attributes:
    num_classes: number of classes N, background included; every label value is 0..N-1 or IGNORE.
  """

  num_classes: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample: ...

  def name(self, index: int) -> str:
    """Returns the sample's name without reading the sample. Names are unique and include folders."""
    ...

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    """Returns the label without decoding the image."""
    ...

  def classes(self, index: int) -> tuple[int, ...] | None:
    """Returns the foreground classes in the sample, or None if finding them means reading the label."""
    ...

  def label_stamp(self, index: int) -> str:
    """Returns a string that changes when the stored label of the sample changes, without reading it."""
    ...

  def field(self, index: int, key: str) -> str:
    """Returns further information about the sample, such as the patient it comes from.

    Raises:
      InputError: the source has no such field.
    """
    ...


@runtime_checkable
class EncodedSource(Source, Protocol):
  """A source whose images are files, which can be copied without decoding them."""

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    """Returns the undecoded image file and where it comes from, for error messages.

    Raises:
      InputError: the file cannot be read.
    """
    ...


class ImageFiles:
  """The base of sources whose images are files.

  Attributes:
    items: the samples, each with a `name` and the path of its `image`.
  """

  items: Sequence[Any]

  def __len__(self) -> int:
    return len(self.items)

  def name(self, index: int) -> str:
    return self.items[index].name

  def image_path(self, index: int) -> str:
    return self.items[index].image

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    path = self.items[index].image
    return read_bytes(path), path


class FileSource(ImageFiles):
  """Samples stored as image files. Implements `EncodedSource`.

  Args:
    items: files of each sample, see `formats.layouts`.
    num_classes: number of classes, background included.
    label_format: meaning of the label files; masks need "binary".

  Raises:
    InputError: the items have masks and the label format is not "binary". Anything wrong with a file is raised when its
      sample is read.
  """

  def __init__(self, items: Sequence[Item], num_classes: int, label_format: LabelFormat):
    masks = next((item for item in items if not isinstance(item.label, str)), None)
    if masks is not None and label_format.mode != "binary":
      raise InputError(f"{masks.image}: found masks with labels={label_format.mode}, expected labels=binary for masks")
    self.items = list(items)
    self._label_format = label_format
    self.num_classes = num_classes

  def __getitem__(self, index: int) -> Sample:
    image = read_image(self.items[index].image)
    return {"image": image, "label": self._label(index, image.shape[:2]), "name": self.name(index)}

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    return self._label(index, None)

  def classes(self, index: int) -> tuple[int, ...] | None:
    return None

  def label_stamp(self, index: int) -> str:
    label = self.items[index].label
    files = [label] if isinstance(label, str) else [mask.path for mask in label]
    return " ".join([repr(self._label_format), *map(file_stamp, files)])

  def field(self, index: int, key: str) -> str:
    raise InputError(f"field {key!r}: found files, which have no fields, expected a dataset with records")

  def _label(self, index: int, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w"]:
    """Returns the label. Its height and width must be `size` unless that is None."""
    item = self.items[index]
    if isinstance(item.label, str):
      label = _read(item.label, size, self._label_format)
      check_classes(label, self.num_classes, item.label)
      return label
    if size is None and not item.label:
      size = read_image(item.image).shape[:2]
    label = None if size is None else np.zeros(size, np.uint8)
    for mask in item.label:
      if mask.class_index >= self.num_classes:
        raise InputError(
          f"{mask.path}: found class {mask.class_index}, expected 0..{self.num_classes - 1} "
          f"(data.num_classes={self.num_classes})"
        )
      # A mask may hold the number of its instance, so it need not agree with other masks.
      alone = dataclasses.replace(self._label_format)
      read = _read(mask.path, size if label is None else label.shape, alone)
      label = np.zeros_like(read) if label is None else label
      label[(read == IGNORE) & (label == 0)] = IGNORE
      label[read == 1] = mask.class_index
    return label


def _read(path: str, size: tuple[int, int] | None, label_format: LabelFormat) -> UInt8[np.ndarray, "h w"]:
  read = read_labels(path, label_format)
  check_size(read, size, path)
  return read


def shared_images(first: Source, second: Source) -> list[str]:
  """Returns the names of images in one source whose files are also in another, under any name.

  Only files of equal size are read, and of these only the start. Sources without local image files share nothing.

  Args:
    first: the source whose names are returned.
    second: the other source.
  """
  if not (hasattr(first, "image_path") and hasattr(second, "image_path")):
    return []
  own = [first.image_path(index) for index in range(len(first))]
  others = [second.image_path(index) for index in range(len(second))]
  try:
    sizes = set(map(os.path.getsize, own)) & set(map(os.path.getsize, others))
    known = {_start(path) for path in others if os.path.getsize(path) in sizes}
    return [
      first.name(index) for index, path in enumerate(own) if os.path.getsize(path) in sizes and _start(path) in known
    ]
  except OSError:  # a remote or missing file, which is reported where it is used
    return []


def _start(path: str) -> tuple[int, bytes]:
  """Returns the size of a file and a hash of its first bytes."""
  with open(path, "rb") as file:
    return os.path.getsize(path), hashlib.sha256(file.read(_START)).digest()


def _delegated(method: str) -> Any:
  """Returns a method of `View` that asks the source of the sample."""

  def call(self: View, index: int, *rest: Any) -> Any:
    source, index = self._at(index)
    return getattr(source, method)(index, *rest)

  return call


class View:
  """Samples of other sources. Implements `Source`, and `EncodedSource` if the sources do.

  It is also the base of sources that change or keep the samples of another one.

  Args:
    *sources: sources with the same number of classes, whose samples follow one another.
    indices: the samples to take, in this order; None takes all.
  """

  def __init__(self, *sources: Source, indices: Sequence[int] | np.ndarray | None = None):
    self._sources, self._ends = sources, np.cumsum([len(source) for source in sources])
    self._indices = None if indices is None else np.asarray(indices, np.int64)
    self.num_classes = sources[0].num_classes
    self.categories: tuple[str, ...] = getattr(sources[0], "categories", ())

  def __len__(self) -> int:
    return int(self._ends[-1]) if self._indices is None else len(self._indices)

  def __getitem__(self, index: int) -> Sample:
    source, index = self._at(index)
    return source[index]

  name, label, classes = map(_delegated, ("name", "label", "classes"))
  label_stamp, field, encoded_image = map(_delegated, ("label_stamp", "field", "encoded_image"))

  def _at(self, index: int) -> tuple[Any, int]:
    """Returns the source of a sample, and the index of the sample in it."""
    index = index if self._indices is None else int(self._indices[index])
    place = int(np.searchsorted(self._ends, index, side="right"))
    return self._sources[place], index - (int(self._ends[place - 1]) if place else 0)


class CachedSource(View):
  """Keeps decoded samples of another source. Implements `Source`; several threads may read it.

  Args:
    source: the samples.
    limit: largest number of bytes of images and labels to keep, in each process that reads.
  """

  def __init__(self, source: Source, limit: int):
    super().__init__(source)
    self._limit = limit
    self._start_empty()

  def _start_empty(self) -> None:
    self._samples: collections.OrderedDict[int, Sample] = collections.OrderedDict()
    self._held, self._lock = 0, threading.Lock()

  def __getitem__(self, index: int) -> Sample:
    with self._lock:
      if index in self._samples:
        self._samples.move_to_end(index)
        return self._samples[index]
    sample = super().__getitem__(index)
    # Read-only, because later readers get the same arrays.
    for array in (sample["image"], sample["label"]):
      array.flags.writeable = False
    with self._lock:
      if index not in self._samples:
        self._samples[index] = sample
        self._held += _size(sample)
      while self._held > self._limit:
        self._held -= _size(self._samples.popitem(last=False)[1])
    return sample

  def __getstate__(self) -> dict:
    """Returns the state for a worker process, which starts with an empty cache."""
    return {key: value for key, value in self.__dict__.items() if key not in ("_samples", "_held", "_lock")}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._start_empty()


def _size(sample: Sample) -> int:
  return sample["image"].nbytes + sample["label"].nbytes
