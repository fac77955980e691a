"""Copies the weights of a training run into the package, where `load_model(NAME)` finds them; for maintainers.

python -m pretraining.pack runs/small_96 small

Of several weights, as in `runs/a,runs/b`, the mean is copied: it is often better than each (arXiv 2203.05482).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from absl import flags

from seggpt_jax.cli.main import run
from seggpt_jax.files import write_whole
from seggpt_jax.model import packaged, parameters, weights
from seggpt_jax.model.config import SegGPTConfig

ARGUMENTS = ("RUN_OR_WEIGHTS,...", "NAME")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines no flags: the command has none."""
  return {}


def main(sources: str, name: str) -> None:
  """Copies weights, or the mean of several, into the package under a name."""
  config, path = weights.load_config(sources.split(",")[0]), packaged.path_of(name)
  each = [weights.load_params(source) for source in sources.split(",")]
  write(path, {name: np.mean([params[name] for params in each], axis=0) for name in each[0]}, config)
  print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def write(path: Path, params: Mapping[str, Any], config: SegGPTConfig) -> None:
  """Writes a packaged file, with the parameters rounded to float16.

  Raises:
    ValueError: a parameter is too large for float16.
  """
  halves = parameters.to_float16(params)
  data = safetensors.numpy.save(halves, metadata={"config": json.dumps(config.to_dict())})
  write_whole(path, lambda file: file.write(data), replace=True)


if __name__ == "__main__":
  run("pretraining.pack", "python -m pretraining.pack")
