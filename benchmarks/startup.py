"""Measures how long a run waits for its first batch, and how much memory that takes, for 1,000 and 100,000 images.

  python -m benchmarks.startup

Each measurement is a new process that does what a training run does with data before the first step: it finds the
samples, checks them, pairs them and makes a batch of eight. Time counts from before the dataset is opened. Memory is
the growth of the process from there to its peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image
from tqdm import tqdm

from benchmarks import children, report

_COUNTS = flags.DEFINE_list("counts", ["1000", "100000"], "Numbers of images.")
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/startup.json.")

SIDE = 32
KINDS = {"folder": "files", "tfds": "records"}

# Settings that need something of each sample before the first step.
CHANGES: dict[str, dict[str, Any]] = {
  "free pairing": {},
  "pairing by group": {"data.groups": "prefix:_"},
  "negative pairs": {"data.negative": 0.1},
}


def write_files(directory: Path, num_train: int) -> None:
  """Writes images of 32 x 32 pixels with labels, in groups of a hundred, and 16 for validation."""
  generator = np.random.default_rng(0)
  for split, count in (("train", num_train), ("val", 16)):
    for kind in ("images", "labels"):
      (directory / split / kind).mkdir(parents=True)
    for index in tqdm(range(count), desc=f"writing {split}", unit="image", disable=count < 5000):
      name = f"g{index // 100:04d}_{index % 100:02d}.png"
      noise = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
      Image.fromarray(noise).save(directory / split / "images" / name, compress_level=1)
      label = np.zeros((SIDE, SIDE), np.uint8)
      label[: index % SIDE, : SIDE // 2] = 1
      Image.fromarray(label).save(directory / split / "labels" / name, compress_level=1)


def write_records(files: Path, directory: Path) -> Path:
  """Converts the dataset to sharded ArrayRecord with the command that users type; returns its folder."""
  options = {"kind": "folder", "path": files, "num_classes": 2, "labels": "index", "groups": "prefix:_"}
  options |= {"outdir": directory, "format": "records", "dataset_name": "tiny"}
  flags_ = [f"--{name}={value}" for name, value in options.items()]
  subprocess.run([sys.executable, "-m", "seggpt_jax", "prepare", *flags_], check=True, stdout=subprocess.DEVNULL)
  return directory / "tiny"


def measure(kind: str, path: Path, changes: dict[str, Any]) -> dict[str, float]:
  """Returns seconds, seconds with imports, and MB until the first batch."""
  with tempfile.TemporaryDirectory() as workdir:
    return children.run_module("first_batch", kind, str(path), workdir, json.dumps(changes))


def main(argv: list[str]) -> None:
  del argv
  results: dict[str, Any] = {"machine": report.machine(["grain", "tensorflow-datasets"]), "first_batch": {}}
  print(f"{'':58s}   seconds, with imports   MB more")
  for count in map(int, _COUNTS.value):
    with tempfile.TemporaryDirectory() as directory:
      files = Path(directory) / "files"
      write_files(files, count)
      paths = {"folder": files, "tfds": write_records(files, Path(directory) / "records")}
      for kind, path in paths.items():
        for name, changes in CHANGES.items():
          found = measure(kind, path, changes)
          title = f"{count:,} {KINDS[kind]}, {name}"
          results["first_batch"][title] = found
          print(
            f"  {title:56s} {found['seconds']:9.2f} {found['with_imports']:14.2f} {found['megabytes']:9.0f}", flush=True
          )
  if _KEEP.value:
    print(f"written: {report.write('startup', results)}")


if __name__ == "__main__":
  app.run(main)
