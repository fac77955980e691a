"""Keeps features of labeled images in an .npz file, so that they are computed once.

Each entry has the path of its image as key and a stamp. The stamp changes with the size and time of the image and label
files and with the format that labels are read in; an entry whose stamp differs is out of date.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seggpt_jax.data.images import read_bytes
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import write_whole
from seggpt_jax.inference.queries import PromptFiles


class StoredFeatures(NamedTuple):
  """The entry of a labeled image.

  Attributes:
    stamp: result of `stamp_of`.
    digest: digest of the image file.
    holds: whether the label holds each class.
    image: feature of the image.
    foreground: feature of its foreground.
  """

  stamp: str
  digest: str
  holds: np.ndarray
  image: np.ndarray
  foreground: np.ndarray


def cache_key(prompt: PromptFiles) -> str:
  """Returns the key of a labeled image's entry, its absolute path."""
  return os.path.abspath(prompt.image)


def stamp_of(prompt: PromptFiles, labels: LabelFormat) -> str:
  """Returns a text that differs if the image, the label or the label format has changed.

  Raises:
    InputError: a file is missing.
  """
  parts = [repr(labels), os.path.abspath(prompt.labels)]
  for path in (prompt.image, prompt.labels):
    try:
      stat = os.stat(path)
    except OSError as error:
      raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    parts.append(f"{stat.st_size} {stat.st_mtime_ns}")
  return "\n".join(parts)


def write_features(path: Path, kept: dict[str, StoredFeatures]) -> None:
  """Writes entries by their keys; the file appears only when it is complete.

  Raises:
    InputError: the file cannot be written.
  """
  columns = {key: np.array([getattr(entry, key) for entry in kept.values()]) for key in StoredFeatures._fields}
  write_whole(path, lambda file: np.savez(file, place=np.array(list(kept)), **columns), replace=True)


def read_features(path: Path) -> dict[str, StoredFeatures]:
  """Reads the entries that `write_features` wrote, by their keys.

  Raises:
    InputError: the file is damaged.
  """
  try:
    with np.load(io.BytesIO(read_bytes(path))) as file:
      columns = [file[key] for key in StoredFeatures._fields]
      rows = zip(*(column if column.ndim > 1 else column.tolist() for column in columns), strict=True)
      return {place: StoredFeatures(*row) for place, row in zip(file["place"].tolist(), rows, strict=True)}
  except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
    raise InputError(
      f"{path}: cannot be read as features, damaged ({one_line(error)[:100]}): delete it to compute them again"
    ) from error
