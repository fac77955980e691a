"""The end of a run, whether it finishes, is stopped by a signal or fails with an error.

Schedulers send SIGTERM some time before they kill a process. The first SIGTERM or Ctrl-C asks the run to stop after the
current step, on all processes alike; a second one ends the process at once.
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
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.monitor import Monitor

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def managed_shutdown(monitor: Monitor, checkpoints: Checkpoints, mesh: Mesh) -> Iterator[Interruption]:
  """Closes the monitor and the checkpoints when the steps of a run end, for any reason.

  Args:
    monitor: monitor of the run.
    checkpoints: they are waited for, unless the process fails while others continue, which would never join it.
    mesh: devices of all processes.

  Yields:
    The interruption, which says when to stop.

  Raises:
    MachineError: the disk is full.
  """
  with checkpoints.explain_full_disk(), listen_for_signals(mesh) as interruption, contextlib.ExitStack() as closing:
    closing.callback(checkpoints.close)
    closing.callback(monitor.close)
    try:
      yield interruption
    except Exception:
      if jax.process_count() > 1:
        closing.pop_all()
        closing.callback(checkpoints.abandon)
        closing.callback(monitor.close)
      raise


class Interruption:
  """Remembers signals and decides with the other processes after which step to stop.

  Several processes have to stop after the same step, although a signal may reach only one of them, or each at another
  moment. So every step is followed by the maximum of the signals received over all processes. Its result is read one
  step later, when reading it does not wait.
  """

  def __init__(self, mesh: Mesh):
    self.received = 0  # number of the last signal, written by the handler
    self._mesh = mesh
    self._pending: jax.Array | None = None
    self._largest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
    self._agreed = 0

  def stop_requested(self) -> bool:
    """Returns whether to stop after this step; every process calls this once in every step, after dispatching it."""
    if jax.process_count() == 1:
      self._agreed = self.received
      return bool(self._agreed)
    if self._pending is not None:
      self._agreed = int(self._pending)
    local = np.full(jax.local_device_count(), self.received, np.int32)
    self._pending = self._largest(sharding.put_batch(self._mesh, {"received": local})["received"])
    return bool(self._agreed)

  def describe(self, step: int) -> str:
    """Returns the line that says which signal stopped the run and how to resume it."""
    return f"stopped by {signal.Signals(self._agreed).name} at step {step}, rerun the same command to resume"

  def exit_if_stopped(self) -> None:
    """Ends the process with the status that belongs to the signal, if a signal stopped the run.

    Raises:
      SystemExit: with status 0, after SIGTERM: the run did what it was asked to.
      KeyboardInterrupt: after Ctrl-C.
    """
    if self._agreed == signal.SIGTERM:
      raise SystemExit(0)
    if self._agreed:
      raise KeyboardInterrupt


@contextlib.contextmanager
def listen_for_signals(mesh: Mesh) -> Iterator[Interruption]:
  """Handles signals while the context is open and restores the former handlers afterwards.

  Python delivers signals to the main thread only. In any other thread nothing is changed and no signal is noticed.
  """
  interruption = Interruption(mesh)
  if threading.current_thread() is not threading.main_thread():
    yield interruption
    return
  former = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}
  # Python's own reaction to Ctrl-C would wait for unfinished checkpoints; the kernel of a notebook has to survive it.
  after_first = former if "ipykernel" in sys.modules else dict.fromkeys(_SIGNALS, signal.SIG_DFL)

  def handle(number: int, frame: object) -> None:
    interruption.received = number
    _set_handlers(after_first)

  _set_handlers(dict.fromkeys(_SIGNALS, handle))
  try:
    yield interruption
  finally:
    _set_handlers(former)


def _set_handlers(handlers: dict[signal.Signals, object]) -> None:
  for number, handler in handlers.items():
    signal.signal(number, handler)
