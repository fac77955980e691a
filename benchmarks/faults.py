"""Kills commands, flips bits, cuts files and fills disks, many times, and counts how often everything was well after.

  python -m benchmarks.faults                                      # all faults, about half an hour on two cores
  python -m benchmarks.faults --faults=infer_sigkill,flips_weights --tries=50 --seed=1

It uses the networks of nano.py and `small` on generated images, on the CPU. A command that was killed is started again,
and its result has to be the one of a run that was left alone, bit for bit. The rows go to results/faults.json one by
one, and from there to docs/reliability.md with `python -m benchmarks.tables`. The exit status is 1 if a try failed.
"""

from __future__ import annotations

import functools
import json
import os
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
from absl import app, flags, logging
from tqdm import tqdm

from benchmarks import nano, report
from benchmarks.killed import (
  IMAGES,
  ROOT,
  Command,
  Try,
  convert,
  export,
  infer,
  kill_commands,
  kill_training,
  leave_alone,
  leftovers,
  nano_params,
  prepare,
)
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, weights
from seggpt_jax.training import sharding
from seggpt_jax.training.checkpoints import WRITTEN_LAST, Checkpoints
from seggpt_jax.training.step import TrainState

_FAULTS = flags.DEFINE_list("faults", None, "Faults to try; all by default.")
_TRIES = flags.DEFINE_integer(
  "tries", 0, "Number of tries of each fault; 0 takes the number that it has by default.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments and places.")


# ------------------------------------------------------------------------------------------------------- damaged files


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
_PROGRESS = {"epoch": 1, "best_miou": 0.5}


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
  """Spoils one file of the newest checkpoint, resumes, and restores it. It is survived if the one before is taken.

  Files that Orbax writes last are left alone: nothing is read from them.
  """
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
  passed_over = (*WRITTEN_LAST, *([digests.FILE] if spoil is delete else []))
  paths = [path for path in files_of(newest) if path.name not in passed_over]
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
    f"SIGKILL during `infer` of {IMAGES} images", "images", 10, _partial(kill_commands, make=infer, number=_KILL)
  ),
  "infer_sigterm": Fault(
    f"SIGTERM during `infer` of {IMAGES} images", "images", 10, _partial(kill_commands, make=infer, number=_TERM)
  ),
  "convert": Fault("SIGKILL during `convert`", "", 10, _partial(kill_commands, make=convert, number=_KILL)),
  "export": Fault("SIGKILL during `export`", "", 10, _partial(kill_commands, make=export, number=_KILL)),
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
  digests.SMALL = -1  # all files are read while they are compared, as the large ones of real networks
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
