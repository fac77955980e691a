"""Trains or fine-tunes a SegGPT.

  python train.py --config configs/base.py --workdir runs/mine --config.data.path=DATASET

Running the same line again goes on where the run stopped. Every value of the configuration can be set as
--config.KEY=VALUE; seggpt_jax/training/config.py says what each one means. On several hosts the line is run on each of
them, with --distributed=auto or explicit; docs/scaling.md has a command for each kind of cluster.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.training import distributed
from seggpt_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics and pictures go there.")
_DISTRIBUTED = flags.DEFINE_string(
  "distributed", "off", "Several processes: off, auto (ask the cluster) or explicit (by the three flags below)."
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "For explicit: HOST:PORT where process 0 listens.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "For explicit: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "For explicit: which of them this is, from 0.")


def main(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only --config, --workdir and --config.KEY=VALUE")
  for flag in (_CONFIG, _WORKDIR):
    if not flag.present or flag.value == "":
      raise InputError(f"--{flag.name}: missing, for example --config configs/base.py --workdir runs/mine")
  path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
  if not Path(path).is_file():
    raise InputError(f"--config: file {path} not found, expected one such as configs/base.py")
  distributed.start(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  with distributed.failing_alone():
    result = train(_CONFIG.value, _WORKDIR.value)
  if jax.process_index() == 0:
    print(f"done: {_WORKDIR.value}, validation mIoU {result.get('miou', float('nan')):.3f}")


if __name__ == "__main__":
  run_main(main)
