"""Features of labeled images in a file, so that they are computed once.

In and out: what is kept of each image, by its path, in one .npz file. Whether it is still true is told by a stamp of
size and time of the image's and the label's files and of how labels are read.
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
  """What is kept of a labeled image.

  Attributes:
    stamp: as of `stamp_of`.
    digest: of the image's file.
    holds: which classes the label holds.
    image: feature of the image.
    foreground: feature of its foreground.
  """

  stamp: str
  digest: str
  holds: np.ndarray
  image: np.ndarray
  foreground: np.ndarray


def place_of(prompt: PromptFiles) -> str:
  """Under which name a labeled image is kept."""
  return os.path.abspath(prompt.image)


def stamp_of(prompt: PromptFiles, labels: LabelFormat) -> str:
  """What tells whether features are still those of the files.

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
  """Writes the file, whole.

  Raises:
    InputError: it cannot be written.
  """
  columns = {key: np.array([getattr(entry, key) for entry in kept.values()]) for key in StoredFeatures._fields}
  write_whole(path, lambda file: np.savez(file, place=np.array(list(kept)), **columns))


def read_features(path: Path) -> dict[str, StoredFeatures]:
  """What `write_features` wrote, by `place_of`.

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
      f"{path}: cannot be read as features, damaged ({one_line(error)[:100]}): delete it and they are computed anew"
    ) from error
