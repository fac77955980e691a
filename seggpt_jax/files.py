"""Paths, names and atomic writes: the one place that expands `~` and that says when two names are the same.

A file appears under its name only once it is complete.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seggpt_jax.errors import InputError


def expand(path: str | os.PathLike) -> str:
  """Replaces a leading `~` or `~user` with the home directory. Remote addresses such as gs://BUCKET stay as they are.

  Args:
    path: local path or remote address.
  """
  return os.path.expanduser(os.fspath(path))


def plain_name(name: str) -> str:
  """Returns the form in which names of files are compared: composed Unicode (NFC), and slashes between folders.

  macOS decomposes the accents of file names, JSON and CSV files have them composed, and Windows writes backslashes.

  Args:
    name: name or relative path of a file, as a file system or a person wrote it.
  """
  return unicodedata.normalize("NFC", name.replace("\\", "/"))


def decode_text(data: bytes) -> str:
  """Decodes a text file that a person wrote: UTF-8 with or without a byte order mark, or UTF-16 with one.

  Args:
    data: content of the file.

  Raises:
    UnicodeDecodeError: the file has another encoding.
  """
  utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  return data.decode("utf-16" if utf16 else "utf-8-sig")


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an operating system error (missing folder, no permission, disk full) into an InputError that names the path.

  Args:
    path: file or folder that is written inside the context.

  Raises:
    InputError: the operating system refused to write.
  """
  try:
    yield
  except OSError as error:
    raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def refuse_remote(key: str, path: str | os.PathLike) -> None:
  """Refuses gs:// and similar addresses where files are appended to and renamed.

  Args:
    key: flag or config key that the path comes from, for the error message.
    path: the path.

  Raises:
    InputError: the path is a remote address.
  """
  if "://" in str(path):
    raise InputError(
      f"{key}: found {path}, expected a folder of a file system; with several hosts, one that all of them share"
    )


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
  """Writes a temporary file in the same folder, then renames it. A missing folder is created.

  Args:
    path: the file.
    write: function that writes the content to the open file.

  Raises:
    InputError: the file cannot be written.
  """
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process number would not be unique: hosts that share a folder may each run their first process in a container.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
      with open(unfinished, "wb") as file:
        write(file)
      os.replace(unfinished, path)
    finally:
      unfinished.unlink(missing_ok=True)
