"""An image of the page, and the checks of files that become images and labels: bytes and names in, clean values out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.errors import InputError
from seggpt_jax.files import plain_name
from seggpt_jax.formats.folders import is_junk
from seggpt_jax.formats.images import open_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.palette import IGNORE

_MOST_NAME = 80  # characters of the name of an image
_MOST_NAME_BYTES = 200  # of the name of an image; a file name has 255, and gets endings and numbers
LABEL_MAPS = LabelFormat(ignore=(IGNORE,))  # class indices
_UNSAFE = re.compile(r"[^\w .,()+=@-]")


class UnknownError(LookupError):
  """A session, an image or an answer does not exist. The message is one line for the user."""


@dataclasses.dataclass
class Picture:
  """An image of a session.

  Attributes:
    key: name in addresses and of its files.
    name: name that people see, without ending, such as `cam1/001`; different from those of all other images.
    path: the stored image file.
    size: height and width in pixels.
    num_bytes: size of the stored file.
    label: count of the session's changes when it got its label; 0 without one.
    draft: version of the label that is drawn and not in use yet; 0 without one.
    holds: classes of its label.
    unseen: classes that came after its label, and that nobody has looked for in it.
    done: whether somebody has marked it as done.
    answer: round of its answer; 0 if it has none.
    classes: classes that its answer was decoded to.
    shows: classes that its answer shows.
    sure: mean confidence of its answer.
    used: keys of the examples that its answer used.
    error: why it could not be answered.
    changed: count of the session's changes when it last changed.
  """

  key: str
  name: str
  path: Path
  size: tuple[int, int]
  num_bytes: int
  label: int = 0
  draft: int = 0
  holds: tuple[int, ...] = ()
  unseen: tuple[int, ...] = ()
  done: bool = False
  answer: int = 0
  classes: tuple[int, ...] = (0,)
  shows: tuple[int, ...] = ()
  sure: float = 0.0
  used: tuple[str, ...] = ()
  error: str = ""
  changed: int = 0

  def as_json(self) -> dict[str, Any]:
    """Returns what the page shows of the image."""
    height, width = self.size
    state = {"label": self.label, "draft": self.draft, "answer": self.answer, "error": self.error}
    state |= {"changed": self.changed, "holds": list(self.holds), "used": list(self.used)}
    state |= {"unseen": list(self.unseen), "done": self.done, "shows": list(self.shows), "sure": round(self.sure, 4)}
    return {"key": self.key, "name": self.name, "height": height, "width": width, **state}


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
