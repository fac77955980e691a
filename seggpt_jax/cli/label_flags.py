"""The flags that say how label files are read, for every command that reads any."""

from __future__ import annotations

from typing import Any

from absl import flags

from seggpt_jax.cli.runner import is_given, naming_flags
from seggpt_jax.data.labels import LABEL_MODES, LabelFormat, parse_values
from seggpt_jax.errors import InputError

NAMES = ("labels", "threshold", "table", "ignore")


def define_label_flags(default: str) -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags and returns them as one group.

  Args:
    default: what happens without `--labels`, in words.
  """
  holders = [
    flags.DEFINE_enum(
      "labels",
      None,
      list(LABEL_MODES),
      "How label files are read. index: values are class indices. binary: values above --threshold are class 1. "
      f"table: the i-th value or color of --table is class i. Default: {default}.",
    ),
    flags.DEFINE_integer(
      "threshold",
      None,
      "With --labels=binary: the largest background value; 127 suits JPEG masks. Without it, "
      "masks must hold 0 and one other value.",
      0,
      255,
    ),
    flags.DEFINE_string(
      "table", None, "With --labels=table: the values or colors of classes 0, 1, ...: 0,128,255 or (0,0,0),(255,0,0)."
    ),
    flags.DEFINE_string("ignore", None, "Values or colors of pixels without a known class, written as in --table."),
  ]
  return {"Label files": holders}


def label_values() -> dict[str, Any]:
  """Returns the values of the flags, parsed; None for each flag that is not given.

  Raises:
    InputError: `--table` or `--ignore` is not a list of values or colors.
  """
  values = {name: flags.FLAGS[name].value for name in NAMES}
  for name in ("table", "ignore"):
    if values[name] is not None:
      values[name] = parse_values(values[name], f"--{name}")
  return values


def label_format() -> LabelFormat:
  """Returns the label format that the flags describe: class indices by default.

  Raises:
    InputError: the flags do not go together.
  """
  values = label_values()
  mode = values["labels"] or "index"
  if is_given("threshold") and mode != "binary":
    raise InputError(f"--threshold: found with --labels={mode}, expected only with --labels=binary")
  with naming_flags():
    return LabelFormat(mode, values["threshold"], values["table"] or (), values["ignore"] or ())
