"""The settings and limits of a session of the page: JSON values in, checked values out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from seggpt_jax.app.fields import parse
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import is_plain_text
from seggpt_jax.inference.options import Flips

MOST_CLASSES = 32
_MOST_NAME = 80  # characters of the name of a class


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


class Settings(BaseModel, frozen=True, extra="forbid"):
  """The choices of the page about how images are answered; 0 is automatic.

  Attributes:
    split: tiles along a side, as `InferenceOptions.split`.
    examples: number of examples that an answer uses.
    choice: which examples an answer uses, each class in turn: "alike" for those most alike to its image, or "newest".
    flips: mirrored copies, as `InferenceOptions.flips`.
    least_area: as `InferenceOptions.least_area`; applies when an answer is shown.
    sensitivity: for classes 1, 2, ..., as `InferenceOptions.sensitivity`; applies when an answer is shown.
    colors: for classes 1, 2, ..., such as "#ff0000"; "" for the usual one.
    paused: whether no further images are answered.
    network: "start" for the network that the page started with, "plain" for the same without its adapter, or the
      number of a training run of the project.
  """

  split: int = Field(0, ge=0, le=4, strict=True)
  examples: int = Field(0, ge=0, le=16, strict=True)
  choice: Literal["alike", "newest"] = "alike"
  flips: Flips = "none"
  least_area: int = Field(0, ge=0, le=10**6, strict=True)
  sensitivity: tuple[Annotated[float, Field(ge=0.05, le=20, strict=True)], ...] = Field((), max_length=MOST_CLASSES)
  colors: tuple[Annotated[str, Field(pattern="^(#[0-9a-f]{6})?$")], ...] = Field((), max_length=MOST_CLASSES)
  paused: bool = Field(False, strict=True)
  network: str = Field("start", pattern="^(start|plain|[1-9][0-9]{0,5})$")

  def changed(self, values: Mapping[str, Any]) -> Settings:
    """Returns the settings with some values changed.

    Raises:
      InputError: a name or a value is not as described above.
    """
    return parse(Settings, self.model_dump() | dict(values))

  def without_class(self, index: int) -> Settings:
    """Returns the settings for the classes without one of them."""
    lists = {name: getattr(self, name) for name in ("sensitivity", "colors")}
    return self.model_copy(update={name: (*old[: index - 1], *old[index:]) for name, old in lists.items()})

  @property
  def shapes_answers(self) -> tuple[Any, ...]:
    """The values of which an answer depends before it is decoded."""
    return self.split, self.examples, self.choice, self.flips, self.network


def class_names(names: Any) -> list[str]:
  """Returns the names of classes 1, 2, ..., each on one line.

  Raises:
    InputError: a name is empty, too long or given twice, or there are too few or too many.
  """
  if not isinstance(names, list) or not 1 <= len(names) <= MOST_CLASSES:
    raise InputError(f"classes: expected a list of 1 to {MOST_CLASSES} names")
  names = [one_line(name) if isinstance(name, str) else "" for name in names]
  for place, name in enumerate(names):
    if not name or len(name) > _MOST_NAME or "," in name or name in names[:place] or not is_plain_text(name):
      raise InputError(
        f"classes: found {name[:_MOST_NAME]!a}, expected different names, not empty, without commas "
        "and control characters"
      )
  return names
