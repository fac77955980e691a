"""The pipeline in several processes and after a kill: every pair of an epoch is read once, and none is lost."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

NUM_SAMPLES, PER_STEP = 24, 4

READER = """
import hashlib, json, sys, time
from pathlib import Path
from absl import flags
from seggpt_jax.data.augment import Augmentation
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.data.pairing import Pairing, PairingOptions
from seggpt_jax.data.pipeline import SourceTrainingPairs, training_batches
from seggpt_jax.formats.layouts import folder_layout
from seggpt_jax.data.sources import FileSource
from seggpt_jax.data.transforms import TrainingPair

folder, out, index, count, steps, workers, pause = sys.argv[1:]
flags.FLAGS.mark_as_parsed()
source = FileSource(folder_layout(folder), 3, LabelFormat())
varied = Augmentation(36, scale=(0.8, 1.5), flips="turns", color=(0.2, 0.0, 0.0), blur=1.0)
transform = TrainingPair((64, 32), 8, 3, "random", 0.75, 0.5, varied)
pairs = SourceTrainingPairs(source, Pairing(len(source), PairingOptions()), transform)
out = Path(out)
done = len(out.read_text().splitlines()) if out.exists() else 0
batches = training_batches(
  pairs, batch_size=4 // int(count), seed=5, num_threads=2, num_workers=int(workers),
  process_index=int(index), process_count=int(count), start=done,
)
with out.open("a") as file:
  for _ in range(done, int(steps)):
    batch = next(batches)
    digest = hashlib.sha256(b"".join(batch[key].tobytes() for key in sorted(batch))).hexdigest()
    line = {"samples": batch["samples"].tolist(), "digest": digest}
    file.write(json.dumps(line) + "\\n")
    file.flush()
    time.sleep(float(pause))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data")
  generator = np.random.default_rng(0)
  for kind, shape, high in (("images", (40, 44, 3), 256), ("labels", (40, 44), 3)):
    (directory / kind).mkdir()
    for index in range(NUM_SAMPLES):
      Image.fromarray(generator.integers(0, high, shape, np.uint8)).save(directory / kind / f"{index:02d}.png")
  return directory


def start(folder, out, index=0, count=1, steps=18, workers=0, pause=0.0):
  arguments = map(str, (folder, out, index, count, steps, workers, pause))
  return subprocess.Popen([sys.executable, "-c", READER, *arguments])


def read(folder, out, **options):
  assert start(folder, out, **options).wait(timeout=120) == 0
  return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
  """The lines of three epochs read in one process."""
  return read(folder, tmp_path_factory.mktemp("whole") / "out.jsonl")


def pairs(lines):
  return [tuple(pair) for line in lines for pair in line["samples"]]


def test_two_processes_together_read_the_pairs_of_one_process(folder, uninterrupted, tmp_path):
  outs = [tmp_path / f"{index}.jsonl" for index in range(2)]
  running = [start(folder, out, index, count=2) for index, out in enumerate(outs)]
  assert [process.wait(timeout=120) for process in running] == [0, 0]
  shares = [[json.loads(line) for line in out.read_text().splitlines()] for out in outs]
  per_epoch = NUM_SAMPLES // PER_STEP
  for first in range(0, len(uninterrupted), per_epoch):
    epoch = slice(first, first + per_epoch)
    together = [pair for steps in zip(shares[0][epoch], shares[1][epoch], strict=True) for pair in pairs(steps)]
    assert sorted(query for _, query in together) == list(range(NUM_SAMPLES))
    assert together == pairs(uninterrupted[epoch])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_reader_resumes_bit_for_bit(folder, uninterrupted, tmp_path, workers):
  """The process is killed with SIGKILL in the middle of an epoch. Digests cover every byte of a batch."""
  out = tmp_path / "out.jsonl"
  process = start(folder, out, workers=workers, pause=0.1)
  while not out.exists() or out.read_text().count("\n") < 8:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait(timeout=60)
  killed_after = out.read_text().count("\n")
  assert 8 <= killed_after < 18
  resumed = read(folder, out, workers=workers)
  assert [line["digest"] for line in resumed] == [line["digest"] for line in uninterrupted]
