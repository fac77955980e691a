"""The settings and limits of a session of the page: JSON values in, checked values out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_args

from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import Flips

MOST_CLASSES = 32
_MOST_SPLIT, _MOST_EXAMPLES = 4, 16
# Types of the settings in JSON.
_KINDS = {
  **{"split": int, "examples": int, "flips": str, "least_area": int, "sensitivity": list, "paused": bool},
  **{"choice": str, "network": str},
}


@dataclasses.dataclass(frozen=True)
class SessionLimits:
  """The limits of a session.

  Attributes:
    images: number of images.
    pixels: pixels of one image.
    total_bytes: bytes of all stored images together.
  """

  images: int = 2000
  pixels: int = 50_000_000
  total_bytes: int = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Settings:
  """The choices of the page about how images are answered; 0 is automatic.

  Attributes:
    split: tiles along a side, as `InferenceOptions.split`.
    examples: number of examples that an answer uses.
    choice: which examples an answer uses, each class in turn: "alike" for those most alike to its image, or "newest".
    flips: mirrored copies, as `InferenceOptions.flips`.
    least_area: as `InferenceOptions.least_area`; applies when an answer is shown.
    sensitivity: for classes 1, 2, ..., as `InferenceOptions.sensitivity`; applies when an answer is shown.
    paused: whether no further images are answered.
    network: "start" for the network that the page started with, "plain" for the same without its adapter, or the
      number of a training run of the project.
  """

  split: int = 0
  examples: int = 0
  choice: str = "alike"
  flips: str = "none"
  least_area: int = 0
  sensitivity: tuple[float, ...] = ()
  paused: bool = False
  network: str = "start"

  def __post_init__(self):
    for name, most in (("split", _MOST_SPLIT), ("examples", _MOST_EXAMPLES), ("least_area", 10**6)):
      found = getattr(self, name)
      if not 0 <= found <= most:
        raise InputError(f"{name}: found {found!r}, expected an integer from 0 to {most}")
    if self.flips not in get_args(Flips):
      raise InputError(f"flips: found {self.flips!r}, expected one of {', '.join(get_args(Flips))}")
    if self.choice not in ("alike", "newest"):
      raise InputError(f"choice: found {self.choice!r}, expected alike or newest")
    if self.network not in ("start", "plain") and not re.fullmatch("[1-9][0-9]{0,5}", self.network):
      raise InputError(f"network: found {self.network[:80]!r}, expected start, plain or the number of a training run")
    if not all(0.05 <= value <= 20 for value in self.sensitivity):
      raise InputError(f"sensitivity: found {list(self.sensitivity)}, expected numbers from 0.05 to 20")

  def changed(self, values: Mapping[str, Any]) -> Settings:
    """Returns the settings with some values changed.

    Raises:
      InputError: a name or a value is not as described above.
    """
    values = dict(values)
    for name, value in values.items():
      if name not in _KINDS:
        raise InputError(f"{name[:80]}: unknown setting, expected one of {', '.join(_KINDS)}")
      if type(value) is not _KINDS[name]:
        raise InputError(f"{name}: found {str(value)[:80]!r}, expected a value of type {_KINDS[name].__name__}")
    if "sensitivity" in values:
      given = values["sensitivity"]
      if len(given) > MOST_CLASSES or not all(type(value) in (int, float) for value in given):
        raise InputError("sensitivity: expected a list of numbers, one for each class")
      values["sensitivity"] = tuple(float(value) for value in given)
    return dataclasses.replace(self, **values)

  @property
  def shapes_answers(self) -> tuple[Any, ...]:
    """The values of which an answer depends before it is decoded."""
    return self.split, self.examples, self.choice, self.flips, self.network
