"""Times how cost grows with the number of prompts, the batch size and the canvas size.

  python -m benchmarks.growth --keep
  python -m benchmarks.growth --variant=vit_large --grows=canvas --keep

- prompts: one query with more and more prompts, `ensemble.predict_queries`. Operations are counted as if whole canvases
  were computed, which is more than is done.
- forward and train: more and more canvases, with `SegGPT.__call__` and the training step.
- canvas: a forward pass of one canvas of half, three quarters and all of the network's size, by number of tokens.

Weights are random. All sizes of a kind take turns.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks import cost, networks, report, tables, timing
from seggpt_jax.files import write_whole
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS, SegGPTConfig

KINDS = ("prompts", "forward", "train", "canvas")

_VARIANT = flags.DEFINE_enum("variant", "drawn", list(VARIANTS), "Architecture.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
_GROWS = flags.DEFINE_list("grows", list(KINDS), "What grows.")
_PROMPTS = flags.DEFINE_list("prompts", ["1", "2", "4", "8", "16"], "Numbers of prompts per query.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "2", "4", "8", "16", "32", "64"], "Numbers of canvases.")
_SCALES = flags.DEFINE_list("scales", ["0.5", "0.75", "1"], "Sides of the canvas, relative to the network's.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of turns of each size.", 1)
_LEAST_SECONDS = flags.DEFINE_float("least_seconds", 0.3, "Minimum length of a turn.")
_KEEP = flags.DEFINE_bool("keep", False, "Also write benchmarks/results/growth.json and the picture in docs.")

_KEY = ("device", "variant", "dtype", "grows", "size")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "growth.png"


@dataclasses.dataclass(frozen=True)
class Size:
  """One size of a kind of work.

  Attributes:
    name: name in tables.
    units: number of prompts, canvases or tokens.
    flops: operations of a call, from the formula in cost.py.
    make: function that returns the call.
  """

  name: str
  units: int
  flops: int
  make: Callable[[], Callable[[], Any]]


def scaled(config: SegGPTConfig, scale: float) -> SegGPTConfig:
  """Returns the architecture with another canvas size, in whole patches."""
  side = config.patch_size * round(scale * config.canvas_size[1] / config.patch_size)
  return dataclasses.replace(config, canvas_size=(2 * side, side))


def kinds(config: SegGPTConfig, dtype: str) -> Iterator[tuple[str, list[Size]]]:
  """Yields each kind of growth with its sizes."""

  def network(config: SegGPTConfig):
    return parameters.abstract(config, dtype=dtype)[0], config, networks.random_params(config)

  def train(batch_size: int):
    return networks.train_call(networks.start_training(*network(config), batch_size))

  forward = cost.forward_flops(config)
  yield (
    "prompts",
    [
      Size(str(k), k, k * forward, lambda k=k: networks.predict_call(*network(config), 1, k))
      for k in map(int, _PROMPTS.value)
    ],
  )
  batch_sizes = list(map(int, _BATCH_SIZES.value))
  yield (
    "forward",
    [Size(str(b), b, b * forward, lambda b=b: networks.forward_call(*network(config), b)) for b in batch_sizes],
  )
  yield "train", [Size(str(b), b, b * cost.train_flops(config), lambda b=b: train(b)) for b in batch_sizes]
  canvases = [scaled(config, float(scale)) for scale in _SCALES.value]
  yield (
    "canvas",
    [
      Size(
        f"{one.canvas_size[0]} x {one.canvas_size[1]}, {math.prod(one.grid)} tokens",
        math.prod(one.grid),
        cost.forward_flops(one),
        lambda one=one: networks.forward_call(*network(one), 1),
      )
      for one in canvases
    ],
  )


def measure(sizes: list[Size]) -> list[dict[str, Any]]:
  """Returns a row for each size, with the exponent of growth from the size before."""
  calls = [size.make() for size in sizes]
  for call in calls:
    call()  # compiled, and warm
  turns = timing.take_turns(dict(enumerate(calls)), _ROUNDS.value, _LEAST_SECONDS.value)
  rows: list[dict[str, Any]] = []
  for size, taken in zip(sizes, turns.values(), strict=True):
    row = {"size": size.name, "units": size.units, "flops": size.flops, "seconds": [turn.seconds for turn in taken]}
    row |= {"others": max(turn.others for turn in taken), "exponent": None}
    if rows:
      times = [statistics.median(one["seconds"]) for one in (row, rows[-1])]
      row["exponent"] = math.log(times[0] / times[1]) / math.log(row["units"] / rows[-1]["units"])
    rows.append(row)
  return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
  """Draws a line for each kind, and a dashed line for growth in proportion."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, 4), layout="constrained")
  panels = dict(zip(("prompts", "canvases", "tokens"), figure.subplots(1, 3, sharey=True), strict=True))
  for kind, panel in (("prompts", "prompts"), ("forward", "canvases"), ("train", "canvases"), ("canvas", "tokens")):
    found = [row for row in rows if row["grows"] == kind]
    units = [row["units"] for row in found]
    seconds = [statistics.median(row["seconds"]) for row in found]
    panels[panel].loglog(units, seconds, marker="o", markersize=4, label="forward" if kind == "canvas" else kind)
    proportional = [seconds[0] * unit / units[0] for unit in units]
    panels[panel].loglog(units, proportional, linestyle="--", color="gray", linewidth=1)
  for name, axis in panels.items():
    axis.set(xlabel=name)
    axis.legend()
    axis.grid(alpha=0.3, which="both")
  panels["prompts"].set(ylabel="seconds")
  figure.suptitle(f"{rows[0]['variant']}, {rows[0]['dtype']}, {rows[0]['device']}; dashed: in proportion")
  write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100), replace=True)


def main(argv: list[str]) -> None:
  del argv
  device, config = report.device(jax.devices()[0].device_kind), VARIANTS[_VARIANT.value]
  rows: list[dict[str, Any]] = []
  print(f"{device}\n\n{tables.GROWTH_HEAD}", flush=True)
  for kind, sizes in kinds(config, _DTYPE.value):
    if kind not in _GROWS.value:
      continue
    setting = {"device": device, "variant": _VARIANT.value, "dtype": _DTYPE.value, "grows": kind}
    found = [setting | row for row in measure(sizes)]
    print("\n".join(map(tables.growth_line, found)), flush=True)
    rows += found
  if (
    _KEEP.value
    and report.keep_rows("growth", rows, _KEY, device, ["jax", "jaxlib"])
    and set(_GROWS.value) == set(KINDS)
  ):
    draw(rows, PICTURE)


if __name__ == "__main__":
  app.run(main)
