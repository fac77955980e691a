"""Runs `seggpt` commands in processes of their own, which end when the process that started them ends.

In: the arguments of a command. Out: its process. Standard input of the process is a pipe to which nothing is written.
The system closes the pipe when the parent ends, even by SIGKILL, and the end of the pipe ends the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FOLLOWS = "SEGGPT_FOLLOWS_STDIN"  # in the environment of a process that ends with its standard input
_PATIENCE = 10.0  # seconds that a process gets to write a checkpoint before it ends by force


def start_command(
  arguments: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen:
  """Starts a `seggpt` command as a process that ends soon after this one ends, however this one ends.

  Args:
    arguments: the command line after `seggpt`.
    environment: variables that are set in addition to the variables of this process.
    **options: further arguments of `subprocess.Popen`, except stdin.

  Returns:
    The process. Closing its `stdin` asks it to end.
  """
  paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
  variables = {**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(filter(None, paths)), _FOLLOWS: "1"}
  # Python closes this end of the pipe in all other processes that it starts, so that no sibling keeps it open.
  return subprocess.Popen(
    [sys.executable, "-m", "seggpt_jax", *arguments], env=variables, stdin=subprocess.PIPE, **options
  )


def follow_parent() -> None:
  """Makes this process end with its parent, if `start_command` has started it.

  The process gets SIGTERM, after which a training run writes a checkpoint. It ends by force if that takes too long.
  """
  if os.environ.pop(_FOLLOWS, None) is None:  # popped, so that processes started by this one do not read its pipe
    return

  def wait() -> None:
    while os.read(0, 1024):
      pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)

  threading.Thread(target=wait, name="follow_parent", daemon=True).start()
