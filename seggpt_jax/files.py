"""Paths, names and atomic writes: the one place that expands `~` and that says when two names are the same.

A file or folder appears under its name only once it is complete. Until then it is called `.NAME.seggpt-UUID` and its
writer holds a lock on it. A writer that is killed leaves it behind without the lock. A file or folder with such a name
and no lock is a leftover, and the next start of the command deletes it. `written` keeps the record of finished files.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import json
import os
import re
import shutil
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seggpt_jax import written
from seggpt_jax.errors import InputError, MachineError, warn_once

try:
  import fcntl
except ImportError:  # Windows has no such locks
  fcntl = None

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNFINISHED = re.compile(r"\..+\.seggpt-[0-9a-f]{32}", re.DOTALL)  # no other program makes such names
# A file is not locked just after it is created and just before it is renamed.
MOMENT = 1.0
# Hosts may not see each other's locks. A file that has not changed for so long has no writer on any host.
HOUR = 3600.0


def expand(path: str | os.PathLike) -> str:
  """Replaces a leading `~` or `~user` with the home directory. Remote addresses such as gs://BUCKET stay as they are.

  Raises:
    InputError: there is no home directory, or no file system can have such a name.
  """
  text = os.path.expanduser(os.fspath(path))
  shown = text if len(text) <= 80 else f"{text[:80]}..."
  try:
    encoded = os.fsencode(text)
  except UnicodeEncodeError as error:
    raise InputError(f"{text!a:.80}: cannot be a file: {error.reason}") from error
  if b"\0" in encoded:
    raise InputError(f"{shown!r}: cannot be a file, found a NUL character in it")
  longest = max(map(len, encoded.replace(b"\\", b"/").split(b"/")))
  if "://" not in text and (longest > _LONGEST_NAME or len(encoded) > _LONGEST_PATH):
    what, most = ("a name", _LONGEST_NAME) if longest > _LONGEST_NAME else ("a path", _LONGEST_PATH)
    found = max(longest, len(encoded) if what == "a path" else 0)
    raise InputError(f"{shown}: cannot be a file, found {what} of {found} bytes, expected at most {most}")
  # A folder may have such a name, but a new one would surprise.
  if text.startswith("~") and not os.path.lexists(text.split("/")[0]):
    raise InputError(f"{shown}: found no home directory for {text.split('/')[0]}, expected HOME set, or a full path")
  return text


def cache_folder(path: str | os.PathLike) -> Path:
  """Creates a folder for what can be made again, and returns it.

  Raises:
    InputError: there is no home directory, or no permission to write.
  """
  folder = Path(expand(path))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error
  if not os.access(folder, os.W_OK | os.X_OK):
    raise InputError(f"{folder}: cannot be written: no permission")
  return folder


def plain_name(name: str) -> str:
  """Returns the form in which names of files are compared: composed Unicode (NFC), and slashes between folders.

  macOS decomposes the accents of file names, JSON and CSV files have them composed, and Windows writes backslashes.

  Args:
    name: name or relative path of a file, as a file system or a person wrote it.
  """
  return unicodedata.normalize("NFC", name.replace("\\", "/"))


def is_plain_text(text: str) -> bool:
  """Returns whether a string can be written to any file: no half characters, control characters or byte order mark."""
  return "\ufeff" not in text and not any(unicodedata.category(each) in ("Cc", "Cs") for each in text)


def decode_text(data: bytes) -> str:
  """Decodes a text file that a person wrote: UTF-8 with or without a byte order mark, or UTF-16 with one.

  Raises:
    UnicodeDecodeError: the file has another encoding.
  """
  utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  return data.decode("utf-16" if utf16 else "utf-8-sig")


def parse_json(text: str | bytes, **options: Any) -> Any:
  """Parses JSON of any origin.

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


def refuse_patterns(key: str, path: str | os.PathLike) -> None:
  """Refuses a folder for checkpoints whose path has one of the characters *, ? and [.

  Orbax 0.12 takes the path for a pattern when it joins the files of a checkpoint, finds none, and writes one that
  cannot be read (`merge_ocdbt_per_process_files`); this can go when it escapes the path.

  Args:
    key: flag or argument that the path comes from, for the error message.
    path: the folder.

  Raises:
    InputError: the absolute path has such a character.
  """
  absolute = os.path.abspath(expand(path))
  if found := next((character for character in "[*?" if character in absolute), None):
    raise InputError(
      f"{key}: found {found!r} in {absolute}, expected a path without *, ? and [: checkpoints there cannot be read back"
    )


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


