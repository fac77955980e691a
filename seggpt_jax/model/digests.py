"""Digests of the files of a checkpoint: written once it is complete, compared before it is read.

A flipped bit in a file of arrays is read as other weights without an error. `digests.json` in the directory of a
checkpoint or of weights holds the size and the SHA-256 digest of every other file in it.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import parse_json, write_whole

FILE = "digests.json"
_THREADS = os.cpu_count() or 1


def seal(directory: Path, but: Collection[str] = ()) -> None:
  """Writes the digests of all files in a complete directory. Digests that it has already are kept.

  Args:
    directory: the directory.
    but: names of files at its top that are not complete yet.

  Raises:
    InputError: a file cannot be read, or the digests cannot be written.
  """
  values = _read(directory) if is_sealed(directory) else {}
  paths = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
  missing = {name: path for name, path in paths.items() if name not in (FILE, *but, *values)}
  try:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      values |= zip(missing, pool.map(_size_and_digest, missing.values()), strict=True)
  except OSError as error:
    raise InputError(f"{directory}: cannot be read: {error.strerror or error}") from error
  text = json.dumps({"sha256": values}, indent=1).encode()
  write_whole(directory / FILE, lambda file: file.write(text))


def is_sealed(directory: Path) -> bool:
  """Returns whether a directory has digests."""
  return (directory / FILE).is_file()


def damage(directory: Path, part: str = "") -> str:
  """Compares the files of a directory with their digests.

  Args:
    directory: the directory.
    part: folder in it to look at; "" for all files.

  Returns:
    A description of the first file that is missing or differs, "" if all files are whole or there are no digests.
  """
  if not is_sealed(directory):
    return ""
  try:
    expected = {name: each for name, each in _read(directory).items() if not part or Path(name).is_relative_to(part)}
  except InputError:
    return f"{FILE} is damaged"
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(_size_and_digest, [directory / name for name in expected])
    try:
      for (name, whole), each in zip(expected.items(), found, strict=True):
        if each != whole:
          return f"{name} is not what was written"
    except OSError as error:
      return f"{os.path.relpath(error.filename or directory, directory)} cannot be read: {error.strerror or error}"
  return ""


def _read(directory: Path) -> dict[str, tuple[int, str]]:
  """Returns size and digest of each file, by its path in the directory.

  Raises:
    InputError: the digests cannot be read.
  """
  try:
    stored = parse_json((directory / FILE).read_bytes())["sha256"]
    values = {str(name): (int(size), str(digest)) for name, (size, digest) in stored.items()}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in values):
      raise ValueError("found paths out of the directory")
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{directory / FILE}: cannot be read: {one_line(error)[:200]}") from error
  return values


def _size_and_digest(path: Path) -> tuple[int, str]:
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return file.tell(), digest
