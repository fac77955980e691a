"""The index of a split: names, groups and classes of all samples as arrays in one .npz file, known without reading."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole
from seggpt_jax.formats.images import read_bytes


class SampleIndex(NamedTuple):
  """Names, groups and classes of N samples. A million samples take about 50 MB."""

  text: UInt8[np.ndarray, "t"]  # all names as UTF-8 bytes, concatenated
  ends: Int[np.ndarray, "n"]  # position in `text` where each name ends
  group_names: np.ndarray  # names of the groups, sorted
  group_of: Int[np.ndarray, "n"]  # index of each sample's group in `group_names`
  holds: Bool[np.ndarray, "n c"]  # table that is True where a sample has a class; column 0 is the background
  bad: np.ndarray  # one line for each sample that was left out, with its name and the reason

  def __len__(self) -> int:
    # The length of a named tuple would be the number of its attributes.
    return self.ends.shape[0]

  @classmethod
  def of(
    cls,
    names: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[Sequence[int]],
    num_classes: int,
    bad: Sequence[str] = (),
  ) -> SampleIndex:
    """Builds the index from the names, groups and foreground classes of the samples, in their order.

    Args:
      names: name of each sample.
      groups: group of each sample.
      classes: foreground classes of each sample.
      num_classes: number of classes, background included.
      bad: one line for each sample that was left out.
    """
    encoded = [name.encode(errors="surrogatepass") for name in names]
    unique, group_of = np.unique(np.array(groups, str), return_inverse=True)
    holds = np.zeros((len(names), num_classes), bool)
    for row, found in zip(holds, classes, strict=True):
      row[list(found)] = True
    return cls(
      text=np.frombuffer(b"".join(encoded), np.uint8),
      ends=np.cumsum([len(name) for name in encoded], dtype=np.int64),
      group_names=unique,
      group_of=group_of.astype(np.int32),
      holds=holds,
      bad=np.array(list(bad), str),
    )

  @classmethod
  def join(cls, parts: Sequence[SampleIndex]) -> SampleIndex:
    """Concatenates indices whose samples follow one another."""
    places = [(part, index) for part in parts for index in range(len(part))]
    names, groups, classes = (
      [getattr(part, key)(index) for part, index in places] for key in ("name", "group", "classes")
    )
    return cls.of(
      names, groups, classes, parts[0].holds.shape[1], np.concatenate([part.bad for part in parts]).tolist()
    )

  def name(self, index: int) -> str:
    """Returns the name of a sample."""
    start = self.ends[index - 1] if index else 0
    return self.text[start : self.ends[index]].tobytes().decode(errors="surrogatepass")

  def group(self, index: int) -> str:
    """Returns the group of a sample."""
    return str(self.group_names[self.group_of[index]])

  def classes(self, index: int) -> tuple[int, ...]:
    """Returns the foreground classes of a sample."""
    return tuple((1 + np.flatnonzero(self.holds[index, 1:])).tolist())

  def shares(self) -> list[float]:
    """Returns, for each foreground class, the share of the samples that have it."""
    return self.holds[:, 1:].mean(axis=0).tolist() if len(self) else [0.0] * (self.holds.shape[1] - 1)

  def save(self, path: Path) -> None:
    """Writes the index to a file.

    Raises:
      InputError: the file cannot be written.
    """
    write_whole(path, lambda file: np.savez_compressed(file, **self._asdict()), replace=True)

  @classmethod
  def load(cls, path: str | os.PathLike) -> SampleIndex:
    """Reads an index that `save` wrote, local or remote.

    Raises:
      InputError: the file is missing or damaged.
    """
    data = read_bytes(path)
    try:
      with np.load(io.BytesIO(data)) as file:
        return cls(**{key: file[key] for key in cls._fields})
    except Exception as error:  # zip, zlib and NumPy raise all kinds of errors for a damaged file
      raise InputError(f"{path}: cannot be read as an index of samples: {error}") from error


def index_name(split: str) -> str:
  """Returns the name of the file with the index of a split. The file is stored next to the split's records."""
  return f"samples-{split}.npz"
