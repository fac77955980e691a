"""Copies the weights of a training run into the package, where `load_model(NAME)` finds them; for maintainers.

python -m pretraining.pack runs/small_96 small
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli.main import run
from seggpt_jax.model import packaged, weights

ARGUMENTS = ("RUN_OR_WEIGHTS", "NAME")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines no flags: the command has none."""
  return {}


def main(source: str, name: str) -> None:
  """Copies weights into the package under a name."""
  config = weights.load_config(source)
  path = packaged.path_of(name)
  packaged.write(path, weights.load_params(source), config)
  print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
  run("pretraining.pack", "python -m pretraining.pack")
