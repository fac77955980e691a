"""Reads what a training step needs on many devices from compiled programs, and predicts its time.

  python -m benchmarks.scaling --keep
  python -m benchmarks.scaling --variant=vit_large --meshes=1x1,1x8,8x1 --keep

For each mesh (data x fsdp) the step is compiled ahead of time for that many simulated CPU devices, and never run. It
uses AdamW, bfloat16, remat, and the same number of canvases on each device (weak scaling). The compiler reports bytes
of parameters, optimizer state and temporaries on a device, and the program contains the bytes of its collectives. These
are exact for that program, but XLA's CPU compiler differs from an accelerator's:
- It emulates bfloat16 in float32, so temporaries and gathered weights are up to twice as large.
- It makes no reduce-scatter: gradients of sharded parameters are all-reduced whole and then sliced. Compilers for TPU
  and GPU need half of that traffic.
- It does not overlap collectives with arithmetic, and fuses less.

The time is a PREDICTION, not a measurement; real steps take longer. It is the largest of three times, as if the others
were hidden behind it and each resource ran at the vendor's peak (seggpt_jax/training/chips.py):
- compute: operations of the executed products (cost.py: folded attention, remat),
- memory: bytes of these products in bfloat16, and seven passes over parameters and moments of AdamW,
- network: bytes that the collectives send, as compiled here. A group on one TPU pod uses all links of a chip; a group
  over several nodes of eight GPUs uses one network card for each GPU.

Observations:
- With --nospread, without `SegGPT(batch_sharding=...)`, the partitioner gathers activations of the whole batch on
  meshes with fsdp > 1 and splits their channels. The small network on 1x8 then needs 104 instead of 48 GFLOP on each
  device.
- Stacking all image canvases before all target canvases, like the original code, moves activations between devices even
  on data-parallel meshes: 23 MB a step on 8x1 and 1,400 MB on 256x1. `seggpt.stack_streams` avoids that.
- 1x256 shards little: only the decoder's kernel in the small network has a side that 256 divides.
- The CPU compiler drops the barriers of remat unless told not to (`_compiler_options` in training/step.py): temporaries
  of ViT-L on 1x1 take 77 instead of 5.8 GB.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks import children, report
from benchmarks.collectives import KINDS, Collective, bandwidth
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.seggpt import Remat
from seggpt_jax.training import cost
from seggpt_jax.training.chips import CHIPS, Chip

MESHES = ("1x1", "8x1", "1x8", "4x8", "8x8", "32x8", "256x1", "16x16", "1x256")

_VARIANT = flags.DEFINE_string("variant", "small", f"Architecture, one of {', '.join(VARIANTS)}.")
_MESHES = flags.DEFINE_list("meshes", list(MESHES), "Meshes, data x fsdp.")
_CANVASES = flags.DEFINE_integer("canvases", 4, "Number of canvases on each device.")
_SPREAD = flags.DEFINE_bool("spread", True, "Give the network the sharding of its batch (`batch_sharding`).")
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/scaling.json.")

PREDICTED = ("TPU v5e", "TPU v6e", "H100", "H200")
ADAMW_PASSES = 7  # gradient, parameter and two moments are read; parameter and two moments are written


def compile_step(variant: str, data: int, fsdp: int, canvases: int, spread: bool) -> dict[str, Any]:
  """Returns the output of `compiled_step.py`, with the collectives summed by kind."""
  options = [f"--variant={variant}", f"--data={data}", f"--fsdp={fsdp}", f"--canvases={canvases}", f"--spread={spread}"]
  found = children.run_module("compiled_step", *options)
  # Equal collectives are counted, because a program for many devices has hundreds.
  counts = collections.Counter(Collective(**one) for one in found["collectives"])
  found["collectives"] = [[c.kind, c.payload, c.group, c.stride, n] for c, n in counts.items()]
  found["collective_bytes"] = {kind: sum(c.payload * n for c, n in counts.items() if c.kind == kind) for kind in KINDS}
  return found


def train_bytes(config: SegGPTConfig, attention: str = "folded", remat: Remat = "none", itemsize: int = 2) -> int:
  """Returns the bytes that the matrix products of a training step move to and from memory for each canvas.

  Every product reads its factors and writes its result once, and everything between products costs nothing. A real
  program moves more, unless it fuses products (as flash attention does, whose scores stay on the chip; "folded" writes
  and reads them whole). The weights count for each canvas, as if each were a batch; with several canvases on a device
  that is too much by a few percent.

  Args:
    config: architecture of the network.
    attention: "reference" or "folded", see `cost.products`.
    remat: parts of the blocks that the backward pass recomputes.
    itemsize: bytes of a number, 2 for bfloat16.
  """
  elements = (p.elements * cost.times_in_training(p, remat) for p in cost.products(config, attention))
  return itemsize * sum(elements)


def predict(variant: str, found: dict[str, Any], canvases: int, chip: Chip) -> dict[str, float]:
  """Returns the minimum seconds that each resource is busy, from the vendor's peak rates."""
  config = VARIANTS[variant]
  state_bytes = ADAMW_PASSES * found["parameter_bytes"]
  sent = [(Collective(*one), count) for *one, count in found["collectives"]]
  return {
    "compute": canvases * cost.train_flops(config, "folded", remat="full") / chip.flops,
    "memory": (canvases * train_bytes(config, remat="full") + state_bytes) / chip.memory_bandwidth,
    "network": sum(count * c.sent / bandwidth(chip, c.group, c.stride) for c, count in sent),
  }


