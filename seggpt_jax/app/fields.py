"""The fields of a request: text of a form or values of JSON in, inference options and label formats out.

One table says which fields there are, what they mean and how they are parsed. The description for other programs
(OpenAPI) is made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LABEL_MODES, LabelFormat, parse_values
from seggpt_jax.inference.options import Flips, Heads, InferenceOptions
from seggpt_jax.model.seggpt import SegType

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_SHOWN = 80  # characters of a wrong value in a message


class Field(NamedTuple):
  """A field of a request.

  Attributes:
    parse: turns a string or a JSON value into the value of the field; gets the field's name for messages.
    schema: JSON schema of the value.
    meaning: one sentence for people.
  """

  parse: Callable[[Any, str], Any]
  schema: dict[str, Any]
  meaning: str


def _wrong(name: str, value: Any, expected: str) -> InputError:
  return InputError(f"{name}: found {repr(value)[:_SHOWN]}, expected {expected}")


def _whole(value: Any, name: str) -> int:
  try:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
      return int(value)
  except ValueError as error:
    raise _wrong(name, value, "an integer") from error
  raise _wrong(name, value, "an integer")


def _number(value: Any, name: str) -> float | int:
  try:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
      number = float(value)
      return int(number) if number.is_integer() else number
  except (ValueError, OverflowError) as error:
    raise _wrong(name, value, "a number") from error
  raise _wrong(name, value, "a number")


def _flag(value: Any, name: str) -> bool:
  if isinstance(value, bool):
    return value
  text = value.lower() if isinstance(value, str) else ""
  if text in _TRUE or text in _FALSE:
    return text in _TRUE
  raise _wrong(name, value, "true or false")


def _several(parse: Callable[[Any, str], Any]) -> Callable[[Any, str], tuple]:
  """Returns a parser of several values: a JSON list, or a string with commas."""

  def parse_all(value: Any, name: str) -> tuple:
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return tuple(parse(each, name) for each in values)

  return parse_all


def _splits(value: Any, name: str) -> int | tuple[int, ...]:
  splits = _several(_whole)(value, name)
  return splits[0] if len(splits) == 1 else splits


def _text(value: Any, name: str) -> str:
  if not isinstance(value, str):
    raise _wrong(name, value, "a string")
  return value


def _one_of(names: Sequence[str]) -> Callable[[Any, str], str]:
  """Returns a parser of a string that is one of several."""

  def parse(value: Any, name: str) -> str:
    if value not in names:
      raise _wrong(name, value, f"one of {', '.join(names)}")
    return value

  return parse


def _values(value: Any, name: str) -> tuple:
  """Parses gray values or colors: a string as on the command line, or a JSON list of numbers or of triples."""
  if isinstance(value, str):
    found = parse_values(value, name)
    return found if isinstance(found, tuple) else (found,)
  if not isinstance(value, list):
    raise _wrong(name, value, "a list of values or colors")
  return tuple(tuple(each) if isinstance(each, list) else each for each in value)


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_LARGER = "factor from an image's pixels to the network's, in place of split; 0 is off"
OPTION_FIELDS: dict[str, Field] = {
  "split": Field(
    _splits,
    {"oneOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]},
    "Cuts the image and every prompt into N x N tiles, so that small objects are seen larger; several are averaged.",
  ),
  "overlap": Field(
    _number, {"type": "number", "minimum": 0, "maximum": 0.9}, "Share by which neighboring tiles overlap."
  ),
  "stitch_width": Field(_whole, {"type": "integer", "minimum": 0}, "Predicts seams between tiles again, in patches."),
  "flips": Field(_one_of(get_args(Flips)), {"enum": list(get_args(Flips))}, "Averages over mirrored copies."),
  "foreground_tiles": Field(_flag, {"type": "boolean"}, "Leaves out tiles of prompts without foreground."),
  "seg_type": Field(
    _one_of(get_args(SegType)), {"enum": list(get_args(SegType))}, "Whether prompts mark a class or single instances."
  ),
  "zoom": Field(_number, {"type": "number", "minimum": 0}, f"The {_LARGER}."),
  "prompt_grid": Field(_whole, {"type": "integer", "minimum": 1, "maximum": 16}, "Cells along a side of a prompt."),
  "octaves": Field(
    _whole, {"type": "integer", "minimum": 1}, "Number of zooms to average, each half of the one before."
  ),
  "sensitivity": Field(
    _several(lambda value, name: float(_number(value, name))),
    _NUMBERS,
    "For each class from 1; above 1 finds more of it.",
  ),
  "least_area": Field(_whole, {"type": "integer", "minimum": 0}, "Smaller objects, in pixels, become background."),
  "head": Field(_one_of(get_args(Heads)), {"enum": list(get_args(Heads))}, "Adds a classifier fitted to prompts."),
}
LABEL_FIELDS: dict[str, Field] = {
  "labels": Field(
    _one_of(LABEL_MODES), {"enum": list(LABEL_MODES)}, "How label maps are read: class indices, masks, or by a table."
  ),
  "threshold": Field(
    _whole, {"type": "integer", "minimum": 0, "maximum": 255}, "The largest background value of masks."
  ),
  "table": Field(_values, {"type": "array"}, "Values or colors of classes 0, 1, ..., with labels=table."),
  "ignore": Field(_values, {"type": "array"}, "Values or colors of pixels without a known class."),
}
NAME_FIELD = {
  "prompts": Field(_text, {"type": "string"}, "Name of a stored set of prompts, in place of prompt images.")
}
ANSWER_FIELDS = {
  "confidence": Field(_flag, {"type": "boolean"}, "Adds how close predicted colors are to those of their classes.")
}
PREDICT_FIELDS = NAME_FIELD | OPTION_FIELDS | ANSWER_FIELDS | LABEL_FIELDS


def parse_fields(given: Mapping[str, Any], known: Mapping[str, Field], files: Collection[str]) -> dict[str, Any]:
  """Parses the fields of a request.

  Args:
    given: strings or JSON values.
    known: the fields that the request may have.
    files: names of its files, for messages.

  Raises:
    InputError: a field is unknown, or has a value of another kind.
  """
  for name in given:
    if name not in known:
      nearest = difflib.get_close_matches(name[:_SHOWN], [*known, *files], n=2, cutoff=0.5) or [*files, *known]
      raise InputError(f"{name[:_SHOWN]!r}: unknown field, expected {' or '.join(nearest[:8])} (GET /docs)")
  return {name: known[name].parse(value, name) for name, value in given.items()}


def options_of(values: Mapping[str, Any], defaults: InferenceOptions) -> InferenceOptions:
  """Returns the options of a request. A split or a zoom in it takes the place of the scale that is the default.

  Args:
    values: parsed fields.
    defaults: options of the service.

  Raises:
    InputError: the options do not go together.
  """
  changes = {name: values[name] for name in OPTION_FIELDS if name in values}
  if "split" in changes or "zoom" in changes:
    plain = InferenceOptions()
    scale = ("split", "zoom", "overlap", "stitch_width", "foreground_tiles", "prompt_grid", "octaves")
    reset = {name: getattr(plain, name) for name in scale}
    changes = reset | changes
  return dataclasses.replace(defaults, **changes)


def labels_of(values: Mapping[str, Any], default: LabelFormat) -> LabelFormat:
  """Returns how the label maps of one request are read. Nothing is remembered of those of other requests.

  Args:
    values: parsed fields.
    default: format of the service.

  Raises:
    InputError: the values do not fit the format.
  """
  mode = values.get("labels", default.mode)
  base = default if mode == default.mode else LabelFormat() if mode != "table" else None
  inherited = {} if base is None else {name: getattr(base, name) for name in ("threshold", "table", "ignore")}
  changes = {name: values[name] for name in ("threshold", "table", "ignore") if name in values}
  return LabelFormat(mode, **(inherited | changes))
