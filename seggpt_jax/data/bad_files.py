"""The one collector of files that cannot be used: names and reasons in, a list out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seggpt_jax.files import write_whole

LIST_FILE = "bad_files.txt"  # usual name of the file that `BadFiles.write` writes


class BadFile(NamedTuple):
  """One file that cannot be used."""

  name: str  # name of the sample or image
  reason: str = ""  # one line that says what is wrong; "" if unknown
  split: str = ""  # part of the dataset, such as train; "" if there is only one part

  def __str__(self) -> str:
    return ": ".join(part for part in (self.split, self.name, self.reason) if part)


class BadFiles:
  """Collects files that cannot be used, each one once.

  Functions that take a `BadFiles | None` skip bad files and add them to the collector, or raise at the first bad file
  if they get None. An empty collector is false, so compare with `is None`.
  """

  def __init__(self):
    self._files: dict[tuple[str, str], BadFile] = {}

  def __len__(self) -> int:
    return len(self._files)

  def __iter__(self) -> Iterator[BadFile]:
    """Iterates over the files in the order in which they were added."""
    return iter(self._files.values())

  def add(self, name: str, reason: str = "", split: str = "") -> None:
    """Adds a file. If it was added before, its first reason is kept.

    Args:
      name: name of the sample or image.
      reason: one line that says what is wrong; "" if unknown.
      split: part of the dataset; "" if there is only one part.
    """
    self._files.setdefault((split, name), BadFile(name, reason, split))

  def write(self, path: Path) -> None:
    """Writes one line for each file to a text file, such as "train: 0007: cannot be read".

    Raises:
      InputError: the file cannot be written.
    """
    text = "".join(f"{file}\n" for file in self)
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))
