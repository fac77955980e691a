"""Kills a run with SIGKILL at random moments until it is done, and compares it with one that was left alone.

  python -m benchmarks.kills --kills=20 --num_steps=300

It trains the network of nano.py on a generated dataset on the CPU. Last and best weights, optimizer state and
metrics.jsonl (without times) have to be the same bit for bit; the exit status is 1 if they are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from benchmarks import nano

_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 300, "Steps of the run.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")

ROOT = Path(__file__).parents[1]
# Values in metrics.jsonl that differ between any two runs.
_TIMED = ("pairs_per_second", "data_wait", "memory_gb")


def start(data: Path, run: Path, num_steps: int) -> subprocess.Popen:
  """Starts or resumes a run in a process; its output goes to RUN.log."""
  line = [sys.executable, "train.py", "--config", "benchmarks/nano.py", "--workdir", str(run)]
  line += [f"--config.data.path={data}", f"--config.num_steps={num_steps}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  environment |= {"JAX_COMPILATION_CACHE_DIR": str(data / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  with run.with_suffix(".log").open("a") as log:
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, run: Path) -> None:
  """Waits for a run and raises an error with the end of its log if it failed."""
  if process.wait() != 0:
    raise RuntimeError(f"status {process.returncode}: {run.with_suffix('.log').read_text()[-2000:]}")


def logged(run: Path) -> int:
  """Returns the number of lines in metrics.jsonl, which is about the number of steps."""
  path = run / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def kill_until_done(data: Path, run: Path, num_steps: int, kills: int, generator: np.random.Generator) -> list[str]:
  """Kills a run again and again, at moments spread over all of it and some before the first step, then finishes it.

  Args:
    data: folder of the dataset.
    run: run directory.
    num_steps: steps of the run.
    kills: number of kills before the run may finish.
    generator: random generator of the moments.

  Returns:
    For each kill a line with the state that it left behind.
  """
  found = []
  for kill in range(kills):
    process = start(data, run, num_steps)
    # Each kill gets an equal part of the run, so that there is always something left to kill.
    goal = int(num_steps * (kill + generator.random()) / (kills + 1))
    while process.poll() is None and logged(run) < goal:
      time.sleep(0.002)
    time.sleep(generator.random() * 0.1)
    if process.poll() is not None:
      raise RuntimeError(f"ended by itself before kill {kill + 1}: {run.with_suffix('.log').read_text()[-2000:]}")
    process.kill()
    process.wait()
    folder = run / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    found.append(f"kill {kill + 1}: {logged(run)} lines logged, checkpoints {', '.join(names) or 'none'}")
    print(found[-1], flush=True)
  finish(start(data, run, num_steps), run)
  return found


def metrics(run: Path) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl without times and memory."""
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return [{key: value for key, value in line.items() if key not in _TIMED} for line in lines]


def differences(first: Path, second: Path, step: int) -> list[str]:
  """Returns the names of files and arrays of two runs that are not the same bit for bit."""
  found = [] if metrics(first) == metrics(second) else ["metrics.jsonl"]
  best = [sorted(path.name for path in (run / "best").iterdir()) for run in (first, second)]
  if best[0] != best[1]:
    return [*found, f"best {best}"]
  for item in (f"checkpoints/{step}/params", f"checkpoints/{step}/optimizer", f"best/{best[0][0]}/params"):
    trees = [ocp.PyTreeCheckpointHandler().restore(run / item) for run in (first, second)]
    leaves = [{str(path): np.asarray(leaf) for path, leaf in _flat(tree)} for tree in trees]
    if leaves[0].keys() != leaves[1].keys():
      found.append(item)
    found += [f"{item} {name}" for name, leaf in leaves[0].items() if leaf.tobytes() != leaves[1][name].tobytes()]
  return found


def _flat(tree: Any) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_flatten_with_path(tree)[0]


def compare(folder: Path, num_steps: int, kills: int, seed: int) -> list[str]:
  """Does both runs in a folder and returns their differences."""
  nano.write_dataset(folder / "data")
  whole, killed = folder / "whole", folder / "killed"
  finish(start(folder / "data", whole, num_steps), whole)
  kill_until_done(folder / "data", killed, num_steps, kills, np.random.default_rng(seed))
  return differences(whole, killed, num_steps)


def main(argv: list[str]) -> None:
  del argv
  began = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    found = compare(Path(folder), _NUM_STEPS.value, _KILLS.value, _SEED.value)
  print(f"{_KILLS.value} kills in {_NUM_STEPS.value} steps, {time.perf_counter() - began:.0f} s: ", end="")
  print(f"differs: {', '.join(found)}" if found else "weights, optimizer state and metrics are the same bit for bit")
  sys.exit(bool(found))


if __name__ == "__main__":
  app.run(main)
