"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seggpt_jax.errors import InputError


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns what the system says against writing there (no folder, no permission, disk full) into an InputError."""
  try:
    yield
  except OSError as error:
    raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def refuse_remote(key: str, path: str | os.PathLike) -> None:
  """Refuses gs:// and the like where files are appended to and moved.

  Raises:
    InputError: the path has a scheme.
  """
  if "://" in str(path):
    raise InputError(
      f"{key}: found {path}, expected a folder of a file system, which all hosts share if there are many"
    )


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
  """Writes a file beside its place and moves it there; makes the folder where it is missing.

  Args:
    path: the file.
    write: is given the open file.

  Raises:
    InputError: it cannot be written.
  """
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process' number: on hosts that share a folder, each process may be the first of its container.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
      with open(unfinished, "wb") as file:
        write(file)
      os.replace(unfinished, path)
    finally:
      unfinished.unlink(missing_ok=True)
