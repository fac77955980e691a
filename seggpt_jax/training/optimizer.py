"""AdamW or Muon, and the original's learning rate: cosine cycles with warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from seggpt_jax.errors import InputError


def cosine_cycles(
  peak: float,
  first_cycle: int,
  *,
  cycle_mult: float,
  warmup: int,
  decay: float,
  minimum: float,
  num_steps: int,
) -> optax.Schedule:
  """Cosine annealing with warm restarts (arXiv 1608.03983), each cycle with a linear warm-up and a lower peak.

  Args:
    peak: learning rate at the end of the first warm-up.
    first_cycle: steps of the first cycle, warm-up included.
    cycle_mult: the part after the warm-up grows by this factor from cycle to cycle.
    warmup: steps of linear warm-up in every cycle.
    decay: factor on the peak from cycle to cycle.
    minimum: learning rate at both ends of a cycle.
    num_steps: steps of the whole run; as many cycles as they take.

  Returns:
    Step, counted from 0 -> learning rate.

  Raises:
    InputError: a first cycle no longer than its warm-up.
  """
  if first_cycle <= warmup:
    raise InputError(
      f"config.optim.first_cycle: found {first_cycle}, expected more than config.optim.warmup = {warmup}"
    )
  cycles, length, total = [], first_cycle, 0
  while total <= num_steps:
    cycles.append(
      {
        "init_value": minimum,
        "peak_value": max(peak * decay ** len(cycles), minimum),
        "warmup_steps": warmup,
        "decay_steps": length,
        "end_value": minimum,
      }
    )
    total += length
    # As the original's scheduler rounds it.
    length = int((length - warmup) * cycle_mult) + warmup
  return optax.sgdr_schedule(cycles)


def adamw(schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) as PyTorch has it: decoupled decay, scaled by the learning rate, on all parameters."""
  return optax.adamw(schedule, b1=b1, b2=b2, eps=1e-8, weight_decay=weight_decay)


def muon(schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
  """Muon (arXiv 2502.16982): orthogonal updates for the matrices of the blocks, AdamW for everything else;
  both with Nesterov's momentum.

  Updates have the root mean square of Adam's, so that both take the same learning rate. A tiny SegGPT left
  the plateau on which it paints everything in one colour after 200 to 300 steps with it (docs/small.md).
  """

  def dimensions(params: Mapping[str, Any]) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    matrices = optax.contrib.MuonDimensionNumbers()
    # Not the embedding and the decoder, whose one side are pixels, nor the tables of positions.
    return {name: matrices if name.startswith("blocks.") and name.endswith(".kernel") else None for name in params}

  return optax.contrib.muon(
    schedule,
    weight_decay=weight_decay,
    adam_b1=b1,
    adam_b2=b2,
    adam_weight_decay=weight_decay,
    muon_weight_dimension_numbers=dimensions,
    consistent_rms=0.2,
  )


OPTIMIZERS = {"adamw": adamw, "muon": muon}
