"""The flags of `InferenceOptions`, and how label files are read beside trained weights."""

from __future__ import annotations

import os
from typing import get_args

from absl import flags

from seggpt_jax.cli.label_flags import label_values
from seggpt_jax.cli.runner import naming_flags
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import Flips, InferenceOptions
from seggpt_jax.inference.queries import label_format
from seggpt_jax.model.seggpt import SegType

OPTION_NAMES = ("split", "overlap", "stitch_width", "flips", "foreground_tiles", "seg_type")


def define_option_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of `InferenceOptions` and returns them as one group."""
  holders = [
    flags.DEFINE_list(
      "split",
      "1",
      "Cut queries and prompts into N x N tiles, so that small objects are seen larger. With several numbers, such as "
      "1,2,4, the predictions are averaged.",
    ),
    flags.DEFINE_float(
      "overlap", 0.0, "Share of a tile's side, 0 to 0.9, that neighboring tiles of a query overlap by; blended."
    ),
    flags.DEFINE_integer(
      "stitch_width", 0, "Predict the seams between tiles again, in bands of this many patches on each side of a seam."
    ),
    flags.DEFINE_enum("flips", "none", get_args(Flips), "Average predictions over mirrored copies."),
    flags.DEFINE_bool("foreground_tiles", False, "Leave out tiles of prompts that have no foreground."),
    flags.DEFINE_enum("seg_type", "semantic", get_args(SegType), "Whether prompts mark a class or single instances."),
  ]
  return {"Tiles and averaging": holders}


def options_from_flags() -> InferenceOptions:
  """Returns the options that the flags describe.

  Raises:
    InputError: the flags do not go together.
  """
  split, *others = (flags.FLAGS[name].value for name in OPTION_NAMES)
  try:
    splits = [int(text) for text in split]
  except ValueError as error:
    raise InputError(f"--split: found {','.join(split)}, expected a number, or several such as 1,2,4") from error
  with naming_flags():
    return InferenceOptions(tuple(splits), *others)


def trained_label_format(model_path: str | os.PathLike) -> LabelFormat:
  """Returns how label files are read, by the flags or else as in training, and prints it.

  Args:
    model_path: weights, a training run, or the run of an adapter.

  Raises:
    InputError: the flags do not go together.
  """
  values = label_values()
  with naming_flags():
    labels = label_format(model_path, values["labels"], values["threshold"], values["table"], values["ignore"])
  print(f"labels are read as {labels}")
  return labels
