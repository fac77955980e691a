"""Starts train.py on the nano network in separate processes, for tests of several hosts and of killed runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[2]


def start(data, workdir, *arguments, devices=1, **options):
  """Starts train.py; its output goes to WORKDIR.log or the given stdout."""
  line = [sys.executable, "train.py", "--config", "benchmarks/nano.py", "--workdir", str(workdir)]
  line += [f"--config.data.path={data}", *arguments]
  environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}"}
  environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  with open(options.pop("log", f"{workdir}.log"), "w") as log:
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, **options)


def start_many(count, data, workdir, *arguments, devices=1):
  """Starts several processes of one run; the output of process I goes to WORKDIR.I.log."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    start(
      *(data, workdir, *arguments, f"--distributed=localhost:{port},{count},{i}"),
      devices=devices,
      log=f"{workdir}.{i}.log",
    )
    for i in range(count)
  ]


def metrics(workdir):
  """Returns the lines of metrics.jsonl without times and memory."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  timed = ("pairs_per_second", "data_wait", "memory_gb")
  return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def steps_in(folder):
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []
