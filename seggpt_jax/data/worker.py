"""How a process that reads for another one lives and dies: with it, and not by signals meant for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent(index: int, count: int) -> None:
  """Makes this worker deaf to what stops the training process, and ends it when that one is gone.

  Ctrl-C and a scheduler's SIGTERM reach workers too; the training process still has a step to finish with them. And one
  that is killed cannot tell its workers, which would wait for it for ever.

  Args:
    index: which worker this is.
    count: how many there are.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:

    def wait() -> None:
      parent.join()
      os._exit(1)

    threading.Thread(target=wait, name="follow_parent", daemon=True).start()
