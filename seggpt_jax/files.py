"""Paths, names and atomic writes: the one place that expands `~` and that says when two names are the same.

A file appears under its name only once it is complete.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seggpt_jax.errors import InputError, MachineError

_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def parse_json(text: str | bytes, **options: Any) -> Any:
  """Parses JSON of any origin.

  Args:
    text: the JSON text.
    **options: options of `json.loads`.

  Raises:
    ValueError: the text is no JSON, or its values are nested thousands of times.
  """
  try:
    return json.loads(text, **options)
  except RecursionError as error:
    raise ValueError("nested too deeply") from error


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an error of the operating system into one line that names the path.

  Args:
    path: file or folder that is written inside the context.

  Raises:
    InputError: the operating system refused to write, as a folder is missing or needs permission.
    MachineError: the disk is full or fails.
  """
  try:
    yield
  except (InputError, MachineError):
    raise
  # Libraries wrap the errors of a full disk in errors of their own.
  except Exception as error:
    if is_full(error):
      raise MachineError(f"{path}: the disk is full; make room and rerun the same command") from error
    if isinstance(error, OSError) and error.errno == errno.EIO:
      raise MachineError(f"{path}: cannot be written, the disk fails: {error.strerror}") from error
    if isinstance(error, OSError):
      raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    raise


def is_full(error: BaseException | None) -> bool:
  """Returns whether an error or one of its causes is a full disk or quota. TensorStore only tells by the message."""
  seen = []  # causes can form a circle where an error was raised again
  while error is not None and error not in seen:
    if getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL):
      return True
    seen.append(error)
    error = error.__cause__ or error.__context__
  return False


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
    MachineError: the disk is full or fails.
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
