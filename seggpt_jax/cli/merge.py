"""Merges a LoRA into the weights it was trained for, and writes plain weights.

seggpt merge weights/vit_large runs/lora weights/mine
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.model import weights
from seggpt_jax.model.adapter_files import adapted_params, load_lora

ARGUMENTS = ("WEIGHTS", "RUN", "OUTPUT")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines no flags: the command has none."""
  return {}


def main(base: str, run: str, output: str) -> None:
  """Merges the adapter of a run into its base weights."""
  weights.check_new_weights(output)
  stored = load_lora(run)
  weights.save_weights(output, adapted_params(base, stored), stored.config)
  print(f"{output}: {base} with {len(stored.params) // 2} kernels updated by {run}")