def show(results: dict[str, dict[str, Any]]) -> None:
  """Prints two Markdown tables: what the compiler reports, and the times predicted from it."""
  print("\nMB on each device, and MB of results of collectives in a step:\n")
  print("| mesh | parameters | AdamW | temporary | all-reduce | all-gather | all-to-all, permute | GFLOP, XLA |")
  print("|---|---|---|---|---|---|---|---|")
  for mesh, found in results.items():
    carried = found["collective_bytes"]
    numbers = [found["parameter_bytes"], found["optimizer_bytes"], found["temporary_bytes"]]
    numbers += [carried["all-reduce"] + carried["reduce-scatter"], carried["all-gather"]]
    numbers += [carried["all-to-all"] + carried["collective-permute"]]
    cells = " | ".join(f"{number / 1e6:,.1f}" for number in numbers)
    print(f"| {mesh} | {cells} | {found['compiler_flops'] / 1e9:,.0f} |")
  print("\nPredicted minimum time of a step in ms, and the resource that bounds it:\n")
  print(f"| mesh | {' | '.join(PREDICTED)} |\n|---{'|---' * len(PREDICTED)}|")
  for mesh, found in results.items():
    cells = []
    for seconds in found["predicted_seconds"].values():
      bound = max(seconds, key=seconds.get)
      cells.append(f"{1e3 * seconds[bound]:,.2f} {bound}")
    print(f"| {mesh} | {' | '.join(cells)} |")
  if any(found["loops"] for found in results.values()):
    print("\nSome programs have loops; collectives in a loop are counted once, however often it runs.")


def keep(variant: str, results: dict[str, Any]) -> Path:
  """Writes the results beside those of other variants and meshes; returns the file."""
  path = report.RESULTS / "scaling.json"
  before = json.loads(path.read_text()) if path.exists() else {}
  name = variant if _SPREAD.value else f"{variant}, batch_sharding not given"
  results = {**before.get(name, {}), **results}
  before |= {"machine": report.machine(["jax", "jaxlib", "flax", "optax"]), name: results}
  return report.write("scaling", before)


def main(argv: list[str]) -> None:
  del argv
  variant, chips = _VARIANT.value, [chip for chip in CHIPS if chip.name in PREDICTED]
  results: dict[str, dict[str, Any]] = {}
  progress = tqdm(_MESHES.value, desc=f"compiling {variant}", unit="mesh")
  for mesh in progress:
    progress.set_postfix_str(mesh)
    data, fsdp = map(int, mesh.split("x"))
    found = compile_step(variant, data, fsdp, _CANVASES.value, _SPREAD.value)
    found["canvases_per_device"] = _CANVASES.value
    found["predicted_seconds"] = {chip.name: predict(variant, found, _CANVASES.value, chip) for chip in chips}
    results[mesh] = found
    if _KEEP.value:
      keep(variant, {mesh: found})
  show(results)


if __name__ == "__main__":
  app.run(main)
