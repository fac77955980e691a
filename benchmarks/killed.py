"""Kills commands at random moments, starts them again, and compares the results with those of undisturbed runs.

In: a command, a number of tries and a signal. Out: a `Try` for each kill. `faults.py` makes a table of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import nano
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.ledger import read_entries
from seggpt_jax.model import digests, parameters, torch_files, weights
from seggpt_jax.written import RECORD

ROOT = Path(__file__).parents[1]
# Values in metrics.jsonl that differ between any two runs.
_TIMED = ("pairs_per_second", "data_wait", "memory_gb")
_EARLY = 0.2  # share of the kills before the first file appears
IMAGES = 60


class Try(NamedTuple):
  """The outcome of one try.

  Attributes:
    problem: what was wrong afterwards; "" if nothing was.
    lost: work that had to be done again.
    seconds: time from the restart until the work resumed; None where there is no restart.
  """

  problem: str = ""
  lost: float = 0
  seconds: float | None = None


# ----------------------------------------------------------------------------------------------------------- processes


def start(arguments: Sequence[str | os.PathLike], folder: Path) -> subprocess.Popen:
  """Starts `seggpt` with arguments in a process. Its output and compiled programs go to a folder."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  line = [sys.executable, "-m", "seggpt_jax", *map(str, arguments)]
  with (folder / "log").open("w") as log:
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def problem_of(process: subprocess.Popen, folder: Path) -> str:
  """Waits for a process; returns "" if it ended well, else its status and the end of its output."""
  return "" if process.wait() == 0 else f"status {process.returncode}: {(folder / 'log').read_text()[-500:]}"


def finish(process: subprocess.Popen, folder: Path) -> None:
  """Waits for a process and raises an error if it failed."""
  if problem := problem_of(process, folder):
    raise RuntimeError(problem)


# ------------------------------------------------------------------------------------------------------ killed commands


@dataclasses.dataclass(frozen=True)
class Command:
  """A command to kill.

  Attributes:
    arguments: its arguments without the place of the output, which follows.
    content: what it has written for good, by name: of a finished run all, of one that was killed a part.
    again: further arguments of the rerun.
    at_once: whether all content appears at one moment.
    compiles: whether the first run compiles programs.
    lost: the amount of work that a killed run has done in vain, from its output.
  """

  arguments: tuple[str, ...]
  content: Callable[[Path], dict[str, bytes]]
  again: tuple[str, ...] = ()
  at_once: bool = False
  compiles: bool = False
  lost: Callable[[Path], float] = lambda output: 0


def files(output: Path, *but: str) -> dict[str, bytes]:
  """Returns the content of all files in a folder, by path, except hidden files and files that match a pattern."""
  paths = {path.relative_to(output): path for path in output.rglob("*") if path.is_file()}
  shown = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)}
  return {str(name): path.read_bytes() for name, path in shown.items() if not any(map(name.match, but))}


def leftovers(folder: Path) -> list[str]:
  """Returns the names of unfinished files and folders."""
  return [
    str(path.relative_to(folder))
    for path in sorted(folder.rglob("*"))
    if (path.name.startswith(".") and path.name != RECORD)
    or path.name == "incomplete"
    or "orbax-checkpoint-tmp" in path.name
  ]


class Undisturbed(NamedTuple):
  """A run that was left alone: its content, and the seconds to its first file and to its last one."""

  content: dict[str, bytes]
  first: float
  total: float


def leave_alone(command: Command, folder: Path) -> Undisturbed:
  """Runs a command to its end."""
  place = folder / "undisturbed"
  place.mkdir()
  began = time.perf_counter()
  process = start([*command.arguments, place / "out"], folder)
  while process.poll() is None and not any(place.iterdir()):
    time.sleep(0.001)
  first = time.perf_counter() - began
  while process.poll() is None and not (command.at_once and command.content(place / "out")):
    time.sleep(0.01)
  total = time.perf_counter() - began
  finish(process, folder)
  return Undisturbed(command.content(place / "out"), first, total)


def kill_commands(
  folder: Path, tries: int, generator: np.random.Generator, *, make: Callable[[Path], Command], number: signal.Signals
) -> Iterator[Try]:
  """Kills a command at random moments and reruns it, again and again."""
  command = make(folder)
  if command.compiles:  # the times of the first run are not those of the others
    leave_alone(command, folder)
    shutil.rmtree(folder / "undisturbed")
  whole = leave_alone(command, folder)
  for _ in range(tries):
    place = folder / "killed"
    while True:  # until it did not end by itself before
      shutil.rmtree(place, ignore_errors=True)
      place.mkdir()
      process = start([*command.arguments, place / "out"], folder)
      wait_for_moment(process, place, whole, generator)
      if process.poll() is None:
        break
    process.send_signal(number)
    process.wait()
    yield _rerun(command, folder, place, whole)
    shutil.rmtree(place)


