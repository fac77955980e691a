"""How a run ends, whatever it ends by: finished, stopped by a signal, or on an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.interruption import Interruption, listening
from seggpt_jax.training.monitor import Monitor


@contextlib.contextmanager
def orderly(monitor: Monitor, checkpoints: Checkpoints, mesh: Mesh) -> Iterator[Interruption]:
  """Closes what the run writes to when its steps end.

  Args:
    monitor: is closed.
    checkpoints: are waited for, but by a process that fails among others, which do not know that it does.
    mesh: the devices of all processes.

  Yields:
    What tells whether to stop.

  Raises:
    InputError: the disk is full.
  """
  with checkpoints.watching_disk(), listening(mesh) as interruption, contextlib.ExitStack() as closing:
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
