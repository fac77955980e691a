"""Reads damaged and hostile files by the thousand, and counts how many are read, refused, or make the reader fail.

  python -m benchmarks.fuzz --tries=2000
  python -m benchmarks.fuzz --targets=coco,yolo --failures=fuzz_failures

Each target of benchmarks/fuzz_targets has small files that are mutated one at a time. Reading must end in a value that
is valid or in an InputError of one line that names the file, in bounded time and memory. A target runs in a process of
its own, which is replaced when it crashes or hangs. Inputs that fail are kept with the error. Exit status 1 tells of
some.
"""

from __future__ import annotations

import collections
import importlib
import json
import multiprocessing
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import fuzz_targets, report
from benchmarks.fuzz_targets import OUTCOMES, Outcome, Target, attempt, mutation

_TRIES = flags.DEFINE_integer("tries", 2000, "Tries of each target.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the mutations.")
_TARGETS = flags.DEFINE_list("targets", [], "Names of targets; all by default.")
_FAILURES = flags.DEFINE_string("failures", "fuzz_failures", "Folder for inputs that failed.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Longest time of one reading of a file.")
_KEEP = flags.DEFINE_bool("keep", True, "Write the counts to benchmarks/results/fuzz.json.")

MEGABYTES = 2000  # that one try may need: an image of 179 million pixels, three times
_ADDRESS_SPACE = 8 << 30  # bytes more than at the start, so that nothing takes the machine down


def find_targets() -> dict[str, Callable[[Path], Target]]:
  """Returns the functions that build targets, by name, from all modules of fuzz_targets."""
  found: dict[str, Callable[[Path], Target]] = {}
  for module in sorted(each.name for each in pkgutil.iter_modules(fuzz_targets.__path__)):
    found |= getattr(importlib.import_module(f"benchmarks.fuzz_targets.{module}"), "TARGETS", {})
  return found


def _watch_memory() -> Callable[[], float]:
  """Starts a measurement; the function returned tells how many megabytes the process needed at most since."""
  status = Path("/proc/self/status")

  def field(name: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(name))

  Path("/proc/self/clear_refs").write_text("5")  # resets the peak
  start = field("VmRSS")
  return lambda: field("VmHWM") - start


def _work(name: str, seed: int, first: int, last: int, pipe: Any) -> None:
  """Runs tries in a process of its own and sends the start and the end of each."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
  try:
    target = find_targets()[name](folder)
    target.read()  # the files are right before they are mutated
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))
    pipe.send(("ready",))
    target.laps.report = lambda: pipe.send(("lap",))
    for number in range(first, last):
      pipe.send(("start", number))
      file, content = mutation(target, name, seed, number)
      needed = _watch_memory()
      outcome = attempt(folder, target, file, content)
      pipe.send(("end", outcome, target.laps.longest, needed()))
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def tries(name: str, seed: int, count: int, seconds: float) -> Iterator[tuple[int, Outcome]]:
  """Yields the number and the outcome of each try, in processes that may crash or hang."""
  context, number = multiprocessing.get_context("spawn"), 0  # JAX has threads, which a fork would lose
  while number < count:
    pipe, end = context.Pipe()
    process = context.Process(target=_work, args=(name, seed, number, count, end), daemon=True)
    process.start()
    end.close()
    ready, busy = False, False
    while number < count:
      if not pipe.poll(4 * seconds if ready else 300):
        process.kill()
        yield number, Outcome("slow", f"no end within {4 * seconds:g} s")
        number += 1
        break
      try:
        message = pipe.recv()
      except EOFError:
        process.join()
        if not busy:
          raise RuntimeError(f"{name}: the target cannot be built") from None
        yield number, Outcome("crashed", f"the process ended with status {process.exitcode}")
        number += 1
        break
      ready, busy = True, message[0] in ("start", "lap")
      if message[0] == "end":
        _, outcome, took, megabytes = message
        if outcome.what in ("read", "refused") and took > seconds:
          outcome = Outcome("slow", f"{took:.1f} s")
        elif outcome.what in ("read", "refused") and megabytes > MEGABYTES:
          outcome = Outcome("large", f"{megabytes:.0f} MB")
        yield number, outcome
        number += 1
    process.join()


def kind_of(error: str) -> str:
  """Returns a string that is the same for failures of one kind: the error, and the last line of ours that raised it."""
  lines = error.strip().splitlines()
  places = [line.strip() for line in lines if 'File "' in line and "seggpt_jax" in line]
  what = lines[-1].split(":")[0] if places else error[:40]
  return f"{what} {places[-1].rpartition('/')[2] if places else ''}"


def fuzz(name: str, build: Callable[[Path], Target], seed: int, count: int, seconds: float, failures: Path) -> dict:
  """Runs a target and keeps its failures in a folder; returns the counts."""
  counts, kinds = collections.Counter(), collections.Counter()
  with tempfile.TemporaryDirectory() as scratch:
    target = build(Path(scratch))
  for number, outcome in tries(name, seed, count, seconds):
    counts[outcome.what] += 1
    if outcome.what in ("read", "refused"):
      continue
    kind = kind_of(outcome.error) if outcome.what == "crashed" else outcome.what
    kinds[kind] += 1
    if kinds[kind] <= 5:
      file, content = mutation(target, name, seed, number)
      folder = failures / name / str(number)
      (folder / file).parent.mkdir(parents=True, exist_ok=True)
      (folder / file).write_bytes(content)
      (folder / "error.txt").write_text(f"{outcome.what}\n{outcome.error}\n", errors="backslashreplace")
  row = {"tries": count, **{what: counts[what] for what in OUTCOMES}, "kinds": len(kinds)}
  print(f"{name}: {', '.join(f'{value} {key}' for key, value in row.items())}", flush=True)
  for kind, times in kinds.most_common():
    print(f"  {times} x {kind}", flush=True)
  return row


def main(argv: list[str]) -> None:
  del argv
  known = find_targets()
  names = _TARGETS.value or list(known)
  unknown = [name for name in names if name not in known]
  if unknown:
    raise app.UsageError(f"--targets: found {unknown[0]}, expected some of {', '.join(known)}")
  failures, start = Path(_FAILURES.value), time.monotonic()
  rows = {name: fuzz(name, known[name], _SEED.value, _TRIES.value, _SECONDS.value, failures) for name in names}
  print(f"{sum(row['tries'] for row in rows.values())} tries in {time.monotonic() - start:.0f} s")
  if _KEEP.value:
    print(f"written: {keep(rows)}")
  if any(row[what] for row in rows.values() for what in OUTCOMES[2:]):
    print(f"failures: {failures}")
    sys.exit(1)


def keep(rows: dict[str, dict[str, int]]) -> Path:
  """Adds the counts of targets to the counts of other targets, with the kinds of failures that were ever found."""
  path = report.RESULTS / "fuzz.json"
  before = json.loads(path.read_text()) if path.exists() else {"targets": {}}
  targets = dict(before["targets"])
  for name, row in rows.items():
    found = max(targets.get(name, {}).get("found", 0), row["kinds"])
    targets[name] = {**{key: value for key, value in row.items() if key != "kinds"}, "found": found}
  machine = report.machine(["numpy", "pillow", "opencv-python-headless", "pycocotools", "av", "PyYAML"])
  return report.write("fuzz", {"machine": machine, "seed": _SEED.value, "targets": targets})


if __name__ == "__main__":
  app.run(main)
