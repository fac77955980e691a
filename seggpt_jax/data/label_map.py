"""The file `labelmap.txt` of CVAT's segmentation masks: names and colors of classes in, a label format out.

Source: CVAT's "Segmentation mask 1.1" and Datumaro's VOC format. A line is `NAME:RED,GREEN,BLUE:PARTS:ACTIONS`.
"""

from __future__ import annotations

from typing import NamedTuple

from seggpt_jax.data.dataset_files import DatasetFiles
from seggpt_jax.data.images import read_text
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.errors import InputError

_FILE = "labelmap.txt"
_BACKGROUND, _IGNORED = ("background",), ("ignore", "ignored", "void")


class LabelMap(NamedTuple):
  """The content of the file.

  Attributes:
    where: path of the file.
    names: names of classes 1, 2, ...
    label_format: table of the colors of all classes, the background first.
  """

  where: str
  names: tuple[str, ...]
  label_format: LabelFormat


def read_label_map(files: DatasetFiles) -> LabelMap | None:
  """Reads the label map of a dataset.

  Args:
    files: the files of the dataset.

  Returns:
    The label map; None if the dataset has none.

  Raises:
    InputError: a line has another form, or no class is the background.
  """
  found = [path for path in files.ending(_FILE) if path.count("/") <= 2]
  if not found:
    return None
  where = files.full(found[0])
  colors: dict[str, tuple[int, ...]] = {}
  for number, line in enumerate(read_text(where).splitlines(), 1):
    if line.strip() and not line.startswith("#"):
      name, color = _entry(line, f"{where}: line {number}")
      if name in colors or color in colors.values():
        raise InputError(
          f"{where}: line {number}: found {line.strip()!r} beside another class, expected a color for each"
        )
      colors[name] = color
  background = next((name for name in colors if name.lower() in _BACKGROUND), None)
  background = background or next((name for name, color in colors.items() if color == (0, 0, 0)), None)
  if background is None or len(colors) < 2:
    raise InputError(
      f"{where}: found classes {', '.join(colors) or 'none'}, expected background and at least one other"
    )
  ignored = tuple(color for name, color in colors.items() if name.lower() in _IGNORED and name != background)
  names = tuple(name for name, color in colors.items() if name != background and color not in ignored)
  return LabelMap(
    where, names, LabelFormat("table", table=tuple(colors[name] for name in (background, *names)), ignore=ignored)
  )


def _entry(line: str, where: str) -> tuple[str, tuple[int, ...]]:
  name, _, rest = line.strip().partition(":")
  parts = rest.partition(":")[0].split(",")
  if not name or len(parts) != 3 or not all(part.strip().isdecimal() and int(part) < 256 for part in parts):
    raise InputError(f"{where}: found {line.strip()!r}, expected NAME:RED,GREEN,BLUE::")
  return name, tuple(int(part) for part in parts)
