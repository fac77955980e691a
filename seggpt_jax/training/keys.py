"""Describes one key of a configuration: default, meaning, allowed values, and when the key has an effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Values = Mapping[str, Any]  # flat: {"data.source": "folder", ...}


@dataclasses.dataclass(frozen=True)
class Condition:
  """A condition on other keys, without which a key has no effect.

  Attributes:
    text: the condition in words, such as "with data.source=tasks".
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
    minimum: smallest value allowed; None where there is no limit.
    maximum: largest value allowed; None where there is no limit.
    choices: all values allowed; empty where the value is free.
    conditions: all of them must hold, or the key has no effect and may not be set.
  """

  name: str
  default: Any
  meaning: str
  minimum: int | float | None = None
  maximum: int | float | None = None
  choices: tuple[str, ...] = ()
  conditions: tuple[Condition, ...] = ()

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
    return f"at least {self.minimum}" if self.maximum is None else f"{self.minimum} to {self.maximum}"

  def has_effect(self, values: Values) -> bool:
    """Returns whether the key has an effect beside the other values, which are given by dotted key."""
    return all(condition.holds(values) for condition in self.conditions)

  def problem(self, value: Any) -> str | None:
    """Returns what was expected of a value that is not allowed, or None for one that is."""
    if self.choices:
      return None if value in self.choices else self.allowed
    fits = (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)
    return None if fits else self.allowed


def with_value(key: str, *choices: Any) -> tuple[Condition]:
  """Returns the condition that another key has one of these values."""
  words = " or ".join(map(str, choices))
  return (Condition(f"with {key}={words}", lambda values: values[key] in choices),)


def without(key: str) -> tuple[Condition]:
  """Returns the condition that another key is zero or empty."""
  return (Condition(f"without {key}", lambda values: not values[key]),)
