"""Times how long weights take to load, and how much of that is the comparison of their files with the digests.

  python -m benchmarks.loading
  python -m benchmarks.loading --variant=vit_large

Random weights are written with `save_weights` and loaded with `load_model`, with their digests and as if they had none.
The two take turns. The files are read once before, so they come from memory and not from the disk.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from absl import app, flags, logging

from benchmarks import networks, report, tables, timing
from seggpt_jax.model import digests, parameters, weights
from seggpt_jax.model.config import VARIANTS

_VARIANT = flags.DEFINE_enum("variant", "drawn", list(VARIANTS), "Architecture.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Number of turns of each.", 1)
_LEAST_SECONDS = flags.DEFINE_float("least_seconds", 0.3, "Minimum length of a turn.")

_KEY = ("device", "variant")


def calls(folder: Path) -> dict[str, Callable[[], Any]]:
  """Returns what is timed: loading with digests and without, and comparing the digests alone."""

  def load() -> None:
    jax.block_until_ready(parameters.split(weights.load_model(folder))[1])

  def load_without() -> None:
    with mock.patch.object(digests, "is_sealed", lambda directory: False):
      load()

  def compare() -> None:
    with digests.verifying(folder):
      pass

  return {"with": load, "without": load_without, "alone": compare}


def measure(variant: str, folder: Path) -> dict[str, Any]:
  """Returns the row of a variant."""
  config = VARIANTS[variant]
  weights.save_weights(folder, networks.random_params(config), config)
  timed = calls(folder)
  for call in timed.values():
    call()  # files and programs are in memory
  turns = timing.take_turns(timed, _ROUNDS.value, _LEAST_SECONDS.value)
  row: dict[str, Any] = {name: [turn.seconds for turn in taken] for name, taken in turns.items()}
  shares = [1 - without / with_ for with_, without in zip(row["with"], row["without"], strict=True)]
  return row | {
    "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    "share": statistics.median(shares),
    "others": max(turn.others for taken in turns.values() for turn in taken),
  }


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax logs a line for every block
  device = report.device(jax.devices()[0].device_kind)
  with tempfile.TemporaryDirectory() as folder:
    row = {"device": device, "variant": _VARIANT.value} | measure(_VARIANT.value, Path(folder) / "weights")
  print(f"{tables.LOADING_HEAD}\n{tables.loading_line(row)}")
  report.keep_rows("loading", [row], _KEY, device, ["jax", "orbax-checkpoint", "tensorstore"])


if __name__ == "__main__":
  app.run(main)
