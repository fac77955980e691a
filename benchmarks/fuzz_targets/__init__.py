"""Targets to fuzz: each has small files to mutate, and a function that reads them. A try mutates one file and reads."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.mutations import mutate
from seggpt_jax.errors import InputError

OUTCOMES = ("read", "refused", "crashed", "slow", "large")
_LONGEST_MESSAGE = 2000  # characters


class Laps:
  """Times the parts of a try, since the time limit holds for one reading of a file and a target may read it often.

  Attributes:
    longest: seconds of the longest lap since the start.
    report: called at the end of each lap.
  """

  def __init__(self):
    self.report: Callable[[], None] = lambda: None
    self.start()

  def start(self) -> None:
    """Starts the first lap of a try."""
    self.longest, self._began = 0.0, time.monotonic()

  def end_lap(self) -> None:
    """Ends a lap and starts the next."""
    now = time.monotonic()
    self.longest, self._began = max(self.longest, now - self._began), now
    self.report()


@dataclasses.dataclass
class Target:
  """One format to fuzz.

  Attributes:
    seeds: content by relative file name of the files that get mutated; they are already written in the folder.
    read: reads everything from the folder. It raises InputError or returns, and asserts that what was read is valid.
    structured: whether files are JSON, YAML or XML, which are also mutated by their structure.
    laps: times the readings; `read` ends a lap after each if it reads a file more than once.
  """

  seeds: dict[str, bytes]
  read: Callable[[], None]
  structured: bool
  laps: Laps = dataclasses.field(default_factory=Laps)


class Outcome(NamedTuple):
  """The end of one try: one of `OUTCOMES`, and the error."""

  what: str
  error: str = ""


def mutation(target: Target, name: str, seed: int, number: int) -> tuple[str, bytes]:
  """Returns the name and the content of the file that a try mutates: the same ones for the same arguments."""
  digest = hashlib.sha256(f"{name} {seed} {number}".encode()).digest()
  draw = random.Random(int.from_bytes(digest[:8], "big"))
  file = draw.choice(sorted(target.seeds))
  return file, mutate(target.seeds[file], file, target.structured, draw)


def attempt(folder: Path, target: Target, file: str, content: bytes) -> Outcome:
  """Reads a target with one of its files mutated, and puts the file back."""
  path = folder / file
  path.write_bytes(content)
  target.laps.start()
  try:
    target.read()
    return Outcome("read")
  except InputError as error:
    message = str(error)
    if len(message.splitlines()) != 1 or len(message) > _LONGEST_MESSAGE:
      return Outcome("crashed", f"message of {len(message)} characters and several lines: {message[:500]!r}")
    # Configurations are told by their keys, weights by their directory, and what a command prints names a flag or its
    # value.
    starts = ("config.", "error: ", f"{Path(file).parts[0]}: ")
    if not (str(folder) in message or path.name in message or message.startswith(starts)):
      return Outcome("crashed", f"message without the file: {message}")
    return Outcome("refused", message)
  except BaseException:  # also of exceptions in other libraries that are no Exception
    return Outcome("crashed", traceback.format_exc())
  finally:
    target.laps.end_lap()
    path.write_bytes(target.seeds[file])
