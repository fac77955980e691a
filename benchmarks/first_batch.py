"""Makes the first batch of a run in this process and prints its seconds and memory as JSON; see startup.py.

  python -m benchmarks.first_batch KIND PATH WORKDIR CHANGES

KIND is folder or tfds, CHANGES a JSON object of config keys and values.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def memory(key: str) -> float:
  """Returns a value of /proc/self/status in MB."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def main(kind: str, path: str, workdir: str, changes: str) -> None:
  began = time.perf_counter()
  # Imported here because the time of the imports is reported too.
  from absl import flags

  from seggpt_jax.data.pipeline import training_batches
  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training.config import default_config
  from seggpt_jax.training.inputs import open_inputs

  flags.FLAGS.mark_as_parsed()
  config = default_config()
  config.data.source, config.data.path, config.data.labels, config.data.resize = kind, path, "index", 0
  config.update_from_flattened_dict(json.loads(changes))
  before, started = memory("VmRSS"), time.perf_counter()
  inputs = open_inputs(config, VARIANTS["tiny"], workdir)
  batches = training_batches(inputs.training, batch_size=8, seed=0, num_threads=2, num_workers=0)
  next(batches)
  now = time.perf_counter()
  print(json.dumps({"seconds": now - started, "with_imports": now - began, "megabytes": memory("VmHWM") - before}))


if __name__ == "__main__":
  main(*sys.argv[1:])
