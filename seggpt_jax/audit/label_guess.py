"""The label format that fits a dataset: counts of its stored values in, a guess with reason and doubt out."""

from __future__ import annotations

from typing import NamedTuple

from seggpt_jax.audit.label_values import NEAR_ENDS, StoredValues, ValueFacts
from seggpt_jax.formats.labels import LabelFormat, Value
from seggpt_jax.formats.stored_labels import are_indices, evenly_spaced, unpack_color
from seggpt_jax.palette import IGNORE

_MOST_TABLE = 64
_BLACK = (0, 0, 0)
_MADE_UP = 0.9  # share of a value's pixels between lower and higher ones from which on it counts as made up
_SOLID = 1e-3  # smallest share of the pixels of a value, unless it is one of the many along smooth edges
_THIN = 0.1  # largest share of its pixels away from borders of a value that only outlines others
_LARGE, _FILLED = 0.1, 0.75  # shares of the pixels
_FAR = 4  # times as frequent: by far

Facts = dict[int, ValueFacts]
Colors = dict[tuple[int, ...], ValueFacts]


class Guess(NamedTuple):
  """Probable label format of a dataset."""

  label_format: LabelFormat  # the label format
  num_classes: int  # number of classes that it gives, background included
  reason: str  # evidence for it
  doubt: str = ""  # what else the labels could be, which the user has to decide, or ""


def guess_format(stored: StoredValues) -> Guess:
  """Guesses the label format that fits the values of label files."""
  facts = stored.facts()
  if not facts:
    return Guess(LabelFormat(), 2, "no label could be read")
  if stored.colors:
    return _guess_colors(stored, {value: fact for value, fact in facts.items() if isinstance(value, tuple)})
  values: Facts = {value: fact for value, fact in sorted(facts.items()) if isinstance(value, int)}
  return _guess_mask(stored, values) or _guess_values(values)


def made_up(facts: dict[Value, ValueFacts]) -> list[Value]:
  """Returns the values that occur only between others, as smoothing and interpolation leave them along borders."""
  return [value for value, fact in facts.items() if fact.between >= _MADE_UP]


# --------------------------------------------------------------------------------------------------------- gray values


def _guess_mask(stored: StoredValues, facts: Facts) -> Guess | None:
  """Guesses the format of masks 0..255 whose values were changed by compression or smoothing; None for others."""
  near_ends = sum(fact.share for value, fact in facts.items() if _is_near_end(value))
  high = sum(fact.share for value, fact in facts.items() if 255 - NEAR_ENDS <= value <= 255)
  two_ends = near_ends > 0.95 and high > 1e-4 and max(facts) <= 255
  noisy = len(facts) > 8 and two_ends
  thin = [value for value in made_up(facts) if NEAR_ENDS < value < 255 - NEAR_ENDS]
  smooth = min(facts) == 0 and 250 <= max(facts) <= 255 and len(thin) >= 2
  if not (stored.num_lossy or noisy or smooth):
    return None
  solid = [value for value, fact in facts.items() if fact.share >= _SOLID and not _is_near_end(value)]
  between = smooth and not stored.num_lossy and [value for value in solid if facts[value].between < 0.5]
  total = max(sum(int(count[0]) for count in stored.counts.values()), 1)
  doubt = ""
  if between or (not smooth and not two_ends):
    doubt = "classes cannot be got back: save labels anew without loss and without smooth edges"
  elif stored.middle > _SOLID * total:
    doubt = (
      f"{stored.middle / total:.1%} of the pixels have a gray between, away from edges: if that is a class, save the "
      "labels anew without loss"
    )
  what = "are compressed with loss, which changes values"
  if not stored.num_lossy:
    what = "hold 0..255 with smooth (antialiased) edges" if smooth else "hold 0..255 with noise: looks like JPEG"
  return Guess(LabelFormat("binary", 127), 2, f"labels {what}", doubt)


def _is_near_end(value: int) -> bool:
  return value <= NEAR_ENDS or 255 - NEAR_ENDS <= value <= 255


def _guess_values(facts: Facts) -> Guess:
  """Guesses the label format for gray values without noise."""
  values = list(facts)
  if len(values) == 1 and values[0] <= 1:
    return Guess(LabelFormat("index"), 2, f"labels hold nothing but {values[0]}")
  if len(values) == 1 or (len(values) == 2 and values[0] == 0 and values[1] > 1):
    reason = f"labels hold {_listed(values)}: background and foreground"
    return Guess(LabelFormat("binary"), 2, reason, _inverted(facts, values[-1]))
  reason = f"labels hold {_listed(values)}"
  if values[0] < 0 or values[-1] > 65535:
    doubt = "values below 0 or above 65535 cannot be read: write labels anew with class indices 0..254"
    return Guess(LabelFormat("binary", 0), 2, reason, doubt)
  if len(values) > _MOST_TABLE and values[-1] > IGNORE:
    doubt = "classes cannot be told from numbers of instances: if they are classes, write labels anew with at most 255"
    return Guess(LabelFormat("binary", 0), 2, f"{reason}: looks like a number for each instance", doubt)
  ignored, doubt = _read_255(facts) if IGNORE in facts and len(values) > 2 else (False, "")
  ignore = (IGNORE,) if ignored else ()
  if ignored:
    values = [value for value in values if value != IGNORE]  # labels of 16 bits may have larger ones
    reason = f"labels hold {_listed(values)} and 255, the usual value of pixels to ignore"
  if are_indices(values):
    doubt = doubt or (_inverted(facts, 1) if values == [0, 1] else "")
    return Guess(LabelFormat("index", ignore=ignore), max(2, values[-1] + 1), reason, doubt)
  background = 0 if 0 in facts else max(values, key=lambda value: facts[value].share)
  table = (background, *(value for value in values if value != background))
  doubts = [doubt] if doubt else []
  if background:
    doubts.append(f"value {background} is taken as the background, as the most frequent: is it?")
  doubts += _rim_doubt(facts)
  reason += ", with gaps" if values[0] == 0 else ", without 0"
  return Guess(LabelFormat("table", table=table, ignore=ignore), max(2, len(table)), reason, "; ".join(doubts))


