"""The probable meaning of the values in a label: values in, settings that read them out."""

from __future__ import annotations

from collections.abc import Sequence

from seggpt_jax.palette import IGNORE

_MOST_CLASSES = 64  # in addition to 255 as the value to ignore, where it is not known whether values are indices
_MOST_LEVELS = 16  # gray levels of a label that a person may have chosen; more are smooth edges, noise or instances


def evenly_spaced(values: Sequence[int]) -> bool:
  """Returns whether ascending values are gray levels that divide 0..255 evenly, such as 0, 128, 255."""
  if not 3 <= len(values) <= _MOST_LEVELS or values[0] != 0 or not 250 <= values[-1] <= 255:
    return False
  step = values[-1] / (len(values) - 1)
  return all(abs(value - step * place) <= 1 for place, value in enumerate(values))


def are_indices(values: Sequence[int]) -> bool:
  """Returns whether ascending values are class indices 0, 1, ... with few gaps."""
  return values[0] == 0 and values[-1] < IGNORE and values[-1] + 1 <= max(2, 1.5 * len(values) + 1)


def reading_hint(values: Sequence[int]) -> str:
  """Returns the settings that probably read a label with these ascending values."""
  smooth = "masks with smooth edges or noise are read with labels=binary, threshold=127"
  foreground = [value for value in values if value]
  if len(foreground) <= 1:
    return f"masks of 0 and {foreground[0] if foreground else IGNORE} are read with labels=binary"
  if values[0] < 0 or values[-1] > 65535:
    return "save the label again with class indices 0..254"
  if len(values) > _MOST_LEVELS and values[-1] > IGNORE:
    return "numbers of instances are read as one class with labels=binary, threshold=0"
  if len(values) > _MOST_LEVELS and values[-1] >= 250 and not are_indices(values[:-1]):
    return smooth
  listed = ",".join(map(str, values))
  if evenly_spaced(values):
    return f"gray levels are read with labels=table, table={listed}; {smooth}"
  if values[-1] == IGNORE:
    return (
      "if 255 marks pixels to ignore, set ignore=255 (a flag --ignore=255, in a configuration data.ignore='(255,)'); "
      f"if it is a class, labels=table, table={listed}" + ("" if values[-2] < _MOST_CLASSES else f"; {smooth}")
    )
  if values[-1] < IGNORE:
    return f"class indices are read with labels=index, num_classes={values[-1] + 1}"
  return f"values that stand for classes are read with labels=table, table={listed}"
