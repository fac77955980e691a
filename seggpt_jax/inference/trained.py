"""The facts about trained weights that inference needs: the configuration of their run, and options that fit them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seggpt_jax.errors import InputError, naming
from seggpt_jax.files import expand, parse_json
from seggpt_jax.inference.operating_point import OperatingPoint, read_about, read_operating_point
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.model.weights import find_adapter, find_weights

# Share of a tile's side that tiles overlap by: a seam through a small object would cut it in two.
ZOOM_OVERLAP = 0.25


def trained_options(model_path: str | os.PathLike) -> InferenceOptions:
  """Returns the options that fit trained weights: the scale of their training and their operating point.

  Example:

    import seggpt_jax

    seggpt_jax.trained_options("small")  # whole images, nearest colors: these weights have no scale of their own

  Args:
    model_path: weights, a training run, or packaged weights; also the run of an adapter.

  Returns:
    `zoom`, `prompt_grid` and `overlap` for a run with data.zoom, `sensitivity` and
    `least_area` for a calibrated one.

  Raises:
    InputError: there are no weights, or a file of the run cannot be read.
  """
  path = run_config(model_path)
  data = {} if path is None else run_data(path)
  zoom, grid = data.get("zoom", 0), data.get("prompt_grid", 0)
  for key, value in (("zoom", zoom), ("prompt_grid", grid)):
    if not isinstance(value, int | float) or value < 0:
      raise InputError(f"{path}: data.{key}: found {value!r}, expected a number of at least 0")
  point = (None if path is None else read_operating_point(path.parent)) or OperatingPoint()
  scale = {"zoom": zoom, "prompt_grid": max(grid, 1), "overlap": ZOOM_OVERLAP} if zoom else {}
  with naming(os.fspath(path or model_path)):
    return InferenceOptions(**scale, **point._asdict())


def earlier_uses(model_path: str | os.PathLike, images: Mapping[str, Path]) -> dict[str, set[str]]:
  """Returns the names of images that training, or calibration, has used, as their paths tell.

  Args:
    model_path: weights, a training run, or the run of an adapter.
    images: image files by name.
  """
  if (path := run_config(model_path)) is None:
    return {}
  data, calibrated = run_data(path), read_about(path.parent)
  uses = {"those of training": (data.get("path"), data.get("train_split", "train"))}
  uses["those that seggpt calibrate chose on"] = (calibrated.get("images"), ".")

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


def run_data(path: Path) -> dict[str, Any]:
  """Reads config.data of a training run.

  Args:
    path: the run's config.json.

  Raises:
    InputError: the file was not written by training.
  """
  try:
    stored = parse_json(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON ({error}), expected the config of a training run") from error
  data = stored.get("data", {}) if isinstance(stored, dict) else None
  if not isinstance(data, dict):
    raise InputError(f"{path}: found no object with an object `data` in it, expected the config of a training run")
  return data
