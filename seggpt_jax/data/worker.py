"""Lifetime of a worker process: it ends with its parent, and not by signals that are meant for the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent(index: int, count: int) -> None:
  """Makes this worker ignore SIGINT and SIGTERM, and ends it when its parent ends.

  Ctrl-C and a scheduler's SIGTERM reach workers too, but the training process still needs them to finish a step. A
  killed training process cannot stop its workers, which would otherwise wait forever.

  Args:
    index: index of this worker, unused; grain passes it.
    count: number of workers, unused; grain passes it.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:

    def wait() -> None:
      parent.join()
      os._exit(1)

    threading.Thread(target=wait, name="follow_parent", daemon=True).start()
