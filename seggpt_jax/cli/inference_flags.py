"""The flags that commands with prompts have in common: how images are shown to the network, how label files are read.

Like those of the original tool they have hyphens; underscores are understood too.
"""

from __future__ import annotations

import os
from typing import get_args

from absl import flags

from seggpt_jax.data.labels import LABEL_MODES, LabelFormat, parse_values
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import Flips, InferenceOptions
from seggpt_jax.inference.queries import label_format
from seggpt_jax.model.seggpt import SegType

APPROACH = ("split", "overlap", "stitch-width", "flips", "foreground-tiles", "seg-type")
LABELS = ("labels", "threshold", "table", "ignore")


def define_approach_flags() -> None:
  """Defines those of `InferenceOptions`."""
  flags.DEFINE_list(
    "split",
    "1",
    "Cuts queries and prompts into n x n tiles, for small things; of several, such as 1,2,4, the mean decides.",
  )
  flags.DEFINE_float(
    "overlap", 0.0, "The share of a tile's side, 0 to 0.9, that tiles of the query overlap by; they are blended."
  )
  flags.DEFINE_integer("stitch-width", 0, "Paints the seams between tiles again, this many patches on each side.")
  flags.DEFINE_enum("flips", "none", get_args(Flips), "Also looks at mirror images.")
  flags.DEFINE_bool("foreground-tiles", False, "Leaves out tiles of prompts without foreground.")
  flags.DEFINE_enum("seg-type", "semantic", get_args(SegType), "What the prompts mark.")


def approach_from_flags() -> InferenceOptions:
  """What the flags describe.

  Raises:
    InputError: they do not fit together.
  """
  split, *others = (flags.FLAGS[name].value for name in APPROACH)
  try:
    splits = [int(text) for text in split]
  except ValueError as error:
    raise InputError(f"--split: found {','.join(split)}, expected a number, or several such as 1,2,4") from error
  return InferenceOptions(tuple(splits), *others)


def define_label_flags() -> None:
  """Defines those of `LabelFormat`."""
  flags.DEFINE_enum(
    "labels",
    None,
    LABEL_MODES,
    "How label files are read: values are class indices, above --threshold is class 1, or the i-th value or color of "
    "--table is class i; by default as in training.",
  )
  flags.DEFINE_integer(
    "threshold", None, "For binary labels, 0 by default or as in training; 127 suits masks stored as JPEG.", 0, 255
  )
  flags.DEFINE_string("table", None, "For table labels: 0,128,255 or colors, (0,0,0),(255,0,0).")
  flags.DEFINE_string("ignore", None, "Values or colors of labels that are not scored, as in --table.")


def label_format_from_flags(model_path: str | os.PathLike) -> LabelFormat:
  """How label files are read, which is also printed; see `queries.label_format`.

  Args:
    model_path: weights, a training run, or an adapter's.

  Raises:
    InputError: the flags do not fit together.
  """
  mode, threshold, *values = (flags.FLAGS[name].value for name in LABELS)
  table, ignore = (
    None if value is None else parse_values(value, f"--{name}") for name, value in zip(LABELS[2:], values, strict=True)
  )
  labels = label_format(model_path, mode, threshold, table, ignore)
  print(f"labels are read as {labels}")
  return labels


def define_aliases() -> None:
  """Lets every flag with hyphens be written with underscores, which is absl's habit."""
  for name in [name for name in flags.FLAGS if "-" in name]:
    flags.DEFINE_alias(name.replace("-", "_"), name)
