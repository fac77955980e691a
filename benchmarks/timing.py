"""Times calls in turns, and watches whether other processes took processor time meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_Name = TypeVar("_Name")


class Turn(NamedTuple):
  """Seconds of a call, and the share of all processors that other processes used meanwhile, 0 to 1."""

  seconds: float
  others: float


def timed(call: Callable[[], Any], least_seconds: float) -> float:
  """Returns the mean seconds of a call, repeated for at least `least_seconds`."""
  count, began = 0, time.perf_counter()
  while count == 0 or time.perf_counter() - began < least_seconds:
    call()
    count += 1
  return (time.perf_counter() - began) / count


def take_turn(call: Callable[[], Any], least_seconds: float) -> Turn:
  """Times a call and watches whether the machine was busy with something else."""
  before = _processor_seconds()
  seconds = timed(call, least_seconds)
  busy, own, total = (after - start for after, start in zip(_processor_seconds(), before, strict=True))
  return Turn(seconds, max(busy - own, 0.0) / max(total, 1e-9))


def take_turns(calls: Mapping[_Name, Callable[[], Any]], rounds: int, least_seconds: float) -> dict[_Name, list[Turn]]:
  """Times several calls in alternation, so that a machine that is slower for a while slows all of them.

  Args:
    calls: functions that are compiled and warm.
    rounds: number of turns of each.
    least_seconds: minimum length of a turn.
  """
  turns: dict[_Name, list[Turn]] = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      turns[name].append(take_turn(call, least_seconds))
  return turns


def median_seconds(turns: list[Turn]) -> float:
  """Returns the median seconds of a call over its turns."""
  return statistics.median(turn.seconds for turn in turns)


def _processor_seconds() -> tuple[float, float, float]:
  """Returns seconds since boot, summed over processors: busy, busy with this process, and total."""
  first = Path("/proc/stat").read_text().splitlines()[0]
  user, nice, system, idle, waiting, *interrupts = (int(n) / os.sysconf("SC_CLK_TCK") for n in first.split()[1:8])
  busy = user + nice + system + sum(interrupts)
  return busy, time.process_time(), busy + idle + waiting
