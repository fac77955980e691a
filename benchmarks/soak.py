"""Watches the memory, open files and threads of long runs.

  python -m benchmarks.soak
  python -m benchmarks.soak --runs=train --keep

It trains the network of nano.py for 3,000 steps, with validation and checkpoints, and segments 20,000 small images with
the packaged weights. Numbers are read once a second from the system. The exit status is 1 if, from the second quarter
of a run to its last, the median of one of them grows by more than a twentieth and more than a small constant.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks import nano, report
from seggpt_jax.files import write_whole

RUNS = ("train", "infer")

_RUNS = flags.DEFINE_multi_enum("runs", list(RUNS), list(RUNS), "Runs to watch.")
_STEPS = flags.DEFINE_integer("num_steps", 3000, "Training steps.", 1)
_IMAGES = flags.DEFINE_integer("images", 20_000, "Images to segment.", 1)
_KEEP = flags.DEFINE_bool("keep", False, "Also write benchmarks/results/soak.json and pictures in docs.")

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "images"
# What is counted, and the growth that is always allowed.
ALLOWED = {"memory_mb": 20, "open_files": 2, "threads": 2}


def count(process: int) -> dict[str, float]:
  """Returns the resident memory in MB, the open files and the threads of a process."""
  folder = Path("/proc") / str(process)
  status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
  return {
    "memory_mb": int(status["VmRSS"].split()[0]) / 1000,
    "open_files": len(os.listdir(folder / "fd")),
    "threads": int(status["Threads"]),
  }


def watch(arguments: list[str]) -> list[dict[str, float]]:
  """Runs a command and returns what was counted each second.

  Raises:
    RuntimeError: the command failed.
  """
  counts, began = [], time.perf_counter()
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  with tempfile.TemporaryFile("w+") as log:
    process = subprocess.Popen(
      [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    while process.poll() is None:
      try:
        counts.append({"seconds": time.perf_counter() - began, **count(process.pid)})
      except (OSError, KeyError):  # it is ending
        break
      time.sleep(1)
    if process.wait() != 0:
      log.seek(0)
      raise RuntimeError(f"status {process.returncode}: {log.read()[-2000:]}")
  return counts


def growth(counts: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
  """Returns the medians in the second and the last quarter of a run."""
  quarter = max(len(counts) // 4, 1)
  return {
    name: tuple(
      statistics.median(each[name] for each in part) for part in (counts[quarter : 2 * quarter + 1], counts[-quarter:])
    )
    for name in ALLOWED
  }


def draw(title: str, counts: list[dict[str, float]], path: Path) -> None:
  """Draws what was counted in a run over time."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5, 6), layout="constrained")
  axes = figure.subplots(len(ALLOWED), 1, sharex=True)
  for name, axis in zip(ALLOWED, axes, strict=True):
    axis.plot([each["seconds"] / 60 for each in counts], [each[name] for each in counts])
    axis.set(ylabel=name.replace("_mb", ", MB").replace("_", " "), ylim=(0, None))
    axis.grid(alpha=0.3)
  axes[0].set(title=title)
  axes[-1].set(xlabel="minutes")
  write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100), replace=True)


def write_images(folder: Path, number: int) -> None:
  """Writes images of noise with a bright square, and a prompt with its label."""
  generator = np.random.default_rng(0)
  (folder / "images").mkdir(parents=True)
  for index in range(number):
    image = generator.integers(0, 80, (32, 32, 3), np.uint8)
    image[8:24, 8:24] += 120
    Image.fromarray(image).save(folder / "images" / f"{index:05d}.png", compress_level=1)
  Image.fromarray(np.pad(np.ones((16, 16), np.uint8), 8)).save(folder / "label.png")


def train(folder: Path) -> list[dict[str, float]]:
  """Returns what was counted during a training."""
  nano.write_dataset(folder / "data")
  keys = [f"--config.data.path={folder}/data", f"--config.num_steps={_STEPS.value}", "--config.checkpoint_every=50"]
  return watch(
    ["train.py", "--config", "benchmarks/nano.py", f"--workdir={folder}/run", *keys, "--config.eval_every=100"]
  )


def infer(folder: Path) -> list[dict[str, float]]:
  """Returns what was counted during an inference.

  Raises:
    RuntimeError: label files are missing.
  """
  write_images(folder, _IMAGES.value)
  paths = [f"--dataset-dir={folder}/images", f"--outdir={folder}/out"]
  paths += [f"--prompt-image={folder}/images/00000.png", f"--prompt-label={folder}/label.png"]
  counts = watch(["-m", "seggpt_jax", "infer", "--model-path=small", "--save=label", *paths])
  written = len(list((folder / "out" / "label").iterdir()))
  if written != _IMAGES.value:
    raise RuntimeError(f"found {written} label files, expected {_IMAGES.value}")
  return counts


def keep(rows: list[dict[str, Any]]) -> None:
  """Writes rows to the results, in place of earlier ones of the same runs."""
  path = report.RESULTS / "soak.json"
  before = json.loads(path.read_text())["rows"] if path.exists() else []
  rows = report.merge_rows(before, rows, ("run", "counted"))
  report.write("soak", {"machine": report.machine(["jax", "orbax-checkpoint", "grain"]), "rows": rows})


def main(argv: list[str]) -> None:
  del argv
  rows: list[dict[str, Any]] = []
  titles = {"train": f"train, {_STEPS.value:,} steps", "infer": f"infer, {_IMAGES.value:,} images"}
  for name in _RUNS.value:
    with tempfile.TemporaryDirectory() as folder:
      counts = {"train": train, "infer": infer}[name](Path(folder))
    for what, (before, after) in growth(counts).items():
      level = after <= max(1.05 * before, before + ALLOWED[what])
      row = {"run": titles[name], "counted": what, "second_quarter": before, "last_quarter": after, "level": level}
      rows.append(row | {"most": max(each[what] for each in counts), "seconds": counts[-1]["seconds"]})
      verdict = "" if level else ": GROWS"
      print(f"{titles[name]}: {what} {before:.0f} -> {after:.0f}, most {rows[-1]['most']:.0f}{verdict}")
    if _KEEP.value:
      draw(titles[name], counts, PICTURES / f"soak_{name}.png")
  if _KEEP.value:
    keep(rows)
  sys.exit(not all(row["level"] for row in rows))


if __name__ == "__main__":
  app.run(main)
