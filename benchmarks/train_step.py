"""Times training steps of a network with random weights, with peak memory and utilization of the chip.

  python -m benchmarks.train_step --variant=vit_large --batch_sizes=1 --steps=3                 # two cores, 24 GB
  python -m benchmarks.train_step --variant=vit_large --batch_sizes=1 --steps=3 --adapter=none,lora,prompt
  python -m benchmarks.train_step --variant=vit_large --batch_sizes=4,8,16 --dtype=bfloat16     # one accelerator

The step is the one of a training run: AdamW, with labels colored and predictions scored on the device. It runs on one
device with one batch of noise. Each batch size runs in a new process, so that its peak memory can be measured. Peak
memory is the device's where it is reported, else the resident memory of the process.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from typing import Any

from absl import app, flags

from benchmarks import children, report

_VARIANT = flags.DEFINE_string("variant", "vit_large", "Architecture, a key of seggpt_jax.model.config.VARIANTS.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1"], "Numbers of canvases in a step.")
_STEPS = flags.DEFINE_integer("steps", 10, "Number of steps to time, after one that compiles.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
_REMAT = flags.DEFINE_list("remat", ["full"], "Rematerialization: full, dots, none.")
_ADAPTER = flags.DEFINE_list("adapter", ["none"], "Adapters: none (trains the whole network), lora, prompt.")
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/train_step.json.")
_CHILD = flags.DEFINE_bool("child", False, "Measure in this process and print JSON; set for the new processes.")


def measure(variant: str, batch_size: int, steps: int, dtype: str, remat: str, adapter: str) -> dict[str, Any]:
  """Returns seconds of the first step and of a step after it, peak memory, utilization and trained parameters."""
  import jax
  import numpy as np

  from benchmarks import networks
  from benchmarks.cost import model_flops_utilization
  from seggpt_jax.model import parameters
  from seggpt_jax.model.adapters import KINDS
  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training.step_recorder import peak_memory

  config = VARIANTS[variant]
  graph, _ = parameters.abstract(config, dtype=dtype, remat=remat)
  trained_adapter = KINDS[adapter]() if adapter != "none" else None
  state, step, batch, frozen = networks.start_training(
    graph, config, networks.random_params(config), batch_size, trained_adapter
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
    # The formula counts the operations of training the whole network.
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
    try:
      found = children.run_module(
        "train_step", "--child", f"--batch_sizes={size}", *(f"--{name}={value}" for name, value in options.items())
      )
    except subprocess.CalledProcessError as error:
      print(f"| {adapter} | | {remat} | {size} | ended with status {error.returncode} | | | | |", flush=True)
      continue
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
