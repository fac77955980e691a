"""The note that `seggpt prepare` keeps in its output folder: the settings of the run, and its report once finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seggpt_jax.data import ledger
from seggpt_jax.errors import InputError
from seggpt_jax.written import RECORD

NOTE = "prepare.json"


def read_note(directory: Path) -> dict[str, Any]:
  """Reads what an earlier run noted; an empty dictionary for an empty folder.

  Raises:
    InputError: the note cannot be read, or the folder holds files but no note.
  """
  note = ledger.read_note(directory / NOTE)
  if note is not None:
    if not {"settings", "samples"} <= note.keys():
      raise InputError(f"{directory / NOTE}: found no settings of an earlier run in it; choose another --outdir")
    return note
  # A run that was stopped before it wrote anything may leave an unfinished note.
  present = [path.name for path in directory.iterdir() if not path.name.startswith(f".{NOTE}") and path.name != RECORD]
  if present:
    raise InputError(f"{directory}: found {present[0]} in it, expected a new folder, or that of an earlier run")
  return {}


def check_same(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Checks that an earlier run had the same settings.

  Raises:
    InputError: a setting differs; names the first.
  """
  ledger.check_settings(directory / NOTE, found, wanted, "repeat the earlier flags, or choose another --outdir")


def save_note(directory: Path, content: dict[str, Any]) -> None:
  """Replaces the note of a folder that this process has locked.

  Raises:
    InputError: the folder cannot be written to.
  """
  ledger.write_note(directory / NOTE, content)
