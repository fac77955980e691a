"""Finds the folders and lists of a benchmark's dataset on disk; errors name what is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from seggpt_jax.errors import InputError
from seggpt_jax.files import decode_text, expand


def existing_folder(directory: str | os.PathLike) -> Path:
  """Returns the folder of a dataset.

  Raises:
    InputError: there is no such folder.
  """
  path = Path(expand(directory))
  if not path.is_dir():
    raise InputError(f"{directory}: folder not found, expected the dataset (--data-dir)")
  return path


def find_root(directory: str | os.PathLike, candidates: Sequence[str], inside: str) -> Path:
  """Returns the first candidate folder that contains a certain folder.

  Args:
    directory: folder that the user named.
    candidates: paths relative to it, such as "" and "VOC2012".
    inside: name of the folder that the root contains, such as "JPEGImages".

  Raises:
    InputError: no candidate contains that folder.
  """
  root = existing_folder(directory)
  for candidate in candidates:
    if (root / candidate / inside).is_dir():
      return root / candidate
  looked = ", ".join(os.path.join(directory, candidate, inside) for candidate in candidates)
  raise InputError(f"{directory}: found no {inside}/ in it, expected {looked}")


def read_lines(path: str | os.PathLike) -> list[str]:
  """Returns the non-empty lines of a text file, without spaces around them.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    lines = decode_text(Path(path).read_bytes()).splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: cannot be read ({error}), expected a text file with one name in each line") from error
  return [line.strip() for line in lines if line.strip()]
