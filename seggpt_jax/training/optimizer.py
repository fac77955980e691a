"""How parameters are changed: the values of config.optim in, an optax transformation out.

AdamW or Muon; a learning rate in cosine cycles or one cosine, layer by layer smaller if wished; weight decay where it
belongs; and which parameters are not trained at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from seggpt_jax.errors import InputError
from seggpt_jax.model.adapters import is_adapter_name

# First match wins, and every parameter has to match: one that is new needs a thought about its layer and its decay.
# The layers are those of BEiT's and MAE's fine-tuning (arXiv 2106.08254, 2111.06377): the embedding is layer 0, block i
# is layer i + 1, what follows the blocks is the last.
_LAYERS: tuple[tuple[str, str], ...] = (
  (r"^(patch_embed\.|pos_embed$|mask_token$|segment_token_[xy]$|type_token_(cls|ins)$)", "first"),
  (r"^prompt\.", "first"),
  (r"^(?:lora\.)?blocks\.(\d+)\.", "block"),
  (r"^(norm|decoder_embed|decoder_pred)\.", "last"),
)
# Only what multiplies features is decayed. Toward zero, a norm's scale would switch off what it scales, and a position
# or a token would lose what it says.
_DECAYED: tuple[tuple[str, bool], ...] = (
  (r"\.kernel(\.[ab])?$", True),
  (r"^prompt\.", False),
  (r"\.bias$", False),
  (r"(^|\.)norm[12]?\.scale$", False),
  (r"\.rel_pos_[hw]$", False),
  (r"^pos_embed$", False),
  (r"^(mask_token|segment_token_[xy]|type_token_(cls|ins))$", False),
)


class Optimizer(NamedTuple):
  """What `make_optimizer` makes of config.optim.

  Attributes:
    transform: acts on the trained parameters alone.
    schedule: step, counted from 0 -> learning rate, of the last layer if they differ.
    frozen: names of the parameters that are not trained.
  """

  transform: optax.GradientTransformation
  schedule: optax.Schedule
  frozen: frozenset[str]


def make_optimizer(optim: ConfigDict, num_steps: int, params: Mapping[str, Any], adapter: bool = False) -> Optimizer:
  """Everything that config.optim says about the way parameters change, except for their average.

  Args:
    optim: config.optim.
    num_steps: steps of the whole run.
    params: all parameters of the network, and of an adapter, or only their shapes, under their names.
    adapter: whether there is one, beside which everything is frozen.

  Raises:
    InputError: values that do not fit each other or the network; names the key.
  """
  schedule = make_schedule(optim, num_steps)
  descend = OPTIMIZERS[optim.name](schedule, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay)
  factors = rate_factors(params, optim.layer_decay)
  undecayed = frozenset() if optim.decay_all else frozenset(name for name in params if not is_decayed(name))
  # Always a chain of two, so that clipping can be switched without another form of optimizer state.
  clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
  transform = optax.chain(clip, _by_name(descend, factors, undecayed))
  frozen = (
    frozenset(name for name in params if not is_adapter_name(name)) if adapter else frozen_names(optim.freeze, params)
  )
  return Optimizer(transform, schedule, frozen)


def make_schedule(optim: ConfigDict, num_steps: int) -> optax.Schedule:
  """Returns the learning-rate schedule that config.optim describes: step, counted from 0 -> learning rate.

  Args:
    optim: config.optim.
    num_steps: steps of the whole run.

  Raises:
    InputError: a warm-up that is too long; names the key.
  """
  if optim.schedule == "cosine":
    return one_cosine(optim.peak, warmup=optim.warmup, minimum=optim.minimum, num_steps=num_steps)
  first_cycle, warmup = cycle_steps(optim.first_cycle, optim.warmup, num_steps)
  return cosine_cycles(
    optim.peak,
    first_cycle,
    cycle_mult=optim.cycle_mult,
    warmup=warmup,
    decay=optim.decay,
    minimum=optim.minimum,
    num_steps=num_steps,
  )


def cycle_steps(first_cycle: int, warmup: int, num_steps: int) -> tuple[int, int]:
  """Returns the steps of the first cycle and of its warm-up.

  Args:
    first_cycle: config.optim.first_cycle; 0 makes one cycle that reaches the minimum right after the last step.
    warmup: config.optim.warmup; where the cycle follows the run, the warm-up takes at most a tenth of it.
    num_steps: steps of the whole run.
  """
  return (first_cycle, warmup) if first_cycle else (num_steps + 1, min(warmup, num_steps // 10))


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


def one_cosine(peak: float, *, warmup: int, minimum: float, num_steps: int) -> optax.Schedule:
  """A linear warm-up from `minimum` to `peak`, then half a cosine that is back at `minimum` after `num_steps`.

  Raises:
    InputError: a run no longer than its warm-up.
  """
  if num_steps <= warmup:
    raise InputError(f"config.optim.warmup: found {warmup}, expected less than config.num_steps = {num_steps}")
  return optax.warmup_cosine_decay_schedule(minimum, max(peak, minimum), warmup, num_steps, minimum)


def adamw(schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) as PyTorch has it: decoupled decay, scaled by the learning rate."""
  return optax.adamw(schedule, b1=b1, b2=b2, eps=1e-8, weight_decay=weight_decay)


