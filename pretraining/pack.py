"""Copies the weights of a training run into the package, where `load_model(NAME)` finds them; for maintainers.

python -m pretraining.pack runs/small_96 small
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from absl import flags

from seggpt_jax.cli.main import run
from seggpt_jax.files import write_whole
from seggpt_jax.model import packaged, parameters, weights
from seggpt_jax.model.config import SegGPTConfig

ARGUMENTS = ("RUN_OR_WEIGHTS", "NAME")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines no flags: the command has none."""
  return {}


def main(source: str, name: str) -> None:
  """Copies weights into the package under a name."""
  config = weights.load_config(source)
  path = packaged.path_of(name)
  write(path, weights.load_params(source), config)
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
