"""Flags that hold paths: `~` is expanded, and an empty value is refused."""

from __future__ import annotations

import os

from absl import flags

from seggpt_jax.errors import InputError
from seggpt_jax.files import expand

_MOST_COMMAS = 100  # parts of one name with commas in it


class _PathParser(flags.ArgumentParser):
  """Parses one path."""

  def __init__(self, allow_empty: bool = False):
    super().__init__()
    self._allow_empty = allow_empty

  def parse(self, argument: str) -> str | list[str]:
    if not argument and not self._allow_empty:
      raise ValueError("found an empty value, expected a path")
    return _expand(argument)

  def flag_type(self) -> str:
    return "path"


class _PathListParser(_PathParser):
  """Parses paths separated by commas; an empty value is no path at all. A path that exists may have commas itself."""

  def parse(self, argument: str | list[str]) -> list[str]:
    if isinstance(argument, list):
      return [_expand(path) for path in argument]
    parts, paths = argument.split(",") if argument else [], []
    while parts:
      # The longest name that exists; names that no file can have do not.
      joined = (count for count in range(min(len(parts), _MOST_COMMAS), 1, -1) if _exists(",".join(parts[:count])))
      count = next(joined, 1)
      paths.append(_expand(",".join(parts[:count]).strip()))
      parts = parts[count:]
    return paths

  def flag_type(self) -> str:
    return "paths"


def _exists(text: str) -> bool:
  """Returns whether a string is an existing path, with `~` and spaces around it as people type them."""
  try:
    return os.path.exists(expand(text.strip()))
  except InputError:
    return False


def _expand(path: str) -> str:
  """Expands `~`; the parser of flags puts the name of the flag before the message of a ValueError."""
  try:
    return expand(path)
  except InputError as error:
    raise ValueError(str(error)) from None


def define_path(
  name: str, help_string: str, *, default: str | None = None, required: bool = False, allow_empty: bool = False
) -> flags.FlagHolder:
  """Defines a flag that holds a path.

  Args:
    name: name of the flag, with underscores.
    help_string: its help.
    default: the path if the flag is not given.
    required: whether the flag must be given.
    allow_empty: whether an empty value is meaningful.
  """
  parser = _PathParser(allow_empty)
  return flags.DEFINE(parser, name, default, help_string, serializer=flags.ArgumentSerializer(), required=required)


def define_paths(name: str, help_string: str, *, required: bool = False) -> flags.FlagHolder:
  """Defines a flag that holds any number of paths separated by commas."""
  serializer, default = flags.CsvListSerializer(","), None if required else []
  return flags.DEFINE(_PathListParser(), name, default, help_string, serializer=serializer, required=required)
