"""The ledger of finished work: what a command notes in its output folder so that a stopped run can resume.

In: the settings of a run and the items that it has finished. Out: what earlier runs finished in the same folder, after
a check that their settings were the same. A note is one JSON object in a file that is replaced as a whole. A `Ledger`
is a file of JSON lines to which one process appends, next to the files of other processes that share the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json, write_whole, writing


def read_note(path: Path) -> dict[str, Any] | None:
  """Reads the JSON object that an earlier run wrote; None if there is no such file.

  Raises:
    InputError: the file holds anything else.
  """
  try:
    note = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(note, dict):
      raise ValueError(f"found a {type(note).__name__}, no object")
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read ({error}), expected what an earlier run wrote; delete it") from error
  return note


def write_note(path: Path, values: Mapping[str, Any]) -> None:
  """Writes a JSON object, in place of an earlier one.

  Raises:
    InputError: the folder cannot be written to.
  """
  write_whole(path, lambda file: file.write(json.dumps(dict(values), indent=2, allow_nan=False).encode() + b"\n"))


def check_settings(
  path: Path, stored: Mapping[str, Any], current: Mapping[str, Any], remedy: str, prefix: str = ""
) -> None:
  """Checks that an earlier run had the settings of this one.

  Args:
    path: file that holds the stored settings, for the message.
    stored: settings of the earlier run, as JSON values.
    current: settings of this run, as JSON values.
    remedy: what the user can do about a difference.
    prefix: text before the name of a setting, such as "--" for flags.

  Raises:
    InputError: a setting differs; names the first.
  """
  for key in {**stored, **current}:
    if stored.get(key) != current.get(key):
      raise InputError(
        f"{path}: found {prefix}{key}={stored.get(key)!r} of an earlier run, expected {current.get(key)!r} as asked "
        f"for now; {remedy}"
      )


class Ledger(contextlib.AbstractContextManager):
  """Finished items, one JSON line for each. Use it in a `with` statement, which closes it.

  Args:
    path: file of this process, in an existing folder. The file may exist.
    pattern: glob pattern of the files of all processes in that folder; None if there is only this file.

  Attributes:
    finished: the entries of all processes when the ledger was opened, and this process's entries since, by item.

  Raises:
    InputError: a file cannot be read or written.
  """

  def __init__(self, path: Path, pattern: str | None = None):
    self._path, self._pattern = path, pattern or path.name
    self.finished = read_entries(path.parent, self._pattern)
    with writing(self._path):
      self._file = open(self._path, "a+b")  # noqa: SIM115 - closed by `__exit__`
      # Ends a line that a kill has cut off, so that the next entry starts a new one.
      if self._file.seek(0, os.SEEK_END):
        self._file.seek(-1, os.SEEK_END)
        if self._file.read(1) != b"\n":
          self._file.write(b"\n")

  def add(self, name: str, **values: Any) -> None:
    """Notes an item as finished. Call it after the item's files are written.

    Args:
      name: name of the item.
      **values: JSON values to keep with it.

    Raises:
      InputError: the file cannot be written, or somebody has deleted it.
    """
    entry = {"name": name, **values}
    self.finished[name] = entry
    self._check_there()
    with writing(self._path):
      self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
      self._file.flush()

  def read_all(self) -> dict[str, dict[str, Any]]:
    """Reads the entries of all processes again; see `read_entries`.

    Raises:
      InputError: a file cannot be read, or somebody has deleted the one of this process.
    """
    self._check_there()
    return read_entries(self._path.parent, self._pattern)

  def _check_there(self) -> None:
    if not self._path.exists():
      raise InputError(f"{self._path}: not found, deleted during the run; rerun the same command")

  def __exit__(self, *_: object) -> None:
    self._file.close()


def read_entries(folder: Path, pattern: str = "*.jsonl") -> dict[str, dict[str, Any]]:
  """Reads the entries of all processes by item. Skips lines that a kill or a full disk has cut off.

  Args:
    folder: folder with the files of all processes; it may be missing.
    pattern: glob pattern of the files.

  Raises:
    InputError: a line is whole but no entry.
  """
  entries = {}
  for path in sorted(folder.glob(pattern)):
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
      try:
        entry = parse_json(line)
      except ValueError:
        continue
      if not (isinstance(entry, dict) and isinstance(entry.get("name"), str)):
        raise InputError(f"{path} line {number}: found no object with a name, expected what an earlier run wrote")
      entries[entry["name"]] = entry
  return entries
