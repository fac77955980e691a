"""The operating point of trained weights: how sensitive they are to each class, stored next to the weights.

In: a training run. Out: the sensitivities and the least area of `InferenceOptions` that `seggpt calibrate` chose for
it, from RUN/operating_point.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from seggpt_jax.errors import InputError
from seggpt_jax.files import expand, parse_json, write_whole
from seggpt_jax.inference.options import InferenceOptions

FILE = "operating_point.json"


class OperatingPoint(NamedTuple):
  """A way to decode predicted colors; see `InferenceOptions`.

  Attributes:
    sensitivity: for classes 1, 2, ...
    least_area: in pixels of an image.
  """

  sensitivity: tuple[float, ...] = ()
  least_area: int = 0


def read_operating_point(run: str | os.PathLike) -> OperatingPoint | None:
  """Returns the operating point of a training run; None if none was chosen.

  Args:
    run: training run, or other weights, which have none.

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


def read_about(run: str | os.PathLike) -> dict[str, Any]:
  """Returns all that is stored with the operating point of a training run; {} if none was chosen."""
  return {} if read_operating_point(run) is None else parse_json((Path(expand(run)) / FILE).read_bytes())


def write_operating_point(run: str | os.PathLike, point: OperatingPoint, about: dict[str, Any]) -> Path:
  """Writes the operating point of a training run and returns the file.

  Args:
    run: training run.
    point: the operating point.
    about: JSON values that tell people where it comes from.

  Raises:
    InputError: the file cannot be written.
  """
  path = Path(expand(run)) / FILE
  content = {"sensitivity": list(point.sensitivity), "least_area": point.least_area, **about}
  write_whole(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
  return path
