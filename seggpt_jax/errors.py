"""The one exception for what the person at the keyboard can mend, and how a command ends on it.

Rooms raise `InputError` with one line that names the file or key, what was found and what was expected. Commands run
through `run_main`, which prints that line and exits with status 2; all else is our mistake and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging


class InputError(ValueError):
  """The user's input is wrong; the message is one line for them."""


def one_line(message: object) -> str:
  """Its words, whatever lines and indents they came in."""
  return " ".join(str(message).split())


def refuse(message: str, problems: list[str] | None = None) -> None:
  """Raises an InputError of that message, or adds the message to the list where one is given."""
  if problems is None:
    raise InputError(message)
  problems.append(message)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
  """Puts where it comes from before an InputError that does not know: a key of the configuration, a folder."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except SyntaxError as error:
    _exit(
      f"--config: {error.filename} line {error.lineno} is no Python: {error.msg}, expected a file like configs/base.py"
    )
  except (AttributeError, KeyError) as error:
    if "get_config" in str(error):
      _exit("--config: found no function get_config in the file, expected one as in configs/base.py")
    # How ml_collections reports an unknown key of --config.KEY=VALUE: with nothing but the key in quotes.
    _exit(f"--config: unknown key {str(error).strip(chr(34))}, expected one that the config file sets")
  except (flags.Error, OSError, ValueError) as error:
    required = re.findall(r"Flag (--[\w-]+) must have a value other than None", str(error))
    _exit(f"{', '.join(required)}: missing (--help explains)" if required else error)
  except SystemExit:
    sys.exit(0)  # absl has printed --help, and thinks of it as a failure


def _exit(error: Exception | str):
  # ml_collections quotes the whole traceback of a config file that fails; its last line says why.
  message, _, traceback = str(error).partition("Traceback (most recent call last):")
  print(f"error: {one_line(message + ' ' + traceback.strip().rpartition(chr(10))[2])}", file=sys.stderr)
  sys.exit(2)


def run_main(main: Callable[[list[str]], None]) -> None:
  """`absl.app.run` with status 2 and one line for wrong flags and for `InputError`, 130 for Ctrl-C.

  Only warnings and errors are logged unless `--verbosity` is given: at absl's default, Orbax writes dozens of lines for
  every checkpoint.
  """

  def guarded(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except InputError as error:
      _exit(error)
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      sys.exit(130)  # 128 + SIGINT, as shells count

  app.run(guarded, flags_parser=_parse_flags)
