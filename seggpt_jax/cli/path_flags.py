"""Flags that hold paths: `~` is expanded, and an empty value is refused."""

from __future__ import annotations

import os

from absl import flags

from seggpt_jax.files import expand


class _PathParser(flags.ArgumentParser):
  """Parses one path."""

  def __init__(self, allow_empty: bool):
    super().__init__()
    self._allow_empty = allow_empty

  def parse(self, argument: str) -> str:
    if not argument and not self._allow_empty:
      raise ValueError("found an empty value, expected a path")
    return expand(argument)

  def flag_type(self) -> str:
    return "path"


class _PathListParser(flags.ArgumentParser):
  """Parses paths separated by commas; an empty value is no path at all. A path that exists may have commas itself."""

  def parse(self, argument: str | list[str]) -> list[str]:
    if isinstance(argument, list):
      return [expand(path) for path in argument]
    parts, paths = argument.split(",") if argument else [], []
    while parts:
      joined = {count: expand(",".join(parts[:count]).strip()) for count in range(len(parts), 0, -1)}
      count = next((count for count, path in joined.items() if os.path.exists(path)), 1)
      paths.append(joined[count])
      parts = parts[count:]
    return paths

  def flag_type(self) -> str:
    return "paths"


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


def define_paths(name: str, help_string: str) -> flags.FlagHolder:
  """Defines a flag that holds any number of paths separated by commas.

  Args:
    name: name of the flag, with underscores.
    help_string: its help.
  """
  return flags.DEFINE(_PathListParser(), name, [], help_string, serializer=flags.CsvListSerializer(","))
