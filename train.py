"""Trains or fine-tunes a SegGPT.

  python train.py --config configs/base.py --workdir runs/mine --config.data.path=DATASET

Running the same line again goes on where the run stopped. Every value of the configuration can be set as
--config.KEY=VALUE; seggpt_jax/training/config.py says what each one means.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from seggpt_jax.errors import InputError, run_main
from seggpt_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics and pictures go there.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only --config, --workdir and --config.KEY=VALUE")
  for flag in (_CONFIG, _WORKDIR):
    if not flag.present or flag.value == "":
      raise InputError(f"--{flag.name}: missing, for example --config configs/base.py --workdir runs/mine")
  path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
  if not Path(path).is_file():
    raise InputError(f"--config: file {path} not found, expected one such as configs/base.py")
  result = train(_CONFIG.value, _WORKDIR.value)
  print(f"done: {_WORKDIR.value}, validation mIoU {result.get('miou', float('nan')):.3f}")


if __name__ == "__main__":
  run_main(main)
