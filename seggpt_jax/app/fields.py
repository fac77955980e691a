"""The fields of requests, as pydantic models: JSON values or strings of a form in, checked values out.

The description of the service for other programs (OpenAPI) is made from these models.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pydantic
from pydantic import BeforeValidator, Field, SkipValidation, WithJsonSchema
from pydantic_core import PydanticKnownError

from seggpt_jax.errors import InputError, nearest
from seggpt_jax.formats.labels import LABEL_MODES, LabelFormat, parse_values
from seggpt_jax.inference.options import Flips, Heads, InferenceOptions
from seggpt_jax.model.seggpt import SegType

FILES = ("image", "prompt_image", "prompt_label")
_SHOWN = 80  # characters of a wrong value in a message
_SCALE = ("split", "zoom", "overlap", "stitch_width", "foreground_tiles", "prompt_grid")

M = TypeVar("M", bound=pydantic.BaseModel)


class Upload(NamedTuple):
  """A file of a request."""

  name: str  # name for messages, such as image[0]
  data: bytes  # its content
  file_name: str  # the name that the client gave it, or one made from `name`


def _no_bool(value: Any) -> Any:
  """Refuses true and false, which pydantic would take for 1 and 0."""
  if isinstance(value, bool):
    raise PydanticKnownError("int_type")
  return value


def _several(value: Any) -> Any:
  """Returns the values of a string with commas, or of a JSON list."""
  values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
  return tuple(map(_no_bool, values))


def _splits(value: Any) -> Any:
  values = _several(value)
  return values[0] if len(values) == 1 else values


def _values(value: Any, info: Any) -> Any:
  """Parses gray values or colors: a string as on the command line, or a JSON list of numbers or of triples."""
  if isinstance(value, str):
    if re.search(r"[^0-9\s,()]", value):
      raise InputError(f"{info.field_name}: found {value[:_SHOWN]!r}, expected 0,128,255 or (0,0,0),(255,0,0)")
    return parse_values(value, str(info.field_name))
  return tuple(tuple(each) if isinstance(each, list) else each for each in value) if isinstance(value, list) else value


_FILE_LIST = {"type": "array", "items": {"type": "string", "format": "binary"}}
Files = Annotated[list[Upload], SkipValidation, WithJsonSchema(_FILE_LIST)]
Whole = Annotated[int | None, BeforeValidator(_no_bool)]
Number = Annotated[float | None, BeforeValidator(_no_bool)]
Values = Annotated[tuple[int | tuple[int, int, int], ...] | None, BeforeValidator(_values)]
Kind = Literal["labels", "overlay", "polygons", "coco"]


class PromptFields(pydantic.BaseModel, extra="forbid"):
  """A request that brings prompts."""

  prompt_image: Files = Field([], description="Prompt images, best first. None with a network that needs no prompts.")
  prompt_label: Files = Field([], description="The label map of each prompt image.")
  labels: Literal[LABEL_MODES] | None = Field(
    None, description="How label maps are read: class indices, masks, or by a table."
  )
  threshold: Whole = Field(None, ge=0, le=255, description="The largest background value of masks.")
  table: Values = Field(None, description="Values or colors of classes 0, 1, ..., with labels=table.")
  ignore: Values = Field(None, description="Values or colors of pixels without a known class.")

  def format(self, default: LabelFormat) -> LabelFormat:
    """Returns how the label maps are read. Nothing is remembered of those of other requests.

    Args:
      default: format of the service.

    Raises:
      InputError: the values do not fit the format.
    """
    kept = default if self.labels in (None, default.mode) else LabelFormat()
    given = {name: getattr(self, name) for name in ("threshold", "table", "ignore") if name in self.given}
    return dataclasses.replace(kept, mode=self.labels or default.mode, **given)

  @property
  def given(self) -> set[str]:
    """The names of the fields that the request has."""
    return {name for name in self.model_fields_set if getattr(self, name) is not None}


class PredictFields(PromptFields):
  """A request to segment images."""

  image: Files = Field([], description="Images to segment, one or several.")
  model: str | None = Field(None, description="Name of the network, where several are served; by default the first.")
  prompts: str | None = Field(None, description="Name of a stored set of prompts, in place of prompt images.")
  answer: Annotated[tuple[Kind, ...], BeforeValidator(_several)] = Field(
    ("labels",),
    description="What the answer holds: label maps, pictures with the classes in color, objects as polygons, or all "
    "objects of the request as a COCO file; several with commas.",
  )
  confidence: bool = Field(False, description="Adds how close predicted colors are to those of their classes.")
  split: Annotated[int | tuple[int, ...] | None, BeforeValidator(_splits)] = Field(
    None,
    description="Cuts the image and every prompt into N x N tiles, so that small objects are seen larger; several "
    "are averaged.",
  )
  overlap: Number = Field(None, ge=0, le=0.9, description="Share by which neighboring tiles overlap.")
  stitch_width: Whole = Field(None, ge=0, description="Predicts seams between tiles again, in patches.")
  flips: Flips | None = Field(None, description="Averages over mirrored copies.")
  foreground_tiles: bool | None = Field(None, description="Leaves out tiles of prompts without foreground.")
  seg_type: SegType | None = Field(None, description="Whether prompts mark a class or single instances.")
  zoom: Number = Field(
    None, ge=0, description="The factor from an image's pixels to the network's, in place of split; 0 is off."
  )
  prompt_grid: Whole = Field(None, ge=1, le=16, description="Cells along a side of a prompt.")
  sensitivity: Annotated[tuple[float, ...] | None, BeforeValidator(_several)] = Field(
    None, description="For each class from 1; above 1 finds more of it."
  )
  least_area: Whole = Field(None, ge=0, description="Smaller objects, in pixels, become background.")
  head: Heads | None = Field(None, description="Adds a classifier fitted to prompts.")

  def options(self, defaults: InferenceOptions) -> InferenceOptions:
    """Returns the options. A split or a zoom in the request takes the place of the scale that is the default.

    Args:
      defaults: options of the network.

    Raises:
      InputError: the options do not go together.
    """
    plain = {field.name: field.default for field in dataclasses.fields(InferenceOptions)}
    changes = {name: getattr(self, name) for name in plain.keys() & self.given}
    if changes.keys() & {"split", "zoom"}:
      changes = {name: plain[name] for name in _SCALE} | changes
    return dataclasses.replace(defaults, **changes)


def parse(model: type[M], values: Mapping[str, Any]) -> M:
  """Checks values that came from outside.

  Args:
    model: the fields that there may be.
    values: strings or JSON values.

  Raises:
    InputError: a field is unknown, or has a value of another kind; one line for the first such field.
  """
  for name in values:
    if name not in model.model_fields:
      known = nearest(name[:_SHOWN], model.model_fields, 2) or list(model.model_fields)[:8]
      raise InputError(f"{name[:_SHOWN]!r}: unknown field, expected {' or '.join(known)}")
  try:
    return model.model_validate(dict(values))
  except pydantic.ValidationError as error:
    raise InputError(first_mistake(error.errors(include_url=False))) from error


def first_mistake(errors: Sequence[Mapping[str, Any]]) -> str:
  """Returns the first mistake that pydantic has found, in one line.

  Args:
    errors: its own description of all.
  """
  first = errors[0]
  if first["type"] == "value_error":
    return str(first["ctx"]["error"])
  name = next(part for part in first["loc"] if part not in ("query", "path"))
  expected = first["msg"].removeprefix("Input should be ").removeprefix("a valid ").partition(", unable")[0]
  kinds = {"integer": "an integer", "number": "a number", "string": "a string", "boolean": "true or false"}
  return f"{name}: found {repr(first['input'])[:_SHOWN]}, expected {kinds.get(expected, expected)}"
