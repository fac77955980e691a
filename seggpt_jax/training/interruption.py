"""SIGTERM and Ctrl-C during a run: remembered, and answered by all processes after the same step.

Schedulers send SIGTERM some time before they kill. The first signal asks the run to stop after the step in hand, a
second one ends the process at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seggpt_jax.training import sharding

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
  """Whether the run was asked to stop.

  Several processes have to stop after the same step, although a signal may reach only one of them, or each at another
  moment. So every step is followed by the maximum over all processes of the signals received, and its answer is read
  one step later, when it is there without waiting.

  Args:
    mesh: the devices of all processes.
  """

  def __init__(self, mesh: Mesh):
    self.received = 0  # the signal's number; written by the handler
    self._mesh = mesh
    self._answer: jax.Array | None = None
    self._largest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
    self._agreed = 0

  def asked(self) -> bool:
    """Whether to stop after this step; every process asks once in every step, after it was dispatched."""
    if jax.process_count() == 1:
      self._agreed = self.received
      return bool(self._agreed)
    if self._answer is not None:
      self._agreed = int(self._answer)
    mine = np.full(jax.local_device_count(), self.received, np.int32)
    self._answer = self._largest(sharding.put_batch(self._mesh, {"received": mine})["received"])
    return bool(self._agreed)

  def describe(self, step: int) -> str:
    """What the person at the keyboard is told."""
    return f"stopped by {signal.Signals(self._agreed).name} at step {step}, run the same line to go on"

  def leave(self) -> None:
    """Ends the process as the signal wants it, if the run was stopped by one.

    Raises:
      SystemExit: of status 0, after SIGTERM: the run did what it was asked to.
      KeyboardInterrupt: after Ctrl-C.
    """
    if self._agreed == signal.SIGTERM:
      raise SystemExit(0)
    if self._agreed:
      raise KeyboardInterrupt


@contextlib.contextmanager
def listening(mesh: Mesh) -> Iterator[Interruption]:
  """Takes signals for as long as it is open; what was done about them before is restored afterwards.

  Python gives signals to the main thread only, so in any other one nothing is changed and nothing heard.
  """
  interruption = Interruption(mesh)
  if threading.current_thread() is not threading.main_thread():
    yield interruption
    return
  before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}
  # Python's own answer to Ctrl-C would wait for checkpoints under way; a notebook's kernel has to survive it though.
  second = before if "ipykernel" in sys.modules else dict.fromkeys(_SIGNALS, signal.SIG_DFL)

  def handle(number: int, frame: object) -> None:
    interruption.received = number
    _set(second)

  _set(dict.fromkeys(_SIGNALS, handle))
  try:
    yield interruption
  finally:
    _set(before)


def _set(handlers: dict[signal.Signals, object]) -> None:
  for number, handler in handlers.items():
    signal.signal(number, handler)
