"""Describes one key of a configuration: default, meaning, allowed values, and when the key has an effect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

Values = Mapping[str, Any]  # flat: {"data.source": "folder", ...}

_KINDS = {bool: "True or False", int: "an integer", float: "a finite number", str: "a string"}
_LONGEST_TEXT, _LONGEST_TUPLE = 4096, 10_000


@dataclasses.dataclass(frozen=True)
class Condition:
  """A condition on other keys, without which a key has no effect.

  Attributes:
    text: the condition in words, such as "with data.labels=binary".
    holds: takes all values of a configuration by dotted key and returns whether the condition is met.
  """

  text: str
  holds: Callable[[Values], bool]


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of the configuration.

  Attributes:
    name: dotted name, such as "data.resize".
    default: value where a config file says nothing. A key counts as set when its value differs from this one.
    meaning: one line for the help text.
    minimum: smallest value allowed, of each entry for a tuple; None where there is no limit.
    maximum: largest value allowed, of each entry for a tuple; None where there is no limit.
    choices: all values allowed; empty where the value is free.
    conditions: all of them must hold, or the key has no effect and may not be set.
    entries: for a tuple, an example of each type that an entry may have.
  """

  name: str
  default: Any
  meaning: str
  minimum: int | float | None = None
  maximum: int | float | None = None
  choices: tuple[str, ...] = ()
  conditions: tuple[Condition, ...] = ()
  entries: tuple[Any, ...] = ()

  @property
  def applies(self) -> str:
    """The conditions in words; empty for a key that always has an effect."""
    return ", ".join(condition.text for condition in self.conditions)

  @property
  def allowed(self) -> str:
    """The allowed values in words; empty where the value is free."""
    if self.choices:
      return f"one of {', '.join(self.choices)}"
    if self.minimum is None:
      return "" if self.maximum is None else f"at most {self.maximum}"
    if self.maximum is None:
      return f"at least {self.minimum}"
    # Nobody looks for a value near a limit of thousands, which only keeps out slips.
    small = self.maximum < 1000
    return f"{self.minimum} to {self.maximum}" if small else f"at least {self.minimum}, at most {self.maximum:,.15g}"

  def has_effect(self, values: Values) -> bool:
    """Returns whether the key has an effect with the other values, which are given by dotted key."""
    return all(condition.holds(values) for condition in self.conditions)

  def wrong_type(self, value: Any) -> str | None:
    """Returns what was expected of a value of another type than the default, or None for one of the right type."""
    if not isinstance(self.default, tuple):
      return None if _has_type(value, self.default) else _KINDS[type(self.default)]
    if (
      isinstance(value, list | tuple)
      and len(value) <= _LONGEST_TUPLE
      and all(any(_has_type(entry, example) for example in self.entries) for entry in value)
    ):
      return None
    kinds = " or ".join(_kind(example) for example in self.entries)
    return f"a list of at most {_LONGEST_TUPLE} entries, each {kinds}"

  def problem(self, value: Any) -> str | None:
    """Returns what was expected of a value that is not allowed, or None for one that is."""
    if self.choices:
      return None if value in self.choices else self.allowed
    if expected := self.wrong_type(value):
      return f"{expected}, {self.allowed}" if self.allowed else expected
    for each in _numbers(value):
      if not (self.minimum is None or each >= self.minimum) or not (self.maximum is None or each <= self.maximum):
        return self.allowed
    return None


def _has_type(value: Any, example: Any) -> bool:
  """Returns whether a value has the type of an example. Integers may stand for others; strings are printable."""
  if isinstance(example, tuple):
    return isinstance(value, list | tuple) and len(value) == len(example) and all(map(_has_type, value, example))
  if isinstance(example, bool) or isinstance(value, bool):
    return isinstance(example, bool) and isinstance(value, bool)
  if isinstance(example, float):
    # Integers beyond the range of a float would overflow.
    return isinstance(value, int | float) and abs(value) < 1e308 and math.isfinite(value)
  if isinstance(example, str):
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and "\0" not in value and len(value.splitlines()) < 2
  return isinstance(value, type(example))


def _kind(example: Any) -> str:
  """Returns the type of an example in words."""
  return f"{len(example)} integers" if isinstance(example, tuple) else _KINDS[type(example)]


def _numbers(value: Any) -> list[int | float]:
  """Returns the numbers in a value, of all entries of a tuple."""
  if isinstance(value, list | tuple):
    return [number for entry in value for number in _numbers(entry)]
  return [value] if isinstance(value, int | float) else []


def with_value(key: str, *choices: Any) -> tuple[Condition]:
  """Returns the condition that another key has one of these values."""
  words = " or ".join(map(str, choices))
  return (Condition(f"with {key}={words}", lambda values: values[key] in choices),)


def with_any(*keys: str) -> tuple[Condition]:
  """Returns the condition that one of several other keys is neither zero nor empty."""
  return (Condition(f"with {' or '.join(keys)}", lambda values: any(values[key] for key in keys)),)


def without(key: str) -> tuple[Condition]:
  """Returns the condition that another key is zero or empty."""
  return (Condition(f"without {key}", lambda values: not values[key]),)
