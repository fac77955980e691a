"""The flags of `InferenceOptions`, and how label files are read with trained weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, get_args

from absl import flags

from seggpt_jax.cli.help_text import flag_name
from seggpt_jax.cli.label_flags import label_values
from seggpt_jax.cli.runner import naming_flags
from seggpt_jax.data.scale import fewest_cells
from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.object_scale import measure_objects
from seggpt_jax.inference.options import MOST_AREA, Flips, Heads, InferenceOptions
from seggpt_jax.inference.queries import label_format
from seggpt_jax.inference.trained import ZOOM_OVERLAP, trained_options
from seggpt_jax.model.seggpt import SegType
from seggpt_jax.model.weights import load_config

OPTION_NAMES = (
  *("split", "overlap", "stitch_width", "flips", "foreground_tiles", "seg_type", "head"),
  *("sensitivity", "least_area"),
)


def define_option_flags(operating_point: bool = True) -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of `InferenceOptions` and returns them in groups.

  Args:
    operating_point: whether to define the flags that change it.
  """
  holders = [
    flags.DEFINE_list(
      "split",
      "auto",
      "Cut queries and prompts into N x N tiles, so that small objects are seen larger. With several numbers, such as "
      "1,2,4, the predictions are averaged. auto cuts as in training with data.zoom, else not at all. objects cuts at "
      "the scale at which the smallest class of the prompts is two patches large and at half of it, and averages both.",
    ),
    flags.DEFINE_float(
      "overlap",
      None,
      "Share of a tile's side, 0 to 0.9, that neighboring tiles of a query overlap by; blended. By default 0, but "
      f"{ZOOM_OVERLAP} where --split=auto cuts.",
      0,
      0.9,
    ),
    flags.DEFINE_integer(
      "stitch_width",
      0,
      "Predict the seams between tiles again, in bands of this many patches on each side of a seam.",
      0,
      1000,
    ),
    flags.DEFINE_enum("flips", "none", get_args(Flips), "Average predictions over mirrored copies."),
    flags.DEFINE_bool("foreground_tiles", False, "Leave out tiles of prompts that have no foreground."),
    flags.DEFINE_enum("seg_type", "semantic", get_args(SegType), "Whether prompts mark a class or single instances."),
    flags.DEFINE_enum(
      "head",
      "auto",
      get_args(Heads),
      "Also fit a classifier to the prompts and average it with the network; auto does so with packaged networks.",
    ),
  ]
  if not operating_point:
    return {"Tiles and averaging": holders}
  decoding = [
    flags.DEFINE_list(
      "sensitivity",
      "auto",
      "Sensitivity of each class from 1: divides the distance of predicted colors to its color; above 1 finds more of "
      "it. auto is the value that seggpt calibrate chose for the run, else 1.",
    ),
    flags.DEFINE_integer(
      "least_area",
      None,
      "Smallest object in pixels; smaller ones become background. By default as calibrated.",
      0,
      MOST_AREA,
    ),
  ]
  return {"Tiles and averaging": holders, "Operating point": decoding}


def options_from_flags(model_path: str | os.PathLike, labels: LabelFormat, calibrated: bool = True) -> InferenceOptions:
  """Returns the options that the flags describe, as fits the weights where they leave it open, and says so.

  Args:
    model_path: weights, a training run, or the run of an adapter.
    labels: format of the label files.
    calibrated: whether the operating point of the run counts.

  Raises:
    InputError: the flags do not go together, or there are no weights.
  """
  values, trained = flags.FLAGS, trained_options(model_path)
  if not calibrated:
    trained = dataclasses.replace(trained, sensitivity=(), least_area=0)
  given = [name for name in OPTION_NAMES if name in values and values[name].value is not None]
  changes = {name: values[name].value for name in given}
  split = changes["split"]
  scale = {}
  if split == ["auto"]:
    changes["split"] = 1
    changes.setdefault("overlap", trained.overlap)
    scale = {name: getattr(trained, name) for name in ("zoom", "prompt_grid")}
  elif split == ["objects"]:
    changes["split"] = 1
    objects = measure_objects(_prompt_labels(), labels)
    zoom, sides = objects.zoom(load_config(flags.FLAGS.model_path)), objects.sides
    changes.setdefault("overlap", ZOOM_OVERLAP if zoom else 0)
    scale = {"zoom": zoom, "prompt_grid": fewest_cells(len(sides)) if zoom else 1, "octaves": 2 if zoom else 1}
  else:
    changes["split"] = _numbers("split", int, "auto, objects, a number, or several such as 1,2,4")
  if changes.get("sensitivity", ["auto"]) == ["auto"]:
    changes["sensitivity"] = trained.sensitivity
  else:
    changes["sensitivity"] = _numbers("sensitivity", float, "auto, or a number for each class")
  changes.setdefault("least_area", trained.least_area)
  with naming_flags():
    options = InferenceOptions(**scale, **changes)
  if split == ["objects"]:
    smallest = min(sides, key=sides.get)
    enough = "" if zoom else ", large enough in whole images"
    print(f"--split=objects: the smallest are those of class {smallest}, {sides[smallest]:.0f} pixels large{enough}")
  if options.zoom:
    which = "the scale of training" if split == ["auto"] else "their scale"
    averaged = f"; averaged with the scale {options.zooms[1]:g}" if options.octaves > 1 else ""
    cells = f"{options.prompt_grid} x {options.prompt_grid} cells"
    print(
      f"--split={split[0]}: tiles at {which}, {options.zoom} pixels of the network for one of an image, with an "
      f"overlap of {options.overlap}; prompts are {cells} around objects{averaged}"
    )
  point, stored = ((each.sensitivity, each.least_area) for each in (options, trained))
  if point == stored != ((), 0):
    shown = ", ".join(f"{value:g}" for value in options.sensitivity)
    print(f"operating point of the run: sensitivity {shown}, objects of {options.least_area} pixels or more")
  return options


def _prompt_labels() -> Sequence[str | os.PathLike]:
  """Returns the label files of the prompts."""
  values = flags.FLAGS
  if "prompt_label" in values and values.prompt_label:
    return values.prompt_label
  if not values.prompt_label_dir:
    raise InputError("--split=objects cannot be combined with a learned prompt, which marks no objects")
  return list(list_images(values.prompt_label_dir, recursive=True).values())


def _numbers(name: str, kind: type[int] | type[float], expected: str) -> tuple[Any, ...]:
  """Returns the numbers of a flag that is a list."""
  given = flags.FLAGS[name].value
  try:
    return tuple(kind(text) for text in given)
  except ValueError as error:
    raise InputError(f"{flag_name(name)}: found {','.join(given)}, expected {expected}") from error


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
