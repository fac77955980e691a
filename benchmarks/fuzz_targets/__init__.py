"""Lists what to fuzz: each target has small files to mutate, and a function that reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class Target:
  """One format to fuzz.

  Attributes:
    seeds: content by relative file name of the files that get mutated; they are already written in the folder.
    read: reads everything from the folder. It raises InputError or returns, and asserts that what was read is valid.
    structured: whether files are JSON, YAML or XML, which are also mutated by their structure.
  """

  seeds: dict[str, bytes]
  read: Callable[[], None]
  structured: bool
