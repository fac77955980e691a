"""The one collector of files that cannot be used: names and reasons in, a limit on their share, a list out."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from seggpt_jax.errors import InputError
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
  """Collects files that cannot be used, reports each one once, and stops when there are too many.

  Functions that take a `BadFiles | None` skip bad files and add them to the collector, or raise at the first bad file
  if they get None. An empty collector is false, so compare with `is None`.

  Args:
    say: called with one line for each new file; None reports nothing.
    max_share: largest share of a split's files that may be bad, 0 to 1; None sets no limit.
    totals: number of all files in each split; needed with `max_share`.
    setting: flag or config key that sets `max_share`, for the error message.
  """

  def __init__(
    self,
    say: Callable[[str], None] | None = None,
    max_share: float | None = None,
    totals: Mapping[str, int] | None = None,
    setting: str = "bad_share",
  ):
    self._say, self._max_share, self._totals, self._setting = say, max_share, dict(totals or {}), setting
    self._files: dict[tuple[str, str], BadFile] = {}
    self._counts: collections.Counter[str] = collections.Counter()

  def __len__(self) -> int:
    return len(self._files)

  def __iter__(self) -> Iterator[BadFile]:
    """Iterates over the files in the order in which they were added."""
    return iter(self._files.values())

  def add(self, name: str, reason: str = "", split: str = "") -> None:
    """Adds a file. If it was added before, its first reason is kept and nothing is reported.

    Args:
      name: name of the sample or image.
      reason: one line that says what is wrong; "" if unknown.
      split: part of the dataset; "" if there is only one part.
    """
    if (split, name) in self._files:
      return
    self._files[split, name] = BadFile(name, reason, split)
    self._counts[split] += 1
    if self._say is not None:
      what = f"{split} {name}".strip() + (f": {reason}" if reason else " cannot be read")
      self._say(f"passed over: {what} ({self.count(split)} so far)")

  def count(self, split: str = "") -> int:
    """Returns the number of bad files in a split."""
    return self._counts[split]

  def check(self) -> None:
    """Checks that no split has more bad files than allowed.

    Raises:
      InputError: the share of bad files in a split is larger than `max_share`.
    """
    for split, total in self._totals.items():
      count = self.count(split)
      if self._max_share is not None and count > self._max_share * total:
        raise InputError(
          f"{self._setting}: found {count} bad files of {total} in {split}, expected at most {self._max_share:.2%}; "
          "`seggpt inspect` lists them"
        )

  def lines(self) -> list[str]:
    """Returns one line for each file, such as "train: 0007: cannot be read"."""
    return [str(file) for file in self]

  def write(self, path: Path) -> None:
    """Writes the lines of all files to a text file.

    Raises:
      InputError: the file cannot be written.
    """
    text = "".join(f"{line}\n" for line in self.lines())
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))