def wait_for_moment(process: subprocess.Popen, place: Path, whole: Undisturbed, generator: np.random.Generator) -> None:
  """Waits for a random moment: one in five before anything is written, the others while it is."""
  if generator.random() < _EARLY:
    time.sleep(generator.random() * whole.first)
    return
  while process.poll() is None and not any(place.iterdir()):
    time.sleep(0.0005)
  time.sleep(generator.random() * 1.1 * (whole.total - whole.first))


def _rerun(command: Command, folder: Path, place: Path, whole: Undisturbed) -> Try:
  """Looks at what a killed run left, reruns it, and looks again."""
  output = place / "out"
  before = command.content(output)
  half = [name for name, content in before.items() if whole.content.get(name) != content]
  if command.at_once and before and before.keys() != whole.content.keys():
    half.append("a part of what should appear at once")
  lost, began, seconds = command.lost(output), time.perf_counter(), None
  done = command.at_once and bool(before)
  process = start([*command.arguments, output, *command.again], folder)
  while process.poll() is None and seconds is None and not done:
    time.sleep(0.02)
    if len(command.content(output)) > len(before):
      seconds = time.perf_counter() - began
  problem = problem_of(process, folder)
  # There is nothing to do for a conversion that was killed when it was done; it says so.
  problem = "" if done and "already exists" in problem else problem
  after = command.content(output)
  different = [name for name in {**whole.content, **after} if whole.content.get(name) != after.get(name)]
  found = {"half-written": half, "rerun": [problem] * bool(problem), "not as undisturbed": different}
  found["left behind"] = leftovers(place)
  return Try("; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names), lost, seconds)


def infer(folder: Path, model: str = "small", images: int = IMAGES) -> Command:
  """Returns the command that segments generated images."""
  nano.write_dataset(folder / "data", num_train=2, num_val=images, side=48)
  prompts = folder / "data/train"
  arguments = ("infer", "--model-path", model, "--dataset-dir", folder / "data/val", "--prompt-img-dir")
  arguments += (prompts / "images", "--prompt-label-dir", prompts / "labels", "--outdir")

  def lost(output: Path) -> float:
    noted = {name for name, entry in read_entries(output / "progress").items() if "bad" not in entry}
    return len({path.stem for path in output.glob("*/*.png")} - noted)

  return Command(
    tuple(map(str, arguments)), lambda output: files(output, "progress/*"), ("--resume",), compiles=True, lost=lost
  )


def prepare(folder: Path, output: str, images: int = 400) -> Command:
  """Returns the command that converts a generated dataset to folders or records."""
  nano.write_dataset(folder / "data", num_train=images, num_val=images // 8, side=96)
  arguments = ("prepare", f"--path={folder / 'data'}", "--num_classes=3", f"--format={output}", "--outdir")

  def lost_files(place: Path) -> float:
    noted = [len(read_entries(place, path.name)) for path in place.glob(".journal-*")]  # none at the very end
    return len(list(place.glob("*/labels/*.png"))) - sum(noted) if noted else 0

  def lost_records(place: Path) -> float:
    """Counts the samples since the last whole shard, of 256 MB. The progress bar tells how many had been written."""
    shown = re.findall(r"(\d+)/\d+ \[", (folder / "log").read_text())
    whole = (place / "mine/incomplete/shards/train-00000.npz").exists()
    return int(shown[-1]) if shown and not whole and not (place / "mine/1.0.0").exists() else 0

  if output == "records":
    return Command(arguments, lambda place: _records(place / "mine/1.0.0"), at_once=True, lost=lost_records)
  return Command(arguments, lambda place: files(place, "prepare.json"), lost=lost_files)


def _records(place: Path) -> dict[str, bytes]:
  """Returns the content of a dataset of records. The fields of a record are stored in another order every time."""
  if not place.exists():
    return {}
  content = files(place, "*.array_record*")
  for split in ("train", "val"):
    source = open_dataset(Dataset("tfds", str(place), 3), split)
    for sample in (source[index] for index in range(len(source))):
      content[f"{split} {sample['name']}"] = sample["image"].tobytes() + sample["label"].tobytes()
  return content


def convert(folder: Path) -> Command:
  """Returns the command that converts a .pth file of the smallest network."""
  torch_files.write(folder / "nano.pth", nano_params(), nano.NANO, "baai")

  def content(output: Path) -> dict[str, bytes]:
    if not output.exists():
      return {}
    if not digests.is_sealed(output):
      return {"without digests": b""}
    return {name: array.tobytes() for name, array in weights.load_params(output).items()}

  return Command(("convert", str(folder / "nano.pth")), content, at_once=True)


def export(folder: Path) -> Command:
  """Returns the command that exports the smallest network as one file."""
  weights.save_weights(folder / "weights", nano_params(), nano.NANO)

  def content(output: Path) -> dict[str, bytes]:
    return {output.name: output.read_bytes()} if output.exists() else {}

  return Command(("export", "--to=onnx", str(folder / "weights")), content, at_once=True)


# ------------------------------------------------------------------------------------------------------ killed training


def train_arguments(data: Path, run: Path, num_steps: int) -> list[str]:
  """Returns the arguments of a run of the smallest network."""
  config = ["--config", "benchmarks/nano.py", "--workdir", str(run)]
  return ["train", *config, f"--config.data.path={data}", f"--config.num_steps={num_steps}"]


def logged(run: Path) -> int:
  """Returns the last step in metrics.jsonl, whose last line may be cut off."""
  path = run / "metrics.jsonl"
  text = path.read_text() if path.exists() else ""
  lines = [line for line in text[: text.rfind("\n") + 1].splitlines() if '"train"' in line]
  return json.loads(lines[-1])["step"] if lines else 0


def kill_training(
  folder: Path, tries: int, generator: np.random.Generator, *, number: signal.Signals, num_steps: int = 0
) -> Iterator[Try]:
  """Kills one run again and again, at moments spread over all of it, then finishes it.

  Args:
    folder: empty folder for data and runs.
    tries: number of kills before the run may finish.
    generator: random generator of the moments.
    number: the signal.
    num_steps: steps of the run; 15 for each kill by default.

  Yields:
    A `Try` for each kill. If the result differs from that of a run that was left alone, the last one says how.
  """
  num_steps = num_steps or 15 * tries
  nano.write_dataset(folder / "data")
  whole, killed = folder / "whole", folder / "killed"
  finish(start(train_arguments(folder / "data", whole, num_steps), folder), folder)
  last: Try | None = None
  for kill in range(tries):
    early = generator.random() < _EARLY
    before = logged(killed)
    process, seconds = _start_training(folder / "data", killed, num_steps, None if early else before)
    if last is not None:
      yield last._replace(seconds=seconds)
    # Each kill gets an equal part of the run, so that there is always something left to kill.
    goal = before if early else int(num_steps * (kill + generator.random()) / (tries + 1))
    while process.poll() is None and logged(killed) < goal:
      time.sleep(0.002)
    time.sleep(generator.random() * (4 if early else 0.1))
    problem = f"ended by itself: {problem_of(process, folder)}" if process.poll() is not None else ""
    process.send_signal(number)
    if process.wait() not in (0, -number):
      problem = problem or problem_of(process, folder)
    steps = [int(path.name) for path in killed.glob("checkpoints/*") if path.name.isdigit()]
    last = Try(problem, max(logged(killed) - max(steps, default=0), 0))
  process, seconds = _start_training(folder / "data", killed, num_steps, logged(killed))
  problem = problem_of(process, folder)
  found = [problem] if problem else [*differences(whole, killed, num_steps), *leftovers(killed)]
  yield last._replace(problem="; ".join([last.problem] * bool(last.problem) + found), seconds=seconds)


def _start_training(data: Path, run: Path, num_steps: int, step: int | None) -> tuple[subprocess.Popen, float | None]:
  """Starts a run, and waits until it has come beyond a step. Returns the process and the seconds that this took."""
  began = time.perf_counter()
  process = start(train_arguments(data, run, num_steps), run.parent)
  if step is None:
    return process, None
  while process.poll() is None and logged(run) <= step:
    time.sleep(0.005)
  return process, time.perf_counter() - began


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
    leaves = [
      {str(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]} for tree in trees
    ]
    if leaves[0].keys() != leaves[1].keys():
      found.append(item)
    found += [f"{item} {name}" for name, leaf in leaves[0].items() if leaf.tobytes() != leaves[1][name].tobytes()]
  return found


def nano_params() -> dict[str, np.ndarray]:
  """Returns random parameters of the smallest network."""
  generator = np.random.default_rng(0)
  shapes = {name: leaf.shape for name, leaf in parameters.abstract(nano.NANO)[1].items()}
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
