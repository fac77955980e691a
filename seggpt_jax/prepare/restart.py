"""What a command notes in the folder it writes to, so that a run that was stopped can go on and no other mixes in."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole

NOTE = "prepare.json"


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
  """Holds the folder against a second run; the system lets go of it however this one ends."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(f"{directory}: found a run at work in it, expected none; wait for it or stop it") from error
    except OSError:
      pass  # a file system without locks
    yield
  finally:
    os.close(handle)


def read_note(directory: Path) -> dict[str, Any]:
  """What an earlier run noted; nothing for a folder that is empty."""
  file = directory / NOTE
  if file.exists():
    try:
      note = json.loads(file.read_text(encoding="utf-8"))
      if not isinstance(note, dict):
        raise ValueError(f"found a {type(note).__name__}")
      return note
    except ValueError as error:
      raise InputError(f"{file}: cannot be read, expected what an earlier run wrote: {error}") from error
  # A run that was stopped before it wrote anything may leave an unfinished note.
  present = [path.name for path in directory.iterdir() if not path.name.startswith(f".{NOTE}")]
  if present:
    raise InputError(f"{directory}: found {present[0]} in it, expected a new folder, or that of an earlier run")
  return {}


def check_same(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises InputError for the first value that is not as an earlier run had it."""
  for key in {**found, **wanted}:
    if found.get(key) != wanted.get(key):
      raise InputError(
        f"{directory / NOTE}: found {key}={found.get(key)!r} of an earlier run, expected {wanted.get(key)!r} as asked "
        "for now; repeat the earlier flags, or choose another --outdir"
      )


def save_note(directory: Path, content: dict[str, Any]) -> None:
  """Puts a note in the place of the one before."""
  file = directory / NOTE
  for torn in file.parent.glob(f".{file.name}.*"):
    torn.unlink()
  write_whole(file, lambda opened: opened.write(json.dumps(content, indent=2).encode()))
