"""The text that `--help` prints: usage, what the command does, and its own flags, each once."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags

_VALUES = {
  "path": "PATH",
  "paths": "PATH,...",
  "int": "N",
  "float": "X",
  "string": "TEXT",
  "comma separated list of strings": "A,B,...",
  "config object": "CONFIG",
}
_GENERAL = (
  ("--help", "Print this text."),
  ("--verbosity N", "Log more than warnings: 0 for information, 1 for debugging."),
)
_COLUMN = 30  # where descriptions start


def flag_name(name: str) -> str:
  """Returns a flag as people type it: `--num-steps` for `num_steps`."""
  return f"--{name.replace('_', '-')}"


def command_help(
  command: ModuleType, program: str, groups: Mapping[str, Sequence[flags.FlagHolder]], full: bool = False
) -> str:
  """Returns the help of a command.

  Args:
    command: its module, with a docstring, `ARGUMENTS` and `more_help` where it has any.
    program: the command as people type it.
    groups: its flags, by the titles of their groups.
    full: whether to print all of `more_help`.
  """
  own = {title: [flags.FLAGS[holder.name] for holder in holders] for title, holders in groups.items()}
  required = [f"{_spellings(flag)[0]} {_value(flag)}" for group in own.values() for flag in group if _is_required(flag)]
  usage = " ".join(["usage:", program, *getattr(command, "ARGUMENTS", ()), *required, "[flags]"])
  parts = [
    textwrap.fill(usage, width(), subsequent_indent="    ", break_on_hyphens=False),
    (command.__doc__ or "").strip(),
  ]
  for title, group in own.items():
    parts.append("\n".join([f"{title}:", *(entry(_heading(flag), _description(flag)) for flag in group)]))
  parts.append("\n".join(["General:", *(entry(*each) for each in _GENERAL)]))
  if hasattr(command, "more_help"):
    parts.append(command.more_help(full))
  return "\n\n".join(parts)


def width() -> int:
  """Returns how many columns the text may fill."""
  return max(min(shutil.get_terminal_size((100, 0)).columns, 120), 60)


def entry(heading: str, description: str) -> str:
  """Returns one item of a list: its heading on the left, its description wrapped on the right."""
  lines = textwrap.wrap(description, width() - _COLUMN, break_on_hyphens=False)
  first = f"  {heading}"
  if len(first) + 2 > _COLUMN:
    lines = [first, *(" " * _COLUMN + line for line in lines)]
  else:
    lines = [f"{first:<{_COLUMN}}{lines[0]}", *(" " * _COLUMN + line for line in lines[1:])]
  return "\n".join(lines)


def _heading(flag: flags.Flag) -> str:
  return f"{', '.join(_spellings(flag))} {_value(flag)}".rstrip()


def _spellings(flag: flags.Flag) -> list[str]:
  prefix = "--[no]" if flag.boolean else "--"
  return [prefix + name for name in dict.fromkeys((flag.name.replace("_", "-"), flag.name))]


def _value(flag: flags.Flag) -> str:
  if flag.boolean:
    return ""
  choices = getattr(flag.parser, "enum_values", None)
  return f"{{{','.join(choices)}}}" if choices else _VALUES.get(flag.flag_type(), "VALUE")


def _description(flag: flags.Flag) -> str:
  # absl puts the choices of an enum before its help.
  text = re.sub(r"^<[^>]*>: |;\s+repeat this option to specify a list of values$", "", flag.help)
  if _is_required(flag):
    return f"{text} (required)"
  default = _text(flag.default_unparsed)
  return f"{text} (default: {default})" if default else text


def _text(default: Any) -> str:
  if default is None:
    return ""
  if isinstance(default, bool):
    return "on" if default else "off"
  return ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def _is_required(flag: flags.Flag) -> bool:
  return any("must have a value" in validator.message for validator in flag.validators)
