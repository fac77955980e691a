"""Shares of the work for processes that have nothing in common but a folder of results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

from seggpt_jax.errors import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shard:
  """The share of one process. `2/4` is the second of every four items.

  Attributes:
    index: number of the process, 1 .. count.
    count: number of processes.
  """

  index: int = 1
  count: int = 1

  @classmethod
  def parse(cls, text: str) -> Shard:
    """Reads a shard such as `2/4`.

    Raises:
      InputError: the text has another form.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
      raise InputError(f"--shard: found {text!r}, expected i/n such as 2/4, with i from 1 to n")
    return cls(int(found[1]), int(found[2]))

  def select(self, items: Sequence[T]) -> Sequence[T]:
    """Returns the items of this shard."""
    return items[self.index - 1 :: self.count]

  def all(self) -> list[Shard]:
    """Returns the shards of all processes."""
    return [Shard(index, self.count) for index in range(1, self.count + 1)]

  def __str__(self) -> str:
    return f"{self.index}-of-{self.count}"
