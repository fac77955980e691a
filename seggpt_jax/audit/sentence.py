"""One piece of advice about a dataset, and how counts, classes and keys are put in words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from seggpt_jax.audit.findings import Findings


class Advice(NamedTuple):
  """One sentence, and the keys of the configuration's `data` that it sets; `fatal` if training would refuse."""

  text: str
  keys: Mapping[str, Any] = MappingProxyType({})
  fatal: bool = False


def key_text(keys: Mapping[str, Any]) -> str:
  """The keys with their values, as in a configuration."""
  return ", ".join(f"data.{key}={value}" for key, value in keys.items())


def count_text(count: int, what: str = "file") -> str:
  """1 file, 2 files."""
  return f"{count} {what}{'' if count == 1 else 's'}"


def class_label(findings: Findings, class_index: int) -> str:
  """A class as people know it."""
  names = findings.class_names
  return f"{class_index} {names[class_index - 1]}" if 0 < class_index <= len(names) else str(class_index)
