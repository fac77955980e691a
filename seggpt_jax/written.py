"""The record of the files that this package has written, so that nothing of the user's is replaced or deleted.

The folder of a command's results has a hidden file with one JSON line for every file written there or below: its name,
size and time. A file may be replaced or deleted if a line describes it as it is now. Anything else is the user's: a
file that was there before, or a result that was corrected by hand. `files.write_whole` notes and checks every file;
`check_outputs` checks all files of a command before the first one is touched.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from seggpt_jax.errors import InputError

RECORD = ".seggpt_files.jsonl"
_LONGEST_NAME = 255  # bytes

_Stamp = tuple[int, int]  # size in bytes and time in nanoseconds


class _Record:
  """The lines of one record. Lines that this or another process has added since are read when they are needed."""

  def __init__(self, path: str):
    self._path, self._lock = path, threading.Lock()
    self._inode, self._read = -1, 0
    self._known: dict[str, set[_Stamp]] = {}

  def stamps(self, name: str) -> set[_Stamp]:
    """Returns the sizes and times with which a file was written."""
    with self._lock:
      try:
        with open(self._path, "rb") as file:
          found = os.fstat(file.fileno())
          if found.st_ino != self._inode or found.st_size < self._read:
            self._inode, self._read, self._known = found.st_ino, 0, {}
          file.seek(self._read)
          whole = file.read().rpartition(b"\n")[0]
      except OSError:
        return set()
      self._read += len(whole)
      for line in whole.split(b"\n"):
        try:
          entry = json.loads(line)
          self._known.setdefault(entry["name"], set()).add((entry["size"], entry["time"]))
        except (ValueError, KeyError, TypeError, RecursionError):
          continue  # an empty line, one that a kill has cut off, or one that is not from us
      return self._known.get(name, set())


@functools.lru_cache(maxsize=256)
def _record_of(folder: str) -> _Record:
  return _Record(os.path.join(folder, RECORD))


def _places(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
  """Yields the folders that may have a record of a file, the nearest first, and the name of the file in each."""
  folder, name = os.path.split(os.path.abspath(path))
  folder = os.path.realpath(folder)
  while True:
    yield folder, name
    folder, below = os.path.split(folder)
    if not below:
      return
    name = f"{below}/{name}"


def open_record(folder: str | os.PathLike) -> None:
  """Starts the record of a folder of results; without one, each folder below gets its own.

  Raises:
    OSError: the folder cannot be written to.
  """
  _append(os.path.join(folder, RECORD), b"", os.O_CREAT)


def _append(record: str, line: bytes, options: int = 0) -> None:
  # A link would lead to a file of somebody else.
  handle = os.open(record, os.O_WRONLY | os.O_APPEND | options | getattr(os, "O_NOFOLLOW", 0), 0o666)
  try:
    os.write(handle, line)
  finally:
    os.close(handle)


def note(path: Path, finished: Path) -> None:
  """Notes a file just before it gets its name. After a kill in between, the record knows the old file and the new one.

  Raises:
    OSError: the record cannot be written.
  """
  found, places = os.stat(finished), list(_places(path))
  for folder, name in places:
    entry = {"name": name, "size": found.st_size, "time": found.st_mtime_ns}
    # The line break in front ends a line that a kill has cut off.
    line = b"\n" + json.dumps(entry).encode() + b"\n"
    with contextlib.suppress(FileNotFoundError, PermissionError):  # no such file, or it is of another user
      _append(os.path.join(folder, RECORD), line)
      return
  open_record(places[0][0])
  note(path, finished)


def _stamps(path: str | os.PathLike) -> set[_Stamp]:
  return set().union(*(_record_of(folder).stamps(name) for folder, name in _places(path)))


def is_listed(path: str | os.PathLike) -> bool:
  """Returns whether this package has written a file of this name, which may have changed since."""
  return bool(_stamps(path))


def is_own(path: str | os.PathLike) -> bool:
  """Returns whether a file is as this package has written it."""
  try:
    found = os.lstat(path)
  except OSError:
    return False
  return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) in _stamps(path)


def check_replaceable(path: str | os.PathLike, remedy: str = "move it away, or choose another path") -> None:
  """Refuses to replace a file that this package has not written, or that has changed since.

  Raises:
    InputError: there is such a file, folder or link.
  """
  if os.path.lexists(path) and not is_own(path):
    known = "has changed since an earlier run wrote it" if is_listed(path) else "already exists and is not a result"
    raise InputError(f"{path}: {known}; {remedy}")


def remove_own(path: Path) -> None:
  """Removes a file if it is there and as this package has written it.

  Raises:
    OSError: the file cannot be removed.
  """
  if is_own(path):
    path.unlink(missing_ok=True)


def check_outputs(
  outputs: Iterable[str | os.PathLike],
  inputs: Iterable[str | os.PathLike] = (),
  flag: str = "--outdir",
  is_image: Callable[[str], bool] = lambda name: False,
) -> None:
  """Checks all files that a command will write, before it touches any.

  Files are compared by what they are on the disk, regardless of the links and spellings that lead to them.

  Args:
    outputs: files that will be written.
    inputs: files that are read; remote addresses and missing files are ignored.
    flag: flag that says where the outputs go, for messages.
    is_image: tells by the name whether the next run would read a file in a folder of inputs as an image.

  Raises:
    InputError: an output is an input, or one of the next run, has too long a name, or no record lists it.
  """
  read = [os.fspath(path) for path in inputs]
  files = set(map(_identity, read)) - {None}
  folders = {_identity(folder) for folder in {os.path.dirname(os.path.abspath(path)) for path in read}} - {None}
  same_folder = functools.lru_cache(maxsize=None)(lambda folder: _identity(folder) in folders)
  for path in map(os.fspath, outputs):
    folder, name = os.path.split(os.path.abspath(path))
    if files and _identity(path) in files:
      raise InputError(f"{flag}: {path} is a file that this command reads; choose another {flag}")
    if is_image(name) and same_folder(folder):
      raise InputError(
        f"{flag}: {path} would be written among the files that this command reads; choose another {flag}"
      )
    if len(os.fsencode(name)) > _LONGEST_NAME:
      raise InputError(f"{path[:80]}...: found a name of {len(os.fsencode(name))} bytes, expected at most 255")
    check_replaceable(path, f"move it away, or choose another {flag}")


def _identity(path: str) -> tuple[int, int] | None:
  """Returns device and number of a file, the same for all its names; None if there is no such file."""
  try:
    found = os.stat(path)
  except (OSError, ValueError):
    return None
  return found.st_dev, found.st_ino
