"""Runs one command: parses its flags, prints its help, and turns every outcome into an exit status.

A command is a module of this package with

- a docstring, the text of its help;
- `ARGUMENTS`, names of the positional arguments, all of them paths (optional), with brackets if they may be missing;
- `define_flags()`, which defines the flags and returns them in groups, by the titles that the help shows;
- `main(*arguments)`, which does the work, with the values of `ARGUMENTS`;
- `more_help(full)`, further text for the end of the help, all of it with `--helpfull` (optional).

Status 0: done. 2: the user's input is wrong; one line on stderr says how. 130: interrupted. 1: anything else; one line
on stderr names the file with the traceback, which `--verbosity=0` prints instead.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from logging import Formatter
from types import ModuleType
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging

from seggpt_jax.child_processes import follow_parent
from seggpt_jax.errors import InputError, MachineError, either, nearest, one_line
from seggpt_jax.files import expand

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


def _command_help(
  command: ModuleType, program: str, groups: Mapping[str, Sequence[flags.FlagHolder]], full: bool = False
) -> str:
  """Returns the help of a command: usage, its docstring, its flags by the titles of their groups, and `more_help`."""
  own = {title: [flags.FLAGS[holder.name] for holder in holders] for title, holders in groups.items()}
  required = [f"{_spellings(flag)[0]} {_value(flag)}" for group in own.values() for flag in group if _is_required(flag)]
  usage = " ".join(["usage:", program, *getattr(command, "ARGUMENTS", ()), *required, "[flags]"])
  parts = [
    textwrap.fill(usage, _width(), subsequent_indent="    ", break_on_hyphens=False),
    (command.__doc__ or "").strip(),
  ]
  for title, group in own.items():
    parts.append("\n".join([f"{title}:", *(entry(_heading(flag), _description(flag)) for flag in group)]))
  parts.append("\n".join(["General:", *(entry(*each) for each in _GENERAL)]))
  if hasattr(command, "more_help"):
    parts.append(command.more_help(full))
  return "\n\n".join(parts)


def _width() -> int:
  """Returns how many columns the text may fill."""
  return max(min(shutil.get_terminal_size((100, 0)).columns, 120), 60)


def entry(heading: str, description: str) -> str:
  """Returns one item of a list: its heading on the left, its description wrapped on the right."""
  lines = textwrap.wrap(description, _width() - _COLUMN, break_on_hyphens=False)
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


_HELP = {"h", "?", "help", "helpfull", "helpshort"}  # with one hyphen or two


def is_given(name: str) -> bool:
  """Returns whether the command line sets a flag."""
  return bool(flags.FLAGS[name].present)


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
  """Turns the option at the start of an InputError into the flag that sets it: `overlap:` into `--overlap:`."""
  try:
    yield
  except InputError as error:
    name, colon, rest = str(error).partition(":")
    raise InputError(f"{flag_name(name)}:{rest}" if colon and name in flags.FLAGS else str(error)) from error


def run(command: ModuleType, program: str, arguments: Sequence[str]) -> NoReturn:
  """Runs a command and exits.

  Only warnings and errors are logged unless `--verbosity` is given: at absl's default, Orbax logs dozens of lines for
  every checkpoint.

  Args:
    command: the module of the command.
    program: the command as people type it, for its help.
    arguments: the command line after the name of the command.
  """
  follow_parent()
  _open_missing_streams()
  if hasattr(signal, "SIGHUP") and not getattr(command, "ENDS_WITH_TERMINAL", False):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that is closed must not end the work
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the work
  groups = command.define_flags()
  own = [holder.name for holders in groups.values() for holder in holders]
  asked = {argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")} & _HELP
  if asked:
    print(_command_help(command, program, groups, full="helpfull" in asked))
    sys.exit(0)
  # ml_collections looks for the keys of a config in sys.argv.
  sys.argv = [program, *_registered_names(arguments)]

  def guarded(argv: list[str]) -> None:
    sys.stdout, sys.stderr = _LastingOutput(sys.stdout), _LastingOutput(sys.stderr, warns=False)
    logging.get_absl_handler().python_handler.stream = sys.stderr
    if not is_given("verbosity"):
      logging.set_verbosity(logging.WARNING)
      logging.get_absl_handler().setFormatter(Formatter("%(levelname)s: %(message)s"))
    try:
      command.main(*_check_arguments(argv[1:], getattr(command, "ARGUMENTS", ())))
    except InputError as error:
      _exit(error)
    except MachineError as error:
      print(f"error: {one_line(error)}", file=sys.stderr)
      sys.exit(1)
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      sys.exit(130)  # 128 + SIGINT, as shells count
    except Exception as error:
      if is_given("verbosity"):
        raise
      _report(error)

  app.run(guarded, argv=sys.argv, flags_parser=lambda argv: _parse(argv, own))
  sys.exit(0)


def _registered_names(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments with every flag spelled as it is defined: hyphens and underscores mean the same."""
  defined = {name.replace("-", "_"): name for name in flags.FLAGS}

  def spell(argument: str) -> str:
    name, equals, value = argument.lstrip("-").partition("=")
    plain = name.replace("-", "_")
    if not argument.startswith("-") or not name:
      return argument
    if plain in defined:
      return f"--{defined[plain]}{equals}{value}"
    positive = plain.removeprefix("no").lstrip("_")
    return f"--no{defined[positive]}" if plain.startswith("no") and positive in defined and not equals else argument

  end = arguments.index("--") if "--" in arguments else len(arguments)
  return [*map(spell, arguments[:end]), *arguments[end:]]


