"""The facts about trained weights that inference needs: the configuration of their run, and options that fit them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seggpt_jax.data.ledger import write_note
from seggpt_jax.data.scale import fewest_cells, measured_zoom, object_sides
from seggpt_jax.errors import InputError, naming
from seggpt_jax.files import expand, parse_json
from seggpt_jax.formats.labels import LABEL_MODES, LabelFormat, LabelMode, Value, read_labels
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.weights import find_adapter, find_weights

FILE = "operating_point.json"


class OperatingPoint(NamedTuple):
  """A way to decode predicted colors; see `InferenceOptions`."""

  sensitivity: tuple[float, ...] = ()  # for classes 1, 2, ..
  least_area: int = 0  # in pixels of an image


def read_operating_point(run: str | os.PathLike) -> OperatingPoint | None:
  """Returns the operating point of a training run; None if none was chosen.

  Raises:
    InputError: the file was not written by `write_operating_point`.
  """
  path = Path(expand(run)) / FILE
  if not path.is_file():
    return None
  try:
    stored = parse_json(path.read_bytes())
    point = OperatingPoint(tuple(float(value) for value in stored["sensitivity"]), int(stored["least_area"]))
    InferenceOptions(**point._asdict())  # checks the ranges
  except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
    raise InputError(
      f"{path}: found no operating point in it ({error!r}), expected that of `seggpt calibrate`"
    ) from error
  return point


def write_operating_point(run: str | os.PathLike, point: OperatingPoint, about: dict[str, Any]) -> Path:
  """Writes the operating point of a training run and returns the file.

  Raises:
    InputError: the file cannot be written.
  """
  path = Path(expand(run)) / FILE
  write_note(path, {"sensitivity": list(point.sensitivity), "least_area": point.least_area, **about})
  return path


# Share of a tile's side that tiles overlap by: a seam through a small object would cut it in two.
ZOOM_OVERLAP = 0.25


def trained_options(model_path: str | os.PathLike) -> InferenceOptions:
  """Returns the options that fit trained weights: the scale of their training and their operating point.

  Examples:
    >>> options = seggpt_jax.trained_options("small")
    >>> options  # whole images, nearest colors: these weights have no scale of their own
    InferenceOptions()
    >>> prediction = predictor.predict("query.jpg", prompts, options=options)

  Args:
    model_path: weights, a training run, or packaged weights; also the run of an adapter.

  Returns:
    `zoom`, `prompt_grid` and `overlap` for a run with data.zoom, `sensitivity` and
    `least_area` for a calibrated one.

  Raises:
    InputError: there are no weights, or a file of the run cannot be read.
  """
  path, data = run_data(model_path)
  zoom, grid = data.get("zoom", 0), data.get("prompt_grid", 0)
  for key, value in (("zoom", zoom), ("prompt_grid", grid)):
    if not isinstance(value, int | float) or value < 0:
      raise InputError(f"{path}: data.{key}: found {value!r}, expected a number of at least 0")
  point = (None if path is None else read_operating_point(path.parent)) or OperatingPoint()
  scale = {"zoom": zoom, "prompt_grid": max(grid, 1), "overlap": ZOOM_OVERLAP} if zoom else {}
  with naming(os.fspath(path or model_path)):
    return InferenceOptions(**scale, **point._asdict())


def earlier_uses(model_path: str | os.PathLike, images: Mapping[str, Path]) -> dict[str, set[str]]:
  """Returns the names of images that training, or calibration, has used, as their paths tell."""
  path, data = run_data(model_path)
  if path is None:
    return {}
  calibration = {} if read_operating_point(path.parent) is None else parse_json((path.parent / FILE).read_bytes())
  uses = {
    "those of training": (data.get("path"), data.get("train_split", "train")),
    "those that seggpt calibrate chose on": (calibration.get("images"), "."),
  }

  def is_in(image: Path, folder: Any, split: Any) -> bool:
    image, folder = (Path(os.path.realpath(expand(str(each)))) for each in (image, folder))
    return image.is_relative_to(folder) and split in (".", *image.relative_to(folder).parts)

  known = {use: where for use, where in uses.items() if where[0]}
  return {use: {name for name, image in images.items() if is_in(image, *where)} for use, where in known.items()}


def run_config(model_path: str | os.PathLike) -> Path | None:
  """Returns the config.json of the training run that weights or an adapter belong to, or None.

  Args:
    model_path: weights, a training run, or packaged weights; also the run of an adapter.

  Raises:
    InputError: there are no weights.
  """
  model_path = expand(model_path)
  found = find_adapter(Path(model_path)) or find_weights(model_path)
  configs = (folder / "config.json" for folder in (Path(model_path), *found.absolute().parents[:2]))
  return next((path for path in configs if path.is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
  """Reads the config.json of a training run.

  Raises:
    InputError: the file was not written by training.
  """
  try:
    stored = parse_json(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON ({error}), expected the config of a training run") from error
  if not isinstance(stored, dict) or not isinstance(stored.get("data", {}), dict):
    raise InputError(f"{path}: found no object with an object `data` in it, expected the config of a training run")
  return stored


def run_data(model_path: str | os.PathLike) -> tuple[Path | None, dict[str, Any]]:
  """Returns the config.json of the run that weights belong to, or None, and its part `data`; see `run_config`."""
  path = run_config(model_path)
  return path, {} if path is None else read_config(path).get("data", {})


def label_format(
  model_path: str | os.PathLike,
  labels: LabelMode | None = None,
  threshold: int | None = None,
  table: tuple[Value, ...] | None = None,
  ignore: tuple[Value, ...] | None = None,
) -> LabelFormat:
  """Returns the format of label files: from flags, or else from the training run of the weights, or else indices.

  Args:
    model_path: weights or a training run; also the run of an adapter.
    labels: mode, if given.
    threshold: threshold of binary labels, if given.
    table: values or colors of the classes, if given.
    ignore: values or colors of ignored pixels, if given.

  Raises:
    InputError: there are no weights, the values do not fit the mode, or the run's config.json cannot be read.
  """
  path, data = run_data(model_path)
  trained = LabelFormat() if path is None else _trained_format(path, data)
  kept = trained if labels in (None, trained.mode) else LabelFormat()
  given = {"mode": labels or trained.mode, "threshold": threshold, "table": table, "ignore": ignore}
  return dataclasses.replace(kept, **{name: value for name, value in given.items() if value is not None})


def _trained_format(path: Path, data: Mapping[str, Any]) -> LabelFormat:
  """Returns the label format in the config.json of a training run."""
  mode, threshold = data.get("labels", "index"), data.get("threshold", -1)
  if mode not in LABEL_MODES:
    raise InputError(f"{path}: data.labels: found {mode!r}, expected one of {', '.join(LABEL_MODES)}")
  if not (isinstance(threshold, int) and -1 <= threshold <= 255):
    raise InputError(f"{path}: data.threshold: found {threshold!r}, expected 0..255, or -1 for none")
  values: dict[str, tuple[Value, ...]] = {}
  for key in ("table", "ignore"):
    stored = data.get(key, [])
    # Colors are lists, because JSON has no tuples.
    entries = stored if isinstance(stored, list) else [None]
    if not all(isinstance(part, int) for entry in entries for part in (entry if isinstance(entry, list) else [entry])):
      raise InputError(f"{path}: data.{key}: found {stored!r}, expected a list of values or colors")
    values[key] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in stored)
  with naming(f"{path}: data"):
    # Older runs stored 0 with every mode.
    return LabelFormat(mode, threshold if mode == "binary" and threshold >= 0 else None, **values)


# Objects of one patch are found when trained on; without training two are better.
_PATCHES = 2
_MOST_WINDOWS = 64


class _LabelFiles:
  """Label maps, as arrays or files, in the form that `object_sides` reads."""

  def __init__(self, files: Sequence[str | os.PathLike | np.ndarray], labels: LabelFormat):
    self._files, self._labels = files, labels

  def __len__(self) -> int:
    return len(self._files)

  def label(self, index: int) -> np.ndarray:
    label = self._files[index]
    return label if isinstance(label, np.ndarray) else read_labels(label, self._labels)


class Objects(NamedTuple):
  """The objects of labeled images."""

  sides: dict[int, float]  # median side in pixels of each class's objects, see `object_sides`
  shape: tuple[int, ...]  # height and width in pixels of the first label map, which stands for all

  def scale(self, config: SegGPTConfig) -> dict[str, Any]:
    """Returns the values of `InferenceOptions` that show objects of the smallest class two patches large.

    None are needed if whole images show them large enough.
    """
    square, wanted = min(config.canvas_size), _PATCHES * config.patch_size
    if min(self.sides.values()) * square / max(self.shape) >= wanted:
      return {}
    zoom = measured_zoom(self.sides, self.shape, square, wanted, _MOST_WINDOWS)
    return {"zoom": zoom, "prompt_grid": fewest_cells(len(self.sides)), "overlap": ZOOM_OVERLAP}


def measure_objects(files: Sequence[str | os.PathLike | np.ndarray], labels: LabelFormat | None = None) -> Objects:
  """Measures the objects in the label maps of prompts, arrays or files, of which at most 200 are looked at.

  Raises:
    InputError: a label cannot be read, or none shows any class.
  """
  source = _LabelFiles(files, labels or LabelFormat())
  return Objects(object_sides(source), source.label(0).shape)
