"""Merges a LoRA into the weights it was trained for: plain weights, as any others.

python -m seggpt_jax.model.merge WEIGHTS RUN OUTPUT
"""

from __future__ import annotations

from seggpt_jax.errors import InputError, run_main
from seggpt_jax.model import weights
from seggpt_jax.model.adapter_files import adapted_params, load_adapter
from seggpt_jax.model.adapters import LoRA


def main(argv: list[str]) -> None:
  if len(argv) != 4:
    raise InputError(f"found {len(argv) - 1} arguments, expected three: WEIGHTS RUN OUTPUT")
  _, base, run, output = argv
  weights.check_new(output)
  stored = load_adapter(run)
  if not isinstance(stored.adapter, LoRA):
    raise InputError(f"{run}: found a learned prompt, expected a LoRA: a prompt is no part of the weights")
  weights.save_weights(output, adapted_params(base, stored), stored.config)
  print(f"{output}: {base} with {len(stored.params) // 2} kernels updated by {run}")


if __name__ == "__main__":
  run_main(main)
