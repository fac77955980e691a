"""The flags of `InferenceOptions`, and how label files are read with trained weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from absl import flags

from seggpt_jax.cli.data_flags import label_values
from seggpt_jax.cli.runner import flag_name, naming_flags
from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.options import MOST_AREA, Flips, Heads, InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import ZOOM_OVERLAP, label_format, measure_objects, trained_options
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapter
from seggpt_jax.model.seggpt import SegType
from seggpt_jax.model.weights import Weights, load_config, resolve

_TILES = ("split", "overlap", "stitch_width", "flips", "foreground_tiles", "seg_type", "head")
_POINT = ("sensitivity", "least_area")
OPTION_NAMES = (*_TILES, *_POINT)
JUDGED = ("split", "overlap", "flips", "head")  # by `calibrate` and `evaluate-inspection`

_DEFINE: dict[str, Callable[[str], flags.FlagHolder]] = {
  "split": lambda name: flags.DEFINE_list(
    name,
    "auto",
    "Cut queries and prompts into N x N tiles, so that small objects are seen larger. With several numbers, such as "
    "1,2,4, the predictions are averaged. auto cuts as in training with data.zoom, else not at all. objects cuts at "
    "the scale at which the smallest class of the prompts is two patches large.",
  ),
  "overlap": lambda name: flags.DEFINE_float(
    name,
    None,
    "Share of a tile's side, 0 to 0.9, that neighboring tiles of a query overlap by; blended. By default 0, but "
    f"{ZOOM_OVERLAP} where --split=auto cuts.",
    0,
    0.9,
  ),
  "stitch_width": lambda name: flags.DEFINE_integer(
    name, 0, "Predict the seams between tiles again, in bands of this many patches on each side of a seam.", 0, 1000
  ),
  "flips": lambda name: flags.DEFINE_enum(name, "none", get_args(Flips), "Average predictions over mirrored copies."),
  "foreground_tiles": lambda name: flags.DEFINE_bool(name, False, "Leave out tiles of prompts without foreground."),
  "seg_type": lambda name: flags.DEFINE_enum(
    name, "semantic", get_args(SegType), "Whether prompts mark a class or single instances."
  ),
  "head": lambda name: flags.DEFINE_enum(
    name,
    "auto",
    get_args(Heads),
    "Also fit a classifier to the prompts and average it with the network; auto does so with packaged networks.",
  ),
  "sensitivity": lambda name: flags.DEFINE_list(
    name,
    "auto",
    "Sensitivity of each class from 1: divides the distance of predicted colors to its color; above 1 finds more of "
    "it. auto is the value that seggpt calibrate chose for the run, else 1.",
  ),
  "least_area": lambda name: flags.DEFINE_integer(
    name, None, "Smallest object in pixels; smaller ones become background. By default as calibrated.", 0, MOST_AREA
  ),
}


def define_option_flags(names: Sequence[str] = OPTION_NAMES) -> dict[str, list[flags.FlagHolder]]:
  """Defines flags of `InferenceOptions` and returns them in groups."""
  groups = {"Tiles and averaging": _TILES, "Operating point": _POINT}
  found = {title: [_DEFINE[name](name) for name in group if name in names] for title, group in groups.items()}
  return {title: holders for title, holders in found.items() if holders}


class Network(NamedTuple):
  """The network that `--model-path` and `--adapter` name."""

  weights: Weights
  adapter: StoredAdapter | None
  run: str  # what the network was trained in: the run of the adapter, else that of the weights

  @property
  def has_learned_prompt(self) -> bool:
    """Returns whether the adapter is a learned prompt."""
    return self.adapter is not None and self.adapter.is_prompt

  @property
  def has_head(self) -> bool:
    """Returns whether the network has a trained head, which answers without prompts."""
    return self.adapter is None and bool(self.weights.config.head_classes)

  def load(self) -> Predictor:
    """Loads the network."""
    return Predictor.from_checkpoint(self.weights, adapter=self.adapter)


def network_from_flags() -> Network:
  """Returns the network that the flags name.

  Raises:
    InputError: there are no such weights, or no such adapter.
  """
  values = flags.FLAGS
  adapter = values.adapter if "adapter" in values else None
  return Network(resolve(values.model_path), load_adapter(adapter) if adapter else None, adapter or values.model_path)


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
  given = {name: values[name].value for name in OPTION_NAMES if name in values}
  split, scale = given.pop("split"), {}
  changes = {name: value for name, value in given.items() if value is not None}
  if split == ["auto"]:
    scale = {name: getattr(trained, name) for name in ("zoom", "prompt_grid", "overlap")}
  elif split == ["objects"]:
    objects = measure_objects(_prompt_labels(), labels)
    scale, sides = objects.scale(load_config(values.model_path)), objects.sides
  else:
    scale = {"split": numbers("split", split, int, "auto, objects, a number, or several such as 1,2,4")}
  sensitivity = changes.get("sensitivity", ["auto"])
  changes["sensitivity"] = trained.sensitivity
  if sensitivity != ["auto"]:
    changes["sensitivity"] = numbers("sensitivity", sensitivity, float, "auto, or a number for each class")
  changes.setdefault("least_area", trained.least_area)
  with naming_flags():
    options = InferenceOptions(**{**scale, **changes})
  if split == ["objects"]:
    smallest = min(sides, key=sides.get)
    enough = "" if options.zoom else ", large enough in whole images"
    print(f"--split=objects: the smallest are those of class {smallest}, {sides[smallest]:.0f} pixels large{enough}")
  if options.zoom:
    which = "the scale of training" if split == ["auto"] else "their scale"
    cells = f"{options.prompt_grid} x {options.prompt_grid} cells"
    print(
      f"--split={split[0]}: tiles at {which}, {options.zoom} pixels of the network for one of an image, with an "
      f"overlap of {options.overlap}; prompts are {cells} around objects"
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


def numbers(name: str, given: Sequence[str], kind: type[int] | type[float], expected: str) -> tuple[Any, ...]:
  """Returns the numbers of a flag that is a list.

  Raises:
    InputError: an entry is no number.
  """
  try:
    return tuple(kind(text) for text in given)
  except ValueError as error:
    raise InputError(f"{flag_name(name)}: found {','.join(given)}, expected {expected}") from error


def trained_label_format(model_path: str | os.PathLike) -> LabelFormat:
  """Returns how label files are read, by the flags or else as in training, and prints it.

  Raises:
    InputError: the flags do not go together.
  """
  values = label_values()
  with naming_flags():
    labels = label_format(model_path, values["labels"], values["threshold"], values["table"], values["ignore"])
  print(f"labels are read as {labels}")
  return labels
