"""Runs training steps of a network with random weights and says how fast, how near to the chip's peak, in what memory.

  python -m benchmarks.train_step --variant=vit_large --batch_sizes=1 --steps=3                 # two cores, 24 GB
  python -m benchmarks.train_step --variant=vit_large --batch_sizes=1 --steps=3 --adapter=none,lora,prompt
  python -m benchmarks.train_step --variant=vit_large --batch_sizes=4,8,16 --dtype=bfloat16     # one accelerator

The step is that of train.py (AdamW, labels painted and predictions scored on the device) on one device and one batch of
noise. Each batch size runs in a process of its own, so that its peak is its own. Peaks are the device's where it counts
them, else the process' resident memory.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

from benchmarks import report

_VARIANT = flags.DEFINE_string("variant", "vit_large", "Architecture, a key of seggpt_jax.model.config.VARIANTS.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1"], "Canvases in a step.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps to measure, after one that compiles.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What is computed in.")
_REMAT = flags.DEFINE_list("remat", ["full"], "What is computed anew: full, dots, none.")
_ADAPTER = flags.DEFINE_list("adapter", ["none"], "What is trained: none (all of the network), lora, prompt.")
_KEEP = flags.DEFINE_bool("keep", False, "Also writes the figures to benchmarks/results/train_step.json.")
_CHILD = flags.DEFINE_bool(
  "child", False, "Measures in this process and prints JSON: what each process is called with."
)


def measure(variant: str, batch_size: int, steps: int, dtype: str, remat: str, adapter: str) -> dict[str, Any]:
  """Seconds of the compiling step and of the mean one after it, peak memory, utilization, trained parameters."""
  import jax
  import numpy as np

  from benchmarks import networks
  from seggpt_jax.model import parameters
  from seggpt_jax.model.adapters import KINDS
  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training.cost import model_flops_utilization
  from seggpt_jax.training.step_recorder import peak_memory

  config = VARIANTS[variant]
  graph, _ = parameters.abstract(config, dtype=dtype, remat=remat)
  beside = KINDS[adapter]() if adapter != "none" else None
  state, step, batch, frozen = networks.start_training(
    graph, config, networks.random_params(config), batch_size, beside
  )
  trained = sum(value.size for name, value in state.params.items() if name not in frozen)
  key, times = jax.random.key(0), []
  for count in (1, steps):
    began = time.perf_counter()
    for _ in range(count):
      state, output = step(state, batch, key)
    loss = float(output.loss)
    times.append((time.perf_counter() - began) / count)
  if not np.isfinite(loss):
    raise RuntimeError(f"loss of batch size {batch_size}: found {loss}, expected a finite one")
  return {
    "trained_parameters": trained,
    "device": jax.devices()[0].device_kind,
    "first_step_seconds": times[0],
    "step_seconds": times[1],
    "pairs_per_second": batch_size / times[1],
    "memory_gb": peak_memory(),
    # The count is of a network that is trained as a whole.
    "utilization": None if frozen else model_flops_utilization(config, batch_size / times[1], jax.devices()[:1]),
  }


def main(argv: list[str]) -> None:
  del argv
  settings = list(itertools.product(_ADAPTER.value, _REMAT.value, map(int, _BATCH_SIZES.value)))
  if _CHILD.value:
    adapter, remat, size = settings[0]
    print(json.dumps(measure(_VARIANT.value, size, _STEPS.value, _DTYPE.value, remat, adapter)))
    return
  results = []
  columns = ("adapter", "trained", "remat", "batch", "first step", "step", "pairs/s", "peak memory", "MFU")
  print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
  for adapter, remat, size in settings:
    options = {"variant": _VARIANT.value, "steps": _STEPS.value, "dtype": _DTYPE.value}
    options |= {"adapter": adapter, "remat": remat}
    flags_ = [f"--{name}={value}" for name, value in options.items()]
    line = [sys.executable, __file__, "--child", f"--batch_sizes={size}", *flags_]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
      print(f"| {adapter} | | {remat} | {size} | ended with status {done.returncode} | | | | |", flush=True)
      continue
    found = json.loads(done.stdout.splitlines()[-1])
    results.append({**options, "batch_size": size, **found})
    utilization = "" if found["utilization"] is None else f"{found['utilization']:.1%}"
    print(
      f"| {adapter} | {found['trained_parameters']:,} | {remat} | {size} | {found['first_step_seconds']:.1f} s "
      f"| {found['step_seconds']:.3g} s | {found['pairs_per_second']:.3g} "
      f"| {found['memory_gb']:.1f} GB | {utilization} |",
      flush=True,
    )
  if _KEEP.value and results:
    print(f"written: {report.write('train_step', {'machine': report.machine(['jax', 'jaxlib']), 'steps': results})}")


if __name__ == "__main__":
  app.run(main)
