"""Compares forward passes, training steps and peak memory with transformers' SegGPT in PyTorch, in one run.

  python -m benchmarks.model --peer=transformers                             # the small network, float32
  python -m benchmarks.model --variants=vit_large --batch_sizes=1,4 --dtypes=bfloat16 --keep      # an accelerator
  python -m benchmarks.model --work=predict --dtypes=bfloat16 --batch_sizes=16 --keep

All sides have the same random weights and the same canvases of noise. Each side runs in its own process and compiles
first. Then the sides take turns, one call at a time. Nothing else must run meanwhile, and turns do not compensate for
it: threads that spin while they wait for each other, like PyTorch's, lose far more to another process than JAX's. Each
turn measures how much of the processors other processes used; on CPUs such rows are void and not written.

- forward: `SegGPT.__call__`, jitted; the peer under `torch.no_grad()`.
- train: the step of a training run, from uint8 and with the score that it logs; the peer's is forward with its loss,
  backward and torch.optim.AdamW. There is no drop path.
- predict: batched inference with one prompt for each query, in --dtypes; the peer works like the original code, one
  query after the other in float32, eager.

Parameters are float32, and bfloat16 is a compute dtype on both sides (torch.autocast in PyTorch). float32 never means
TF32. The difference between the predicted colors is printed next to the times. All sides hold memory at the same time,
although each frees what it can between turns; if one fails, try fewer sides. The share of peak is relative to the
fastest of some large matrix products in that dtype, with either library, in the same run. Operations come from the
formula in cost.py.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import matmul_peaks, report, sides, tables
from benchmarks.side_process import SPAWN, SideProcess, take_turns
from seggpt_jax.data.pipeline import follow_parent

_PEER = flags.DEFINE_enum("peer", "transformers", ["transformers", "none"], "Network to compare with.")
_VARIANTS = flags.DEFINE_list("variants", ["drawn"], "Architectures, keys of seggpt_jax.model.config.VARIANTS.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1"], "Numbers of canvases in a batch.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Compute dtypes: float32, bfloat16.")
_WORK = flags.DEFINE_list("work", ["forward", "train"], "Kinds of work: forward, train, predict.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of turns of each side.", 1)
_LEAST_SECONDS = flags.DEFINE_float("least_seconds", 0.3, "Minimum length of a turn.")
_WAYS = flags.DEFINE_list("ways", ["eager", "compile"], "How the peer runs: eager, compile.")
_REMAT = flags.DEFINE_list("remat", ["none"], "Rematerialization of seggpt_jax in training: none, dots, full.")
_ATTENTION = flags.DEFINE_list("attention", [], "Attention implementations of seggpt_jax; else its default.")
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/model.json.")

for _flag, _known in (
  (_DTYPES, {"float32", "bfloat16"}),
  (_WORK, {"forward", "train", "predict"}),
  (_WAYS, {"eager", "compile"}),
  (_REMAT, {"none", "dots", "full"}),
):
  flags.register_validator(
    _flag, lambda values, known=_known: known.issuperset(values), f"expected some of {', '.join(sorted(_known))}"
  )

_KEY = ("device", "variant", "dtype", "batch_size", "work", "side")


def sides_of(variant: str, dtype: str, batch_size: int, work: str, weights: Path) -> list[sides.Side]:
  """Returns the sides to compare: seggpt_jax with each setting from the flags, and the peer."""
  setting = {"variant": variant, "work": work, "batch_size": batch_size, "weights": weights}
  setting |= {"least_seconds": _LEAST_SECONDS.value}
  found = []
  # Rematerialization matters only with a backward pass.
  for remat, attention in itertools.product(_REMAT.value if work == "train" else ["none"], _ATTENTION.value or [None]):
    name = " ".join(
      ["seggpt_jax", *([f"remat={remat}"] if remat != "none" else []), *([attention] if attention else [])]
    )
    found.append(sides.Side(name, "jax", dtype=dtype, remat=remat, attention=attention, **setting))
  if _PEER.value == "none":
    return found
  if work == "predict":
    return [*found, sides.Side("transformers eager, float32, one by one", "eager", dtype="float32", **setting)]
  return found + [sides.Side(f"transformers {way}", way, dtype=dtype, **setting) for way in _WAYS.value]


def difference(output: np.ndarray | None, ours: np.ndarray | None) -> float | None:
  """Returns the largest difference, relative to the largest value; None in training or after an error."""
  if output is None or ours is None:
    return None
  return float(np.abs(output - ours).max() / np.abs(ours).max())


def rows_of(processes: list[SideProcess], flops: int, peak: tuple[float, float], device: str) -> list[dict[str, Any]]:
  """Returns a row for each side. A peer's row has the time ratio of each seggpt_jax side to the peer, by rounds."""
  ours = [process for process in processes if process.side.way == "jax"]
  rows = []
  for process in processes:
    side = process.side
    row = {"device": device, "variant": side.variant, "dtype": processes[0].side.dtype, "batch_size": side.batch_size}
    row |= {"work": side.work, "side": side.name}
    if process.error is not None:
      rows.append({**row, "error": process.error})
      continue
    ratios = {
      one.side.name: statistics.median(a.seconds / b.seconds for a, b in zip(one.turns, process.turns, strict=True))
      for one in ours
      if process not in ours and one.error is None
    }
    row |= {
      "seconds": [turn.seconds for turn in process.turns],
      "others": max(peak[1], *(turn.others for turn in process.turns)),
    }
    row |= {"memory": process.memory, "flops": flops * side.batch_size, "peak": peak[0]}
    row |= {"ratios": ratios, "difference": None if process is ours[0] else difference(process.output, ours[0].output)}
    rows.append(row)
  return rows


