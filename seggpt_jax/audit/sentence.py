"""A piece of advice about a dataset, and the wording of counts, classes and keys."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from seggpt_jax.audit.findings import Findings


class Advice(NamedTuple):
  """A sentence, the keys of `config.data` that it recommends, and whether training fails without it (`fatal`)."""

  text: str
  keys: Mapping[str, Any] = MappingProxyType({})
  fatal: bool = False


def key_text(keys: Mapping[str, Any]) -> str:
  """Returns keys with their values, as in a configuration: data.labels=index."""
  return ", ".join(f"data.{key}={value}" for key, value in keys.items())


def count_text(count: int, what: str = "file") -> str:
  """Returns a count with its noun: 1 file, 2 files."""
  return f"{count} {what}{'' if count == 1 else 's'}"


def class_label(findings: Findings, class_index: int) -> str:
  """Returns the index of a class and its name, if it has one."""
  names = findings.class_names
  return f"{class_index} {names[class_index - 1]}" if 0 < class_index <= len(names) else str(class_index)
