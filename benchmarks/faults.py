"""Kills commands, flips bits, cuts files and fills disks, many times, and counts how often everything was well after.

  python -m benchmarks.faults                                      # all faults, about half an hour on two cores
  python -m benchmarks.faults --faults=infer_sigkill,flips --tries=50 --seed=1

It uses the networks of nano.py and `small` on generated images, on the CPU. A command that was killed is started again,
and its result has to be the one of a run that was left alone, bit for bit. The rows go to results/faults.json one by
one, and from there to docs/reliability.md with `python -m benchmarks.tables`. The exit status is 1 if a try failed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from tqdm import tqdm

from benchmarks import nano, report
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.ledger import read_entries
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, parameters, torch_files, weights
from seggpt_jax.training import sharding
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.step import TrainState

_FAULTS = flags.DEFINE_list("faults", None, "Faults to try; all by default.")
_TRIES = flags.DEFINE_integer(
  "tries", 0, "Number of tries of each fault; 0 takes the number that it has by default.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments and places.")

ROOT = Path(__file__).parents[1]
# Values in metrics.jsonl that differ between any two runs.
_TIMED = ("pairs_per_second", "data_wait", "memory_gb")
_EARLY = 0.2  # share of the kills before the first file appears
_IMAGES = 60


class Try(NamedTuple):
  """The outcome of one try.

  Attributes:
    problem: what was wrong afterwards; "" if nothing was.
    lost: work that had to be done again.
    seconds: time from the restart until the work went on; None where there is no restart.
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
  """Returns the content of all files in a folder, by path, without hidden ones and those that match a pattern."""
  paths = {path.relative_to(output): path for path in output.rglob("*") if path.is_file()}
  shown = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)}
  return {str(name): path.read_bytes() for name, path in shown.items() if not any(map(name.match, but))}