def muon(schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
  """Muon (arXiv 2502.16982): orthogonal updates for the matrices of the blocks, AdamW for everything else;
  both with Nesterov's momentum.

  Updates have the root mean square of Adam's, so that both take the same learning rate. A tiny SegGPT left
  the plateau on which it paints everything in one color after 200 to 300 steps with it (docs/small.md).
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
SCHEDULES = ("cycles", "cosine")


def layer_of(name: str, depth: int) -> int:
  """The layer of a parameter, 0 (the embedding) to `depth` + 1 (what follows the blocks).

  Raises:
    ValueError: a parameter that the table does not know.
  """
  for pattern, layer in _LAYERS:
    if match := re.search(pattern, name):
      return {"first": 0, "last": depth + 1}[layer] if layer != "block" else int(match[1]) + 1
  raise ValueError(f"{name}: found in no row of the table of layers, expected in one")


def is_decayed(name: str) -> bool:
  """Whether weight decay is for this parameter: for matrices and convolutions.

  Raises:
    ValueError: a parameter that the table does not know.
  """
  for pattern, decayed in _DECAYED:
    if re.search(pattern, name):
      return decayed
  raise ValueError(f"{name}: found in no row of the table of weight decay, expected in one")


def rate_factors(names: Collection[str], layer_decay: float) -> dict[str, float]:
  """Layer-wise learning-rate decay (arXiv 2106.08254): what each parameter's learning rate is multiplied by.

  Args:
    names: of all parameters of a network, which tell how many layers it has.
    layer_decay: factor from a layer to the one below it; the last layer has 1.
  """
  depth = max(int(name.split(".")[1]) for name in names if name.startswith("blocks.")) + 1
  return {name: layer_decay ** (depth + 1 - layer_of(name, depth)) for name in names}


def frozen_names(patterns: Collection[str], names: Collection[str]) -> frozenset[str]:
  """The names in which one of the regular expressions is found.

  Raises:
    InputError: a pattern that is none or fits no name, or nothing is left to train.
  """
  frozen: set[str] = set()
  for pattern in patterns:
    try:
      found = {name for name in names if re.search(pattern, name)}
    except (re.error, TypeError) as error:
      raise InputError(f"config.optim.freeze: found {pattern!r}, expected a regular expression: {error}") from error
    if not found:
      raise InputError(
        f"config.optim.freeze: found {pattern!r}, expected a regular expression that fits the name of a parameter, "
        f"such as {min(names)}"
      )
    frozen |= found
  if len(frozen) == len(names):
    raise InputError(f"config.optim.freeze: found {tuple(patterns)}, expected some parameters to be left to train")
  return frozenset(frozen)


def _by_name(
  inner: optax.GradientTransformation, factors: Mapping[str, float], undecayed: Collection[str]
) -> optax.GradientTransformation:
  """A whole optimizer, with its updates scaled by name, and parameters that its weight decay does not reach.

  Scaling what comes out, with AdamW as with Muon, scales the step and the decoupled decay alike, as a learning rate of
  its own would; the moments never see it. AdamW and Muon look at parameters for their decay alone (Muon has no mask
  for the part that is AdamW's), so those shown as zeros do not decay. The state has the form of the inner one: both
  can be changed from one start of a run to the next.
  """

  def update(
    gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    shown = {name: jnp.zeros_like(value) if name in undecayed else value for name, value in params.items()}
    updates, state = inner.update(gradients, state, shown)
    return {name: factors[name] * value for name, value in updates.items()}, state

  return optax.GradientTransformation(inner.init, update)