def _parse(argv: list[str], own: Sequence[str]) -> list[str]:
  """Parses the flags; `own` are the names that a misspelled flag may have been meant for."""
  try:
    positional = flags.FLAGS(argv)
    for name in own:
      value = flags.FLAGS[name].value
      if isinstance(value, float) and not math.isfinite(value):  # NaN is in all bounds
        _exit(f"{flag_name(name)}: found {value}, expected a finite number")
    return positional
  except flags.UnrecognizedFlagError as error:
    if error.flagname.removeprefix("no").startswith("config.") and "config" in own:
      _exit("--config: missing, expected it before the keys that are set, for example --config small")
    meant = nearest(error.flagname.replace("-", "_"), own)
    expected = f"expected {either([*map(flag_name, meant)])} (--help)" if meant else "--help lists the flags"
    _exit(f"--{error.flagname}: unknown flag, {expected}")
  except (flags.Error, ValueError, RecursionError) as error:  # a list in a list, thousands of times
    if isinstance(error.__context__, InputError):
      _exit(error.__context__)
    missing = re.findall(r"Flag --([\w-]+) must have a value other than None", str(error))
    if missing:
      _exit(f"{', '.join(map(flag_name, missing))}: missing (--help)")
    _exit(re.sub(r"^flag --([\w-]+)=", lambda match: f"{flag_name(match[1])}=", str(error)))


def _check_arguments(found: Sequence[str], names: Sequence[str]) -> list[str]:
  """Returns the arguments that are no flags, with `~` expanded; refuses more or fewer than there should be."""
  if found and not names:
    raise InputError(f"found argument {found[0]!r}, expected only flags (--help)")
  if not sum(not name.startswith("[") for name in names) <= len(found) <= len(names):
    count = f"{len(found)} argument{'' if len(found) == 1 else 's'}"
    raise InputError(f"found {count}, expected {len(names)}: {' '.join(names)} (--help)")
  for name, value in zip(names, found, strict=False):
    if not value:
      raise InputError(f"{name}: found an empty value, expected a path")
  return [expand(value) for value in found]


def _open_missing_streams() -> None:
  """Opens standard streams that are closed, as by `2>&-`: the next file would get their numbers, and their text."""
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest number
  for number, name in ((1, "stdout"), (2, "stderr")):
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 - for the rest of the process


class _LastingOutput:
  """Passes text on to standard output or error, until that is closed or full; the work continues without it."""

  def __init__(self, stream: TextIO, warns: bool = True):
    self._stream, self._warns = stream, warns

  def write(self, text: str) -> int:
    with self._lasting():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with self._lasting():
      self._stream.flush()

  @contextlib.contextmanager
  def _lasting(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError) as error:  # ValueError: the program that started this one has closed it
      self._stream = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
      if self._warns:
        logging.warning("standard output cannot be written to (%s); the work continues without it", error)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def _report(error: Exception) -> NoReturn:
  """Prints one line about an error that is not the user's, writes its traceback to a file, and exits with status 1."""
  text = "".join(traceback.format_exception(error))
  try:
    with tempfile.NamedTemporaryFile("w", prefix="seggpt_", suffix=".log", delete=False) as file:
      file.write(text)
    where = f"traceback in {file.name}"
  except OSError:
    where = "no room for a traceback; print it with --verbosity=0"
  print(f"error: {type(error).__name__}: {one_line(error)[:500]}; {where}", file=sys.stderr)
  sys.exit(1)


def _exit(error: Exception | str) -> NoReturn:
  print(f"error: {one_line(error)}", file=sys.stderr)
  sys.exit(2)