def measure_peaks(pool: ProcessPoolExecutor) -> tuple[str, dict[str, tuple[float, float]]]:
  """Measures the peak of the device for each dtype.

  Returns:
    The name of the device; and by dtype, operations per second of the best matrix product, and the share of the
    processors that other processes used.
  """
  products = [matmul_peaks.jax_product] + ([matmul_peaks.torch_product] if _PEER.value != "none" else [])
  peaks = {}
  for dtype in _DTYPES.value:
    found = [pool.submit(product, dtype).result() for product in products]
    kinds = [kind for kind, *_ in found]
    if len({kind == "cpu" for kind in kinds}) > 1:
      sys.exit(f"devices: found {kinds[0]} for JAX and {kinds[1]} for PyTorch, expected both on the same")
    peaks[dtype] = max((rate, others) for _, rate, others in found)
  return report.device(kinds[0]), peaks


def main(argv: list[str]) -> None:
  del argv
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory for the peer
  batch_sizes, rows = list(map(int, _BATCH_SIZES.value)), []
  # A new process for each task, which leaves nothing on the device.
  with (
    tempfile.TemporaryDirectory() as folder,
    ProcessPoolExecutor(1, SPAWN, follow_parent, (0, 1), max_tasks_per_child=1) as pool,
  ):
    device, peaks = measure_peaks(pool)
    print(f"{device}: {', '.join(f'{dtype} {rate / 1e12:.3g} TFLOP/s' for dtype, (rate, _) in peaks.items())}\n")
    print(tables.MODEL_HEAD, flush=True)
    for variant in _VARIANTS.value:
      weights = Path(folder) / variant
      flops = pool.submit(sides.write_weights, variant, weights).result()
      for dtype, batch_size, work in itertools.product(_DTYPES.value, batch_sizes, _WORK.value):
        processes = take_turns(sides_of(variant, dtype, batch_size, work, weights), sides.start, _ROUNDS.value)
        found = rows_of(processes, flops[work], peaks[dtype], device)
        print("\n".join(map(tables.model_line, found)), flush=True)
        rows += found
        if _KEEP.value:
          report.keep_rows("model", found, _KEY, device, ["jax", "torch", "transformers"])


if __name__ == "__main__":
  app.run(main)