@contextlib.contextmanager
def exclusive(directory: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
  """Locks a folder against a second run. The system releases the lock however the process ends.

  The lock holds on the file systems of one machine, and on network file systems as far as these pass locks on.

  Args:
    directory: the folder, which exists.
    shared: lets other processes in that also ask for a shared lock, such as those of one run.
    wait: waits until the lock is free.

  Raises:
    InputError: another process holds the lock.
  """
  if fcntl is None:
    yield
    return
  handle = os.open(directory, os.O_RDONLY)
  try:
    if _lock(handle, shared) is False:
      if not wait:
        raise InputError(f"{directory}: in use by another run; wait for it or stop it")
      warn_once(f"{directory}: in use by another process; this one waits until it has ended")
      _lock(handle, shared, wait)
    yield
  finally:
    os.close(handle)


def _lock(handle: int, shared: bool = False, wait: bool = False) -> bool | None:
  """Locks an open file or folder. Returns False if another process has locked it, None if there are no locks here."""
  try:
    if fcntl is not None:
      fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
      return True
  except BlockingIOError:
    return False
  except OSError:
    pass  # a file system without locks
  return None


def write_whole(path: Path, write: Callable[[BinaryIO], Any], *, replace: bool = False) -> None:
  """Writes a temporary file in the same folder, then renames it. A missing folder is created.

  Args:
    path: the file.
    write: function that writes the content to the open file.
    replace: replaces any file there, as in caches and in folders that belong to this package. Otherwise the file is
      noted in the folder's record, and only files that are listed there are replaced; see `written`.

  Raises:
    InputError: the file cannot be written, or would replace one of the user's.
    MachineError: the disk is full or fails.
  """
  with writing(path):
    if not replace:
      written.check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished_name(path)
    try:
      with open(unfinished, "wb") as file:
        _lock(file.fileno())
        write(file)
      if not replace:
        written.note(path, unfinished)
      os.replace(unfinished, path)
    finally:
      unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
  """Gives a place for a new file or folder, and renames what is there when the context ends without an error.

  A missing folder around the path is created.

  Yields:
    The place to write to, in a temporary folder next to the path.

  Raises:
    InputError: the path exists.
    OSError: the operating system refuses.
  """
  if os.path.lexists(path):
    raise InputError(f"{path}: already exists; choose a new path")
  path.parent.mkdir(parents=True, exist_ok=True)
  remove_leftovers_of(path)
  unfinished = _unfinished_name(path)
  unfinished.mkdir()
  try:
    with exclusive(unfinished):
      yield unfinished / path.name
      os.replace(unfinished / path.name, path)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def remove_leftovers_of(path: Path) -> None:
  """Deletes what killed processes left that wrote to the same path."""
  for found in path.parent.glob(f"{glob.escape(_unfinished_start(path))}*"):
    _remove_if_left(found, MOMENT)


def remove_leftovers(folder: Path, *inside: str, least_age: float = 0.0) -> None:
  """Deletes unfinished files of killed processes, if no process has locked them.

  Where there are no locks, as on Windows and some network file systems, it deletes files that are an hour old.

  Args:
    folder: folder to look in, which exists.
    *inside: names of folders in it, which may be missing, to look in at any depth.
    least_age: seconds since the last change of a file: 0 for a process that has locked the folder itself, `MOMENT`
      where others of this machine may be using it, `HOUR` where processes of other hosts may be.
  """
  for name in os.listdir(folder):
    _remove_if_left(folder / name, least_age)
  for name in inside:
    for above, _, files in os.walk(folder / name):
      for file in files:
        _remove_if_left(Path(above) / file, least_age)


def cut_bytes(text: str, most: int) -> str:
  """Returns the longest start of a string that takes at most so many bytes in a file name."""
  while len(os.fsencode(text)) > most:
    text = text[: min(len(text) - 1, most)]
  return text


def _unfinished_start(path: Path) -> str:
  return f".{cut_bytes(path.name, _LONGEST_NAME - len('..seggpt-') - 32)}.seggpt-"


def _unfinished_name(path: Path) -> Path:
  # A process number would not be unique: hosts that share a folder may each run their first process in a container.
  return path.with_name(f"{_unfinished_start(path)}{uuid.uuid4().hex}")


def _remove_if_left(path: Path, least_age: float) -> None:
  """Deletes an unfinished file or folder that no process writes any more."""
  if not _UNFINISHED.fullmatch(path.name):
    return
  with contextlib.suppress(OSError):  # another process may have deleted it, or own it
    is_folder = path.is_dir()
    # Network file systems lock only what is open for writing.
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
      locked = _lock(handle)
      if locked is not False and time.time() - path.stat().st_mtime >= (least_age if locked else HOUR):
        shutil.rmtree(path) if is_folder else path.unlink()
    finally:
      os.close(handle)
