"""An image of the page, its settings, and the checks of what a browser sends: bytes and names in, clean values out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, Field

from seggpt_jax.app.fields import parse
from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import is_plain_text, plain_name
from seggpt_jax.formats.folders import is_junk
from seggpt_jax.formats.images import open_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.options import Flips
from seggpt_jax.palette import IGNORE

MOST_CLASSES = 32


@dataclasses.dataclass(frozen=True)
class SessionLimits:
  """The limits of a session."""

  images: int = 2000  # number of images
  pixels: int = 50_000_000  # pixels of one image
  total_bytes: int = 4 * 2**30  # bytes of all stored images together


class Settings(BaseModel, frozen=True, extra="forbid"):
  """The choices of the page about how images are answered; 0 is automatic."""

  split: int = Field(0, ge=0, le=4, strict=True)  # tiles along a side, as `InferenceOptions.split`
  examples: int = Field(0, ge=0, le=16, strict=True)  # number of examples that an answer uses
  # which examples an answer uses, each class in turn: "alike" for those most alike to its image, or "newest"
  choice: Literal["alike", "newest"] = "alike"
  flips: Flips = "none"  # mirrored copies, as `InferenceOptions.flips`
  # as `InferenceOptions.least_area`; applies when an answer is shown
  least_area: int = Field(0, ge=0, le=10**6, strict=True)
  # for classes 1, 2, ..., as `InferenceOptions.sensitivity`; applies when an answer is shown
  sensitivity: tuple[Annotated[float, Field(ge=0.05, le=20, strict=True)], ...] = Field((), max_length=MOST_CLASSES)
  # for classes 1, 2, ..., such as "#ff0000"; "" for the usual one
  colors: tuple[Annotated[str, Field(pattern="^(#[0-9a-f]{6})?$")], ...] = Field((), max_length=MOST_CLASSES)
  paused: bool = Field(False, strict=True)  # whether no further images are answered
  # "start" for the network that the page started with, "plain" for the same without its adapter, or the number of a
  # training run of the project
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


_MOST_NAME = 80  # characters of the name of an image or a class
_MOST_NAME_BYTES = 200  # of the name of an image; a file name has 255, and gets endings and numbers
LABEL_MAPS = LabelFormat(ignore=(IGNORE,))  # class indices
_UNSAFE = re.compile(r"[^\w .,()+=@-]")


class UnknownError(LookupError):
  """A session, an image or an answer does not exist. The message is one line for the user."""


@dataclasses.dataclass
class Picture:
  """An image of a session."""

  key: str  # name in addresses and of its files
  name: str  # name that people see, without ending, such as `cam1/001`; different from those of all other images
  path: Path  # the stored image file
  size: tuple[int, int]  # height and width in pixels
  num_bytes: int  # size of the stored file
  label: int = 0  # count of the session's changes when it got its label; 0 without one
  draft: int = 0  # version of the label that is drawn and not in use yet; 0 without one
  holds: tuple[int, ...] = ()  # classes of its label
  unseen: tuple[int, ...] = ()  # classes that came after its label, and that nobody has looked for in it
  done: bool = False  # whether somebody has marked it as done
  answer: int = 0  # round of its answer; 0 if it has none
  classes: tuple[int, ...] = (0,)  # classes that its answer was decoded to
  shows: tuple[int, ...] = ()  # classes that its answer shows
  sure: float = 0.0  # mean confidence of its answer
  used: tuple[str, ...] = ()  # keys of the examples that its answer used
  error: str = ""  # why it could not be answered
  changed: int = 0  # count of the session's changes when it last changed

  def as_json(self) -> dict[str, Any]:
    """Returns what the page shows of the image."""
    height, width = self.size
    hidden = ("path", "size", "num_bytes", "classes")
    state = {name: value for name, value in vars(self).items() if name not in hidden}
    return {**state, "height": height, "width": width, "sure": round(self.sure, 4)}


def check_header(data: bytes, where: str, most_pixels: int) -> None:
  """Compares the pixels that the header of an image file states with a limit, before any is decoded.

  Raises:
    TooLargeError: there are more.
    InputError: the file is not an image.
  """
  width, height = open_image(data, where).size
  if width * height > most_pixels:
    raise TooLargeError(
      f"{where}: found {width} x {height} pixels, expected at most {most_pixels / 1e6:g} million pixels"
    )


def in_order(name: str) -> list[str | int]:
  """Returns a key that sorts names as people count: `part_2` before `part_10`."""
  return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)]


def clean_name(name: str) -> str:
  """Returns the path that a browser names, such as `cam1/001.png`, as a path for a file of the project.

  Of a path from a root only the last name counts. Characters that a file name should not have become `_`, and what is
  too long loses its start.
  """
  path = plain_name(name)
  *folders, last = [part for part in path.split("/") if part.strip(" .")] or ["image"]
  if path.startswith("/") or ":" in path or ".." in path.split("/"):
    folders = []
  stem, dot, ending = last.rpartition(".")
  ending = f".{ending[:5]}" if dot and ending.isascii() and ending.isalnum() else ""
  parts = (_UNSAFE.sub("_", part).strip(" .") or "_" for part in [*folders, stem if dot else last])
  stem = "/".join(f"_{part}" if is_junk(part) else part for part in parts)
  stem = stem[-_MOST_NAME:]
  while len(stem.encode()) > _MOST_NAME_BYTES:
    stem = stem[1:]
  return f"{stem.strip(' ./') or 'image'}{ending}"


def drawn_label(data: bytes, where: str, class_index: int) -> UInt8[np.ndarray, "h w"]:
  """Reads a label map that a person made elsewhere.

  Args:
    data: content of the file. One value other than 0 marks one class; several values are class indices.
    where: name of the file, for messages.
    class_index: the class that one value marks.

  Raises:
    InputError: the file is not a label map.
  """
  try:
    return LabelFormat("binary").decode(data, where) * np.uint8(class_index)
  except InputError:
    return LABEL_MAPS.decode(data, where)
