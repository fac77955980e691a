"""Compiles the network's programs for chips that are not there, and says what each needs of its chip.

  pip install -e .[tpu-compile]
  python -m benchmarks.chips                                   # all cases that have no result yet, one after the other
  python -m benchmarks.chips --cases=train:vit_large:v5e:1x4:4:full

A case is work:network:chip:mesh:canvases:remat, with the mesh as data x fsdp and the canvases of each chip. The network
may end in +lora. Results are kept in benchmarks/results/chips.json; `python -m benchmarks.tables` writes them into
docs/chips.md. TPUs are compiled for by libtpu, their own compiler; GPUs need `jax-cuda13-plugin` and NVIDIA's compiler
as well, and cuDNN is not asked about its kernels.

The bytes are those of the compiled program. The time is a PREDICTION and a lower bound: the largest of three times, as
if the others were hidden behind it and each resource ran at the vendor's peak (benchmarks/peaks.py):
- compute: operations of the executed products (cost.py, with remat),
- memory: bytes of these products in bfloat16 with flash attention, and seven passes of AdamW over its state,
- network: bytes that the collectives send. A group on one TPU pod uses all links of a chip; a group over several nodes
  of eight GPUs uses one network card for each GPU.
"""

from __future__ import annotations

import collections
import json
import subprocess
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks import absent, children, cost, report
from benchmarks.collectives import KINDS, Collective, bandwidth
from benchmarks.peaks import Chip
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.seggpt import Remat

CASES = (
  "train:vit_large:v5e:1x1:1:full",
  "train:vit_large:v5e:1x4:4:full",
  "train:vit_large:v5e:1x8:4:full",
  "train:vit_large:v5e:32x8:4:full",
  "train:vit_large:v5e:1x256:4:full",
  "train:vit_large:v5p:1x4:4:dots",
  "train:vit_large:v6e:1x1:4:full",
  "train:vit_large:v6e:1x4:16:full",
  "train:vit_large:a100:1x1:4:full",
  "train:vit_large:h100:1x1:4:none",
  "train:vit_large:h100:1x1:4:dots",
  "train:vit_large:h100:1x1:16:full",
  "train:vit_large:h100:1x8:4:full",
  "train:vit_large:b200:1x1:16:full",
  "train:vit_large+lora:v5e:1x1:4:full",
  "train:small:v5e:1x1:16:none",
  "train:small:v5e:8x1:16:none",
  "predict:vit_large:v5e:1x1:16:none",
  "predict:vit_large:a100:1x1:16:none",
  "predict:vit_large:h100:1x1:16:none",
  "predict:small:v5e:1x1:16:none",
)
ADAMW_PASSES = 7  # gradient, parameter and two moments are read; parameter and two moments are written

_CASES = flags.DEFINE_list("cases", [], "Cases to compile again; by default all that have no result.")


def compile_case(case: str) -> dict[str, Any]:
  """Returns what the compiler says of a case, with equal collectives counted, or why it does not compile."""
  work, network, chip, mesh, batch, remat = case.split(":")
  variant, _, adapter = network.partition("+")
  data, fsdp = map(int, mesh.split("x"))
  options = {"work": work, "variant": variant, "chip": chip, "data": data, "fsdp": fsdp, "batch": batch, "remat": remat}
  options["adapter"] = adapter or "none"
  try:
    found = children.run_module("compiled_step", *(f"--{name}={value}" for name, value in options.items()))
  except subprocess.CalledProcessError as error:
    return {"error": f"status {error.returncode}"}
  counts = collections.Counter(Collective(**one) for one in found["collectives"])
  found["collectives"] = [[c.kind, c.payload, c.group, c.stride, n] for c, n in counts.items()]
  found["collective_bytes"] = {kind: sum(c.payload * n for c, n in counts.items() if c.kind == kind) for kind in KINDS}
  times = predict(work, VARIANTS[variant], found, int(batch), remat, absent.chip(chip))
  return {**found, "predicted_seconds": times}


def moved_bytes(config: SegGPTConfig, work: str, remat: Remat) -> int:
  """Returns the bytes that products move to and from memory for each canvas, in bfloat16.

  Every product reads its factors and writes its result once, and everything between products costs nothing. Attention
  reads queries, keys and values and writes its output; scores stay on the chip.
  """
  flash = (config.depth + config.merge_block + 1) * config.grid[0] * config.grid[1] * config.width * 4
  elements = 0
  for product in cost.products(config):
    times = cost.times_in_training(product, remat) if work == "train" else 1
    if product.name == "scores":
      elements += flash * times
    elif not product.in_attention:
      elements += product.elements * times
  return 2 * elements


def predict(
  work: str, config: SegGPTConfig, found: dict[str, Any], canvases: int, remat: Remat, chip: Chip
) -> dict[str, float]:
  """Returns the seconds that each resource is busy at least, from the vendor's peak rates."""
  training = work == "train"
  flops = cost.train_flops(config, remat=remat) if training else cost.forward_flops(config)
  state = ADAMW_PASSES / 3 * found["state_bytes"] if training else found["state_bytes"]
  sent = [(Collective(*one), count) for *one, count in found["collectives"]]
  return {
    "compute": canvases * flops / chip.flops,
    "memory": (canvases * moved_bytes(config, work, remat) + state) / chip.memory_bandwidth,
    "network": sum(count * c.sent / bandwidth(chip, c.group, c.stride) for c, count in sent),
  }


def main(argv: list[str]) -> None:
  del argv
  path = report.RESULTS / "chips.json"
  results = json.loads(path.read_text()) if path.exists() else {"cases": {}}
  wanted = _CASES.value or [case for case in CASES if "state_bytes" not in results["cases"].get(case, {})]
  progress = tqdm(wanted, desc="compiling", unit="program")
  for case in progress:
    progress.set_postfix_str(case)
    results["cases"][case] = compile_case(case)
    results["machine"] = report.machine(["jax", "jaxlib", "flax", "libtpu"])
    report.write("chips", results)


if __name__ == "__main__":
  app.run(main)
