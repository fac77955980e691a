"""What is known of every sample of a split without reading it: names, groups, classes; arrays in one .npz file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from seggpt_jax.data.images import read_bytes
from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole


class SampleIndex(NamedTuple):
  """Names, groups and classes of N samples; a million of them take some 50 MB.

  Attributes:
    text: all names, UTF-8, one after the other.
    ends: where each name ends in it.
    group_names: the G groups, sorted.
    group_of: index of each sample's group.
    holds: which classes a sample holds; column 0 is the background.
    bad: files that were left out, with the reason.
  """

  text: UInt8[np.ndarray, "t"]
  ends: Int[np.ndarray, "n"]
  group_names: np.ndarray
  group_of: Int[np.ndarray, "n"]
  holds: Bool[np.ndarray, "n c"]
  bad: np.ndarray

  def __len__(self) -> int:
    # Not the number of attributes, which a tuple would say.
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
    """The index of samples in their order."""
    encoded = [name.encode() for name in names]
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
    """The index of samples that follow one another."""
    starts = np.cumsum([0, *(part.text.shape[0] for part in parts)])
    groups = np.concatenate([part.group_names[part.group_of] for part in parts])
    unique, group_of = np.unique(groups, return_inverse=True)
    return cls(
      text=np.concatenate([part.text for part in parts]),
      ends=np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=False)]),
      group_names=unique,
      group_of=group_of.astype(np.int32),
      holds=np.concatenate([part.holds for part in parts]),
      bad=np.concatenate([part.bad for part in parts]),
    )

  def name(self, index: int) -> str:
    start = self.ends[index - 1] if index else 0
    return self.text[start : self.ends[index]].tobytes().decode()

  def group(self, index: int) -> str:
    return str(self.group_names[self.group_of[index]])

  def classes(self, index: int) -> tuple[int, ...]:
    """The classes but the background."""
    return tuple((1 + np.flatnonzero(self.holds[index, 1:])).tolist())

  def shares(self) -> list[float]:
    """Share of the samples that hold each class but the background."""
    return self.holds[:, 1:].mean(axis=0).tolist() if len(self) else [0.0] * (self.holds.shape[1] - 1)

  def save(self, path: Path) -> None:
    """Writes the file, whole.

    Raises:
      InputError: it cannot be written.
    """
    write_whole(path, lambda file: np.savez_compressed(file, **self._asdict()))

  @classmethod
  def load(cls, path: str | os.PathLike) -> SampleIndex:
    """Reads what `save` wrote, local or remote.

    Raises:
      InputError: it is missing or damaged.
    """
    data = read_bytes(path)
    try:
      with np.load(io.BytesIO(data)) as file:
        return cls(**{key: file[key] for key in cls._fields})
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
      raise InputError(f"{path}: cannot be read as an index of samples: {error}") from error
