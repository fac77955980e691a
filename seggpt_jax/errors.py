"""The exception for mistakes that the user can correct: wrong files, flags and config values.

Raise `InputError` with one line that names the file or key, what was found and what was expected. Commands print that
line and exit with status 2 (`cli.runner`). `MachineError` ends them with status 1. Any other exception is a bug.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

_LONGEST = 2000  # characters of a message


class InputError(ValueError):
  """The user's input is wrong; the message is one line for the user.

  Args:
    message: the line; line breaks in it, of names or of messages of libraries, become spaces. The middle of a very long
      one is left out, as a file may have names and values of any length.
  """

  def __init__(self, message: object = ""):
    text = str(message)
    text = one_line(text) if len(text.splitlines()) > 1 or text.endswith("\n") else text
    super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 3 :]}")


class MachineError(RuntimeError):
  """The machine cannot do what is right to ask of it: its disk is full or fails. One line for the user, status 1."""


def one_line(message: object) -> str:
  """Returns the text of a message on one line."""
  return " ".join(str(message).split())


def nearest(name: str, known: Iterable[str], most: int = 3, cutoff: float | int = 0.5) -> list[str]:
  """Returns the names that a misspelled one may have been meant for, the nearest first; [] if none is near."""
  return difflib.get_close_matches(name, list(known), most, cutoff)


def either(names: Sequence[object], word: str = "or") -> str:
  """Returns names in words: `a, b or c`."""
  *first, last = map(str, names)
  return f" {word} ".join(filter(None, (", ".join(first), last)))


def refuse(message: str, problems: list[str] | None = None) -> None:
  """Reports a problem with the user's input.

  Args:
    message: the problem, in one line.
    problems: list that collects problems; without it, the first problem ends the work.

  Raises:
    InputError: there is no list.
  """
  if problems is None:
    raise InputError(message)
  problems.append(message)


@functools.lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
  """Logs a warning about the user's input, unless this process has logged the same one before."""
  logging.warning("%s", message)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
  """Puts the place of a mistake before the message of any InputError raised inside.

  Args:
    where: a config key, a flag or a folder that the code inside does not know.
  """
  try:
    yield
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


@contextlib.contextmanager
def reading_values(where: str | os.PathLike) -> Iterator[None]:
  """Turns Python's errors about values of another type or size, inside, into one line that names the file.

  Files of other programs may hold anything in any place. This is for readers that use their values at once, without a
  check of each one.

  Raises:
    InputError: a value cannot be used.
  """
  try:
    yield
  except InputError:
    raise
  except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
    raise InputError(f"{where}: found a value that cannot be read ({one_line(repr(error))[:200]})") from error
