"""Shares of a run that several processes work on, each for itself: they have no more in common than a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

from seggpt_jax.errors import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shard:
  """One process' share of the work: with `2/4`, the second item of each four.

  Attributes:
    index: 1 .. count.
    count: of processes.
  """

  index: int = 1
  count: int = 1

  @classmethod
  def parse(cls, text: str) -> Shard:
    """Reads `2/4`.

    Raises:
      InputError: it is of another form.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
      raise InputError(f"--shard: found {text!r}, expected i/n such as 2/4, with i from 1 to n")
    return cls(int(found[1]), int(found[2]))

  def of(self, items: Sequence[T]) -> Sequence[T]:
    """The items of this share."""
    return items[self.index - 1 :: self.count]

  def all(self) -> list[Shard]:
    """Those of all processes."""
    return [Shard(index, self.count) for index in range(1, self.count + 1)]

  def __str__(self) -> str:
    return f"{self.index}-of-{self.count}"
