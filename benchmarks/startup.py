"""How long a run waits for its first batch and what it remembers, for 1,000 and for 100,000 small images.

  python -m benchmarks.startup

Each figure is of a process of its own that does what train.py does with data before the first step: finds the samples,
checks them, pairs them and makes a batch of eight. Time counts from before the data is looked at, memory is the growth
of the process from there to its peak.
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

from benchmarks import report

_COUNTS = flags.DEFINE_list("counts", ["1000", "100000"], "Numbers of images.")
_KEEP = flags.DEFINE_bool("keep", False, "Also writes the figures to benchmarks/results/startup.json.")

SIDE = 32
KINDS = {"folder": "files", "tfds": "records"}

CHILD = """
import time
began = time.perf_counter()
import json, sys
from absl import flags
flags.FLAGS.mark_as_parsed()
import jax
from seggpt_jax.data.pipeline import training_batches
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training.config import default_config
from seggpt_jax.training.inputs import open_inputs

def memory(key):
  return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))

kind, path, workdir, changes = sys.argv[1:]
config = default_config()
config.data.source, config.data.path, config.data.labels, config.data.resize = kind, path, "index", 0
config.update_from_flattened_dict(json.loads(changes))
before, started = memory("VmRSS"), time.perf_counter()
inputs = open_inputs(config, VARIANTS["tiny"], workdir)
batches = training_batches(inputs.training, batch_size=8, seed=0, num_threads=2, num_workers=0)
next(batches)
now = time.perf_counter()
print(json.dumps({"seconds": now - started, "with_imports": now - began, "megabytes": memory("VmHWM") - before}))
"""

# What a run may ask for beyond the default, and has to be found out about each sample.
CHANGES: dict[str, dict[str, Any]] = {
  "free pairing": {},
  "pairing by group": {"data.groups": "prefix:_"},
  "negative pairs": {"data.negative": 0.1},
}


def write_files(directory: Path, num_train: int) -> None:
  """Images of 32 x 32 pixels with labels, in groups of a hundred; 16 to validate with."""
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
  """The same as a sharded ArrayRecord, by the command a user types."""
  options = {"kind": "folder", "path": files, "num_classes": 2, "labels": "index", "groups": "prefix:_"}
  options |= {"outdir": directory, "format": "records", "dataset_name": "tiny"}
  flags_ = [f"--{name}={value}" for name, value in options.items()]
  subprocess.run([sys.executable, "-m", "seggpt_jax", "prepare", *flags_], check=True, stdout=subprocess.DEVNULL)
  return directory / "tiny"


def measure(kind: str, path: Path, changes: dict[str, Any]) -> dict[str, float]:
  with tempfile.TemporaryDirectory() as workdir:
    arguments = (kind, str(path), workdir, json.dumps(changes))
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout.splitlines()[-1])


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
