"""The flags that hold paths or describe datasets and label files, for every command that reads any."""

from __future__ import annotations

import os
from typing import Any

from absl import flags

from seggpt_jax.cli.runner import naming_flags
from seggpt_jax.data.datasets import Dataset
from seggpt_jax.errors import InputError
from seggpt_jax.files import expand
from seggpt_jax.formats.labels import IGNORE, LABEL_MODES, LabelFormat, parse_values
from seggpt_jax.formats.recognize import KINDS

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


NAMES = ("labels", "ignore")


def define_label_flags(default: str) -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags and returns them as one group."""
  holders = [
    flags.DEFINE_string(
      "labels",
      None,
      "How label files are read. index: values are class indices. binary: masks of 0 and one other value, class 1; "
      "binary:T: values above T are class 1, and 127 suits JPEG masks. table:0,128,255 or table:(0,0,0),(255,0,0): the "
      f"i-th value or color is class i. Default: {default}.",
    ),
    flags.DEFINE_string(
      "ignore", None, "Values or colors of pixels without a known class: 255, or (255,255,255),(128,128,128)."
    ),
  ]
  return {"Label files": holders}


def label_values() -> dict[str, Any]:
  """Returns `labels` (the mode), `threshold`, `table` and `ignore` as the flags have them; None for what they lack.

  Raises:
    InputError: a flag has another form.
  """
  values: dict[str, Any] = dict.fromkeys(("labels", "threshold", "table", "ignore"))
  if (text := flags.FLAGS.labels) is not None:
    mode, colon, rest = text.partition(":")
    values["labels"] = mode
    if mode == "table":
      values["table"] = parse_values(rest, "--labels")
    elif mode == "binary" and colon and rest.isdecimal() and len(rest) < 4 and int(rest) <= 255:
      values["threshold"] = int(rest)
    elif mode not in LABEL_MODES or colon:
      raise InputError(f"--labels: found {text!r}, expected index, binary, binary:T with T from 0 to 255, or table:...")
  if flags.FLAGS.ignore is not None:
    values["ignore"] = parse_values(flags.FLAGS.ignore, "--ignore")
  return values


def define_dataset_flags(*, guess: bool) -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags and returns them in groups.

  Args:
    guess: whether the command finds out what no flag gives, and also takes the folder as an argument.
  """
  kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
  found = " Found out by default." if guess else ""
  return {
    "Dataset": [
      define_path("path", "Folder of the dataset, local or remote.", required=not guess),
      flags.DEFINE_enum(
        "kind", None if guess else "folder", list(KINDS), f"How the files are laid out. {kinds}.{found}"
      ),
      flags.DEFINE_integer(
        "num_classes", None, f"Number of classes, background included.{found}", 2, IGNORE, required=not guess
      ),
      flags.DEFINE_list("class_names", [], "Names of classes 1, 2, ...: which masks or categories to take."),
    ],
    **define_label_flags("found out" if guess else "index"),
  }


def dataset_from_flags(path: str) -> Dataset:
  """Returns the dataset that the flags describe.

  Raises:
    InputError: the flags do not go together.
  """
  values, read = flags.FLAGS, label_values()
  with naming_flags():
    labels = LabelFormat(read["labels"] or "index", read["threshold"], read["table"] or (), read["ignore"] or ())
  return Dataset(
    kind=values.kind or "folder",
    path=path,
    num_classes=values.num_classes or IGNORE,
    label_format=labels,
    class_names=tuple(values.class_names),
  )


def parse_splits(names: list[str]) -> list[str]:
  """Returns the split names of a list flag.

  Raises:
    InputError: no split is given, a name is empty, or a name is given twice.
  """
  if not names or not all(names):
    raise InputError("--split: found no name, expected names such as train,val")
  if len(set(names)) < len(names):
    raise InputError(f"--split: found {','.join(names)}, expected each name once")
  return names