def _read_255(facts: Facts) -> tuple[bool, str]:
  """Returns whether 255 marks pixels to ignore, in addition to other values, and what speaks against it."""
  others, fact = [value for value in facts if value != IGNORE], facts[IGNORE]
  as_class = (
    f"255 is taken as a class: if it marks pixels to ignore, set data.table={tuple(others)}, data.ignore=(255,)"
  )
  if evenly_spaced([*others, IGNORE]):
    return False, as_class
  thin, large, indices = fact.inner < _THIN, fact.share > _LARGE, are_indices(others)
  if not (indices or thin or not large):
    return False, as_class
  as_ignored = (
    f"255 is taken as pixels to ignore, {fact.share:.1%} of all: if it is a class, set data.labels=table, "
    f"data.table={(*others, IGNORE)}, no data.ignore"
  )
  return True, "" if indices and thin else as_ignored


def _inverted(facts: Facts, foreground: int) -> str:
  share = facts[foreground].share
  if share <= _FILLED:
    return ""
  return (
    f"{foreground} fills {share:.0%} of the pixels: if it is the background, set data.labels=table, "
    f"data.table=({foreground}, 0)"
  )


def _rim_doubt(facts: Facts) -> list[str]:
  """Returns the doubt about a single gray between 0 and 255 that only outlines them."""
  rims = [value for value, fact in facts.items() if 0 < value < IGNORE and fact.inner < _THIN]
  if list(facts) != [0, *rims, IGNORE] or len(rims) != 1:
    return []
  return [
    f"{rims[0]} is only a rim next to 0 and 255: if it marks pixels to ignore, set data.table=(0, 255), "
    f"data.ignore=({rims[0]},); if it is a smooth edge, set data.labels=binary, data.threshold=127"
  ]


def _listed(values: list[int]) -> str:
  """Returns 0..5 for a run of values, 0, 2, 9 for a few, and a count for many."""
  if len(values) > 2 and values[-1] - values[0] == len(values) - 1:
    return f"{values[0]}..{values[-1]}"
  if len(values) <= 12:
    return ", ".join(map(str, values))
  return f"{len(values)} values from {values[0]} to {values[-1]}"


# -------------------------------------------------------------------------------------------------------------- colors


def _guess_colors(stored: StoredValues, facts: Colors) -> Guess:
  reason = f"labels hold {len(facts)} colors"
  if stored.num_lossy:
    doubt = "no table fits labels that are compressed with loss: save them again in a format without loss"
    return Guess(LabelFormat("binary", 127), 2, reason, doubt)
  conflict = stored.palette_conflict()
  if conflict is not None:
    reason += f", and the palettes differ: {conflict_text(stored)}, so colors and not indices are the classes"
  rims = made_up(facts)
  solid = [color for color, fact in facts.items() if fact.between < 0.5 and fact.share >= _SOLID]
  if len(facts) > _MOST_TABLE or (len(rims) >= 3 and len(solid) >= 2):
    doubt = (
      "their edges are smoothed (antialiased), and no table fits them: save them again without antialiasing, or resize "
      "them with nearest neighbor"
    )
    if not 2 <= len(solid) <= _MOST_TABLE:
      return Guess(LabelFormat("binary", 127), 2, reason, doubt)
    table, _ = _ordered(facts, solid)
    return Guess(LabelFormat("table", table=table), len(table), reason, doubt)
  table, doubt = _ordered(facts, list(facts))
  if conflict is None and stored.shown_background() is not None:
    reason += ", in palettes whose index 0 is not the background"
  return Guess(LabelFormat("table", table=table), max(2, len(table)), reason, doubt)


def _ordered(facts: Colors, colors: list[tuple[int, ...]]) -> tuple[tuple[Value, ...], str]:
  """Returns the colors with the probable background first, and the doubt about it."""
  most = max(colors, key=lambda color: facts[color].share)
  background, doubt = most, f"{most} is taken as the background, as the most frequent: is it?"
  if _BLACK in colors and most != _BLACK:
    black, share = facts[_BLACK].share, facts[most].share
    background = most if share > 0.5 and share > _FAR * black else _BLACK
    doubt = (
      f"{background} is taken as the background: {most} fills {share:.0%} of the pixels and black {black:.1%}; "
      "put the background first in the table"
    )
  elif most == _BLACK:
    doubt = ""
  return (background, *sorted(color for color in colors if color != background)), doubt


def conflict_text(stored: StoredValues) -> str:
  """Returns which index has which colors in which two files; the palettes of the files must differ."""
  index, first, second = stored.palette_conflict()
  one, other = (f"{unpack_color(color)} in {stored.examples[index, color]}" for color in (first, second))
  return f"index {index} is {one} and {other}"
