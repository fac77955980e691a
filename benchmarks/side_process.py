"""Runs the sides of a comparison in processes of their own that take turns, and measures the peak memory of each.

A side builds a program, runs it once to compile it, and then takes a turn whenever it is asked. Other sides wait
meanwhile.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks import timing

SPAWN = multiprocessing.get_context("spawn")


class Timed(Protocol):
  """Settings of a side, as far as this module reads them: the minimum length of a turn."""

  least_seconds: float


class Running(NamedTuple):
  """A network that is ready to be timed.

  Attributes:
    call: function that does the work once and returns when the result is there.
    output: function that returns the predicted colors `[B, H, W, 3]`, or None in training.
    rest: function that frees memory until the next turn.
    device_memory: function that returns the peak in bytes, or None if the device does not report it.
  """

  call: Callable[[], Any]
  output: Callable[[], np.ndarray | None]
  rest: Callable[[], None]
  device_memory: Callable[[], int | None]


class SideProcess:
  """The handle of a side that runs in its own process.

  Args:
    side: settings of the side.
    start: function of a module that builds the side's program in that process.
    count_start: whether peak memory includes building and compiling.

  Attributes:
    side: settings of the side.
    error: error of the side in one line, after which it has ended; else None.
    output: predicted colors of its network.
    turns: turns that it has taken.
    memory: peak memory in bytes, after `finish`.
  """

  def __init__(self, side: Any, start: Callable[[Any], Running], *, count_start: bool = False):
    self.side = side
    self.error: str | None = None
    self.turns: list[timing.Turn] = []
    self.memory: int | None = None
    self._pipe, theirs = SPAWN.Pipe()
    self._process = SPAWN.Process(target=_serve, args=(theirs, side, start, count_start))
    self._process.start()
    theirs.close()
    self.output: np.ndarray | None = self._receive()

  def take_turn(self) -> None:
    self._pipe.send(True)
    if (turn := self._receive()) is not None:
      self.turns.append(turn)

  def finish(self) -> None:
    if self.error is None:
      self._pipe.send(False)
      self.memory = self._receive()
    self._pipe.close()
    self._process.join()

  def _receive(self) -> Any:
    try:
      answer = self._pipe.recv()
    except EOFError:
      self._process.join()
      answer = f"ended with status {self._process.exitcode}"
    if isinstance(answer, str):
      self.error = answer
      return None
    return answer


def take_turns(
  sides: Sequence[Timed], start: Callable[[Any], Running], count: int, *, count_start: bool = False
) -> list[SideProcess]:
  """Starts sides and lets them take turns.

  Args:
    sides: settings of the sides.
    start: function of a module that builds a side's program in its process.
    count: number of turns of each.
    count_start: whether peak memory includes building and compiling.

  Returns:
    The processes of the sides, which have ended.
  """
  processes: list[SideProcess] = []
  try:
    for side in sides:  # one after the other, because compilers time their choices and take memory
      processes.append(SideProcess(side, start, count_start=count_start))
    for turn in range(count):
      # Back and forth, so that no side always runs after the same one.
      for process in processes if turn % 2 == 0 else reversed(processes):
        if process.error is None:
          process.take_turn()
  finally:
    for process in processes:
      process.finish()
  return processes


def high_water_mark() -> int:
  """Returns the peak memory of this process in bytes."""
  status = Path("/proc/self/status").read_text().splitlines()
  return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _serve(pipe: Connection, side: Timed, start: Callable[[Any], Running], count_start: bool) -> None:
  """Runs a side in this process.

  Sends the output, then a `Turn` for every True that it receives, and the peak memory in bytes for a False. An error is
  sent as text and ends the side.
  """
  try:
    running = start(side)
    running.call()
    pipe.send(running.output())
    running.rest()
    if not count_start:
      Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    while pipe.recv():
      if running.device_memory() is not None:
        running.call()  # allocates again what `rest` has freed
      pipe.send(timing.take_turn(running.call, side.least_seconds))
      running.rest()
    pipe.send(running.device_memory() or high_water_mark())
  except EOFError:
    pass  # the comparing process has ended
  except Exception as error:  # out of memory, no compiler, ...; the other sides continue
    lines = [line for line in str(error).splitlines() if line.strip()]
    pipe.send(": ".join([type(error).__name__, *lines[:1]]))
