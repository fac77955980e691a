"""Runs `seggpt` commands in forks of one process that has imported them, which saves the seconds of a start.

The process starts no JAX device, since one with threads cannot be forked safely; each fork has the devices of its own
environment. Tests of signals, locks, streams and the start itself run real processes.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
_SECONDS = 600  # after which a command is killed
_NOT_HERE = ("app", "serve")  # they run until a signal ends them


def seggpt(
  *arguments: object, cwd: str | os.PathLike | None = None, env: Mapping[str, str] | None = None, module: str = ""
) -> subprocess.CompletedProcess[str]:
  """Runs a command to its end, as `subprocess.run` with captured text would.

  Args:
    *arguments: the command line after `seggpt`.
    cwd: working directory; by default that of the tests.
    env: variables in addition to those of the tests.
    module: module with a command of its own, such as pretraining.in_context, in place of `seggpt`.
  """
  line = [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in arguments]
  with tempfile.TemporaryDirectory() as folder:
    request = {
      **{"line": line, "module": module, "cwd": os.fspath(cwd or os.getcwd()), "env": {**os.environ, **(env or {})}},
      "folder": folder,
    }
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    status = json.loads(server.stdout.readline())
    out, err = (Path(folder, name).read_text(errors="replace") for name in ("out", "err"))
  return subprocess.CompletedProcess(line, status, out, err)


@functools.cache
def _server() -> subprocess.Popen[str]:
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  server = subprocess.Popen(
    [sys.executable, "-c", "from tests.commands import _serve; _serve()"],
    **{"cwd": ROOT, "env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
  )
  atexit.register(server.kill)
  return server


def _serve() -> None:
  from seggpt_jax.cli.main import COMMANDS

  for name in COMMANDS:
    if name not in _NOT_HERE:
      importlib.import_module(f"seggpt_jax.cli.{name.replace('-', '_')}")
  for name in ("pretraining.in_context", "matplotlib.backends.backend_agg", "matplotlib.figure", "scipy.ndimage"):
    importlib.import_module(name)
  assert threading.active_count() == 1, "a process with threads cannot be forked"
  for text in sys.stdin:
    request = json.loads(text)
    child = os.fork()
    if not child:
      _run(request)
    _, status = os.waitpid(child, 0)
    print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _run(request: dict[str, Any]) -> NoReturn:
  status = 1
  try:
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, name in ((0, os.devnull), (1, f"{request['folder']}/out"), (2, f"{request['folder']}/err")):
      file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
      os.dup2(file, number)
      os.close(file)
    signal.alarm(_SECONDS)
    status = _ended(request["line"], request["module"])
    threading._shutdown()
    atexit._run_exitfuncs()
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _ended(line: list[str], module: str) -> int:
  """Returns the status that a command exits with."""
  from seggpt_jax.cli import main

  try:
    if module:
      main.run(module, f"python -m {module}", line)
    main.main(line)
  except SystemExit as error:
    return error.code if isinstance(error.code, int) else int(error.code is not None)
  return 0