def leftovers(folder: Path) -> list[str]:
  """Returns the names of unfinished files and folders."""
  return [
    str(path.relative_to(folder))
    for path in sorted(folder.rglob("*"))
    if path.name.startswith(".") or path.name == "incomplete" or "orbax-checkpoint-tmp" in path.name
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


def infer(folder: Path, model: str = "small", images: int = _IMAGES) -> Command:
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
    return len(list(place.glob("*/labels/*"))) - sum(len(read_entries(place, path.name)) for path in journals(place))

  def journals(place: Path) -> list[Path]:
    return list(place.glob(".journal-*"))

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


# ------------------------------------------------------------------------------------------------------- damaged files


def nano_params() -> dict[str, np.ndarray]:
  """Returns random parameters of the smallest network."""
  generator = np.random.default_rng(0)
  shapes = {name: leaf.shape for name, leaf in parameters.abstract(nano.NANO)[1].items()}
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def flip(path: Path, generator: np.random.Generator) -> None:
  """Flips one bit of a file."""
  content = bytearray(path.read_bytes())
  place = int(generator.integers(8 * len(content)))
  content[place // 8] ^= 1 << place % 8
  path.write_bytes(content)


def cut(path: Path, generator: np.random.Generator) -> None:
  """Removes the end of a file, of random length."""
  os.truncate(path, int(generator.integers(path.stat().st_size)))


def delete(path: Path, generator: np.random.Generator) -> None:
  """Deletes a file."""
  del generator
  path.unlink()


Spoil = Callable[[Path, np.random.Generator], None]


def files_of(folder: Path) -> list[Path]:
  """Returns the files in a folder that are not empty."""
  return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def spoil_weights(folder: Path, tries: int, generator: np.random.Generator, *, spoil: Spoil) -> Iterator[Try]:
  """Spoils one file of a weights directory, reads it, and restores it. It is survived if the weights are refused."""
  place = folder / "weights"
  weights.save_weights(place, nano_params(), nano.NANO)
  paths = [path for path in files_of(place) if spoil is not delete or path.name != digests.FILE]
  for _ in range(tries):
    path = paths[generator.integers(len(paths))]
    content = path.read_bytes()
    spoil(path, generator)
    try:
      weights.load_params(place)
      yield Try(f"{path.relative_to(place)}: read without an error")
    except InputError:
      yield Try()
    path.write_bytes(content)


def spoil_checkpoints(folder: Path, tries: int, generator: np.random.Generator, *, spoil: Spoil) -> Iterator[Try]:
  """Spoils one file of the newest checkpoint, resumes, and restores it. It is survived if the one before is taken."""
  run = folder / "run"
  params = nano_params()
  state = TrainState(jnp.asarray(0, jnp.int32), params, optax.adamw(1e-3).init(params))
  where = sharding.replicated(sharding.make_mesh(-1, 1))
  checkpoints = Checkpoints(run, nano.NANO, keep=10)
  for step in (5, 10):
    checkpoints.save(jax.device_put(state._replace(step=jnp.asarray(step, jnp.int32)), where), _PROGRESS)
  checkpoints.close()
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state)
  newest, damaged = run / "checkpoints/10", run / "damaged/10"
  paths = [path for path in files_of(newest) if spoil is not delete or path.name != digests.FILE]
  for _ in range(tries):
    path = paths[generator.integers(len(paths))]
    content = path.read_bytes()
    spoil(path, generator)
    began = time.perf_counter()
    checkpoints = Checkpoints(run, nano.NANO, keep=10)
    state, _ = checkpoints.restore(abstract)
    seconds = time.perf_counter() - began
    checkpoints.close()
    silent = int(state.step) != 5 or not checkpoints.warnings
    yield Try(f"{path.relative_to(newest)}: resumed from" if silent else "", 10 - int(state.step), seconds)
    if damaged.exists():
      damaged.rename(newest)
    path.write_bytes(content)


_PROGRESS = {"epoch": 1, "best_miou": 0.5}


# ----------------------------------------------------------------------------------------------------------- full disks


def small_disk(folder: Path, command: Sequence[str], megabytes: int) -> subprocess.CompletedProcess[str]:
  """Runs a command with a small file system mounted at the folder, in a separate mount namespace."""
  mount = f'mount -t tmpfs -o size={megabytes}m tmpfs {folder} && exec "$@"'
  return subprocess.run(
    ["unshare", "-rm", "sh", "-c", mount, "sh", *command],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
    timeout=240,
  )


def can_mount(folder: Path) -> bool:
  """Returns whether `small_disk` works on this system, which takes a Linux where users may mount in a namespace."""
  try:
    return small_disk(folder, ["true"], 1).returncode == 0
  except FileNotFoundError:
    return False


def fill_disks(
  folder: Path, tries: int, generator: np.random.Generator, *, make: Callable[[Path], Command]
) -> Iterator[Try]:
  """Runs a command on a disk with too little room, makes room, reruns it, and compares what is there then."""
  command = make(folder)
  whole = leave_alone(command, folder)
  used = sum(map(len, whole.content.values()))
  disk, copy = folder / "disk", folder / "copy"
  for _ in range(tries):
    disk.mkdir()
    room = int(used * generator.uniform(0.1, 0.8)) // 1024
    megabytes = 8 + 2 * used // 2**20
    line = shlex.join([sys.executable, "-m", "seggpt_jax", *command.arguments, f"{disk}/out"])
    script = f"""
export JAX_COMPILATION_CACHE_DIR={folder}/cache
fallocate -l {megabytes * 1024 - room}K {disk}/filler || exit 9
{line} 2>{folder}/first; echo "first $?"
rm {disk}/filler
{line} {" ".join(command.again)} >{folder}/log 2>&1; echo "second $?"
cp -r {disk} {copy}
"""
    done = small_disk(disk, ["sh", "-c", script], megabytes)
    errors = [line for line in (folder / "first").read_text().splitlines() if line.startswith("error: ")]
    found = [] if "first 1" in done.stdout and "second 0" in done.stdout else [done.stdout[-300:] + done.stderr[-300:]]
    found += [] if len(errors) == 1 and "disk is full" in errors[0] else [f"said {errors}"]
    after = command.content(copy / "out")
    found += [f"{name} differs" for name in {**whole.content, **after} if whole.content.get(name) != after.get(name)]
    yield Try("; ".join(found + leftovers(copy)))
    shutil.rmtree(copy, ignore_errors=True)
    disk.rmdir()


# ------------------------------------------------------------------------------------------------------------ the table


class Fault(NamedTuple):
  """A row of the table.

  Attributes:
    title: its first cell.
    unit: unit of the work that is lost.
    tries: number of tries by default.
    run: takes an empty folder, the number of tries and a random generator, and yields the tries.
  """

  title: str
  unit: str
  tries: int
  run: Callable[[Path, int, np.random.Generator], Iterator[Try]]


# The two forms of `prepare`, and short names for the table.
_FOLDERS, _RECORDS = (functools.partial(prepare, output=output) for output in ("folder", "records"))
_KILL, _TERM, _partial = signal.SIGKILL, signal.SIGTERM, functools.partial
FAULTS = {
  "train_sigkill": Fault("SIGKILL during `train`", "steps", 20, _partial(kill_training, number=_KILL)),
  "train_sigterm": Fault("SIGTERM during `train`", "steps", 20, _partial(kill_training, number=_TERM)),
  "infer_sigkill": Fault(
    f"SIGKILL during `infer` of {_IMAGES} images", "images", 10, _partial(kill_commands, make=infer, number=_KILL)
  ),
  "infer_sigterm": Fault(
    f"SIGTERM during `infer` of {_IMAGES} images", "images", 10, _partial(kill_commands, make=infer, number=_TERM)
  ),
  "convert": Fault("SIGKILL during `convert`", "", 10, _partial(kill_commands, make=convert, number=_KILL)),
  "prepare_folder": Fault(
    "SIGKILL during `prepare --format=folder`", "samples", 10, _partial(kill_commands, make=_FOLDERS, number=_KILL)
  ),
  "prepare_records": Fault(
    "SIGKILL during `prepare --format=records`", "samples", 10, _partial(kill_commands, make=_RECORDS, number=_KILL)
  ),
  "flips_weights": Fault("a bit of weights flips", "", 250, _partial(spoil_weights, spoil=flip)),
  "flips_checkpoints": Fault("a bit of a checkpoint flips", "steps", 250, _partial(spoil_checkpoints, spoil=flip)),
  "cut_weights": Fault("a file of weights is cut off", "", 50, _partial(spoil_weights, spoil=cut)),
  "cut_checkpoints": Fault("a file of a checkpoint is cut off", "steps", 50, _partial(spoil_checkpoints, spoil=cut)),
  "missing_weights": Fault("a file of weights is missing", "", 50, _partial(spoil_weights, spoil=delete)),
  "missing_checkpoints": Fault(
    "a file of a checkpoint is missing", "steps", 50, _partial(spoil_checkpoints, spoil=delete)
  ),
  "full_infer": Fault("the disk is full during `infer`", "", 3, _partial(fill_disks, make=infer)),
  "full_folder": Fault("the disk is full during `prepare --format=folder`", "", 3, _partial(fill_disks, make=_FOLDERS)),
  "full_records": Fault(
    "the disk is full during `prepare --format=records`", "", 3, _partial(fill_disks, make=_RECORDS)
  ),
}


def measure(name: str, tries: int, seed: int) -> dict[str, Any]:
  """Tries one fault; returns its row of the table."""
  fault = FAULTS[name]
  row = {"name": name, "fault": fault.title, "unit": fault.unit}
  with tempfile.TemporaryDirectory() as folder:
    if name.startswith("full") and not can_mount(Path(folder)):
      return row | {"not_tried": "needs a Linux where a small disk can be mounted"}
    done = []
    generator = np.random.default_rng(seed)
    for each in tqdm(fault.run(Path(folder), tries, generator), name, tries, unit="try", mininterval=1.0):
      done.append(each)
      if each.problem:
        tqdm.write(f"{name}, try {len(done)}: {each.problem}")
  seconds = [each.seconds for each in done if each.seconds is not None]
  row |= {"tries": len(done), "survived": sum(not each.problem for each in done), "lost": max(e.lost for e in done)}
  row |= {"seconds": [statistics.median(seconds), max(seconds)] if seconds else None, "seed": seed}
  return row | {"problems": [each.problem for each in done if each.problem][:5]}


def keep(row: dict[str, Any]) -> None:
  """Writes a row to the results, in place of an earlier one of the same fault."""
  path = report.RESULTS / "faults.json"
  rows = json.loads(path.read_text())["rows"] if path.exists() else []
  rows = report.merge_rows(rows, [row], ("name",))
  rows.sort(key=lambda each: list(FAULTS).index(each["name"]))
  report.write("faults", {"machine": report.machine(["jax", "orbax-checkpoint"]), "rows": rows})


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax logs dozens of lines for every checkpoint
  names = _FAULTS.value or list(FAULTS)
  if unknown := set(names) - set(FAULTS):
    sys.exit(f"--faults: found {', '.join(sorted(unknown))}, expected some of {', '.join(FAULTS)}")
  failed = 0
  for name in names:
    row = measure(name, _TRIES.value or FAULTS[name].tries, _SEED.value)
    keep(row)
    failed += row.get("tries", 0) - row.get("survived", 0)
    print({key: value for key, value in row.items() if key != "problems"}, flush=True)
  sys.exit(bool(failed))


if __name__ == "__main__":
  app.run(main)
