"""Builds the optimizer: the values of config.optim in, an optax transformation out.

This covers AdamW or Muon, a learning rate in cosine cycles or a single cosine, layer-wise learning-rate decay, weight
decay for matrices only, and frozen parameters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from seggpt_jax.errors import InputError
from seggpt_jax.model.adapters import is_adapter_name
from seggpt_jax.model.matcher import FROZEN

# The first match wins. Every parameter has to match a row: whoever adds one has to decide on its layer and its decay.
# The layers are those of BEiT's and MAE's fine-tuning (arXiv 2106.08254, 2111.06377): the embedding is layer 0, block i
# is layer i + 1, everything after the blocks is the last layer.
_LAYERS: tuple[tuple[str, str], ...] = (
  (r"^(patch_embed\.|pos_embed$|mask_token$|segment_token_[xy]$|type_token_(cls|ins)$)", "first"),
  (r"^(features\.|feature_(mean|scale)$|embed\.|key[48]\.|sharpness$|(prompt|query)_embed\.)", "first"),
  (r"^prompt\.", "first"),
  (r"^(?:lora\.)?blocks\.(\d+)\.", "block"),
  (r"^(norm|decoder_embed|decoder_pred)\.", "last"),
  (r"^(to[124]|skip4|conv[24][ab]|pixel_head)\.|^hint_(weights|trust)$", "last"),
)
# Only parameters that multiply features are decayed. A norm's scale near zero would switch off its features, and a
# position or a token near zero would carry no information.
_DECAYED: tuple[tuple[str, bool], ...] = (
  (r"\.kernel(\.[ab])?$", True),
  (r"^prompt\.", False),
  (r"\.bias$", False),
  (r"(^|\.)norm[12]?\.scale$", False),
  (r"\.rel_pos_[hw]$", False),
  (r"^(pos_embed|sharpness|hint_weights|hint_trust|feature_mean|feature_scale)$", False),
  (r"^(mask_token|segment_token_[xy]|type_token_(cls|ins))$", False),
)

# The original's values: the learning rate at both ends of a cosine; the factors from one cycle to the next on the
# length of the part after the warm-up, and on the peak; and the decay of the average of gradients.
MINIMUM, CYCLE_MULT, DECAY, _B1 = 1e-8, 1.2, 0.5, 0.9
_MOST_CYCLES = 1000
_FIRST_TRAINED = 3  # block of the ImageNet features


class Optimizer(NamedTuple):
  """The optimizer of a run."""

  transform: optax.GradientTransformation  # optax transformation of the trained parameters alone
  schedule: optax.Schedule  # step, counted from 0 -> learning rate; that of the last layer if layers differ
  frozen: frozenset[str]  # names of the parameters that are not trained


def make_optimizer(optim: ConfigDict, num_steps: int, params: Mapping[str, Any], kind: str = "none") -> Optimizer:
  """Returns the optimizer that config.optim describes; the moving average of parameters is not part of it.

  Args:
    optim: config.optim.
    num_steps: steps of the whole run.
    params: all parameters of the network and of an adapter, or only their shapes, by name.
    kind: config.adapter.kind. Without an adapter the network is trained; with one it is frozen, except for the
      ImageNet features from `_FIRST_TRAINED` on with "features".

  Raises:
    InputError: values do not fit each other or the network; names the key.
  """
  schedule = _make_schedule(optim, num_steps)
  descend = OPTIMIZERS[optim.name](schedule, b1=_B1, b2=optim.b2, weight_decay=optim.weight_decay)
  factors = _rate_factors(params, optim.layer_decay)
  undecayed = frozenset() if optim.decay_all else frozenset(name for name in params if not _is_decayed(name))
  # Always a chain of two, so that switching clipping does not change the form of the optimizer state.
  clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
  transform = optax.chain(clip, _by_name(descend, factors, undecayed))
  frozen = _frozen_names(optim.freeze, params) | {name for name in params if name.startswith(FROZEN)}
  if kind != "none":
    frozen = {name for name in params if not (is_adapter_name(name) or (kind == "features" and _learns(name)))}
  return Optimizer(transform, schedule, frozenset(frozen))


def _learns(name: str) -> bool:
  """Returns whether a parameter belongs to the ImageNet features that learn; earlier ones know edges and colors."""
  found = re.match(r"features\.blocks\.(\d+)\.", name)
  return found is not None and int(found[1]) >= _FIRST_TRAINED


def _make_schedule(optim: ConfigDict, num_steps: int) -> optax.Schedule:
  """Returns the learning-rate schedule that config.optim describes for a run: step, counted from 0 -> learning rate."""
  minimum = min(MINIMUM, optim.peak)
  if optim.schedule == "cosine":
    if num_steps <= optim.warmup:
      raise InputError(f"config.optim.warmup: found {optim.warmup}, expected less than config.num_steps = {num_steps}")
    return optax.warmup_cosine_decay_schedule(minimum, optim.peak, optim.warmup, num_steps, minimum)
  first_cycle, warmup = cycle_steps(optim.first_cycle, optim.warmup, num_steps)
  shape = {"cycle_mult": CYCLE_MULT, "warmup": warmup, "decay": DECAY, "minimum": minimum}
  return _cosine_cycles(optim.peak, first_cycle, **shape, num_steps=num_steps)


def cycle_steps(first_cycle: int, warmup: int, num_steps: int) -> tuple[int, int]:
  """Returns the steps of the first cycle and of its warm-up.

  Args:
    first_cycle: config.optim.first_cycle; 0 makes one cycle that reaches the minimum right after the last step.
    warmup: config.optim.warmup; where the cycle follows the run, the warm-up takes at most a tenth of it.
    num_steps: steps of the whole run.
  """
  return (first_cycle, warmup) if first_cycle else (num_steps + 1, min(warmup, num_steps // 10))


def _cosine_cycles(
  peak: float, first_cycle: int, *, cycle_mult: float, warmup: int, decay: float, minimum: float, num_steps: int
) -> optax.Schedule:
  """Returns cosine annealing with warm restarts (arXiv 1608.03983), each with a linear warm-up and a lower peak."""
  if first_cycle <= warmup:
    raise InputError(
      f"config.optim.first_cycle: found {first_cycle}, expected more than config.optim.warmup = {warmup}"
    )
  lengths = [first_cycle]
  while sum(lengths) <= num_steps:
    if len(lengths) == _MOST_CYCLES:
      raise InputError(
        f"config.optim.first_cycle: found {first_cycle}, expected longer cycles: {num_steps} steps would have "
        f"more than {_MOST_CYCLES}"
      )
    # The original's scheduler rounds down too.
    lengths.append(int((lengths[-1] - warmup) * cycle_mult) + warmup)
  starts = np.cumsum([0, *lengths[:-1]])
  peaks = np.maximum(peak * decay ** np.arange(len(lengths)), minimum).astype(np.float32)
  # Tables, not optax.sgdr_schedule: with a part of the program for each cycle, XLA rounds the update differently when
  # only the number of steps changes, and a longer run would not repeat the shorter one bit for bit.

  def schedule(count):
    cycle = jnp.searchsorted(starts, count, side="right") - 1
    count, top, length = count - jnp.asarray(starts)[cycle], jnp.asarray(peaks)[cycle], jnp.asarray(lengths)[cycle]
    rising = minimum + (top - minimum) * count / max(warmup, 1)
    share = jnp.minimum((count - warmup) / (length - warmup), 1.0)
    return jnp.where(count < warmup, rising, minimum + (top - minimum) * 0.5 * (1 + jnp.cos(jnp.pi * share)))

  return schedule


def adamw(schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
  """Returns AdamW (arXiv 1711.05101) as PyTorch has it: decoupled decay, scaled by the learning rate."""
  return optax.adamw(schedule, b1=b1, b2=b2, eps=1e-8, weight_decay=weight_decay)


def muon(schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
  """Returns Muon (arXiv 2502.16982) with Nesterov momentum: orthogonal updates for matrices of blocks, else AdamW.

  Updates have the root mean square of Adam's, so that both take the same learning rate. With Muon a tiny SegGPT left
  the plateau on which it predicts one color everywhere after 200 to 300 steps.
  """

  def dimensions(params: Mapping[str, Any]) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    matrices = optax.contrib.MuonDimensionNumbers()
    # Embedding and decoder are left out since one of their sides are pixels, and so are the tables of positions.
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


def _layer_of(name: str, depth: int) -> int:
  """Returns the layer of a parameter, from 0 (the embedding) to `depth` + 1 (everything after the blocks)."""
  match, layer = _look_up(name, _LAYERS, "layers")
  return int(match[1]) + 1 if layer == "block" else {"first": 0, "last": depth + 1}[layer]


def _is_decayed(name: str) -> bool:
  """Returns whether weight decay applies to a parameter, which it does for matrices and convolutions."""
  return _look_up(name, _DECAYED, "weight decay")[1]


def _look_up(name: str, table: Sequence[tuple[str, Any]], title: str) -> tuple[re.Match, Any]:
  for pattern, value in table:
    if match := re.search(pattern, name):
      return match, value
  raise ValueError(f"{name}: found in no row of the table of {title}, expected in one")


def _rate_factors(names: Collection[str], layer_decay: float) -> dict[str, float]:
  """Returns the factor on each parameter's learning rate, for layer-wise decay (arXiv 2106.08254)."""
  depth = max(int(name.split(".")[1]) for name in names if name.startswith("blocks.")) + 1
  return {name: layer_decay ** (depth + 1 - _layer_of(name, depth)) for name in names}


def _frozen_names(patterns: Collection[str], names: Collection[str]) -> frozenset[str]:
  """Returns the names in which one of the regular expressions is found."""
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
  """Returns an optimizer with updates scaled by parameter name, and some parameters exempt from weight decay.

  Scaling an update of AdamW or Muon acts as a learning rate of its own. Parameters shown to them as zeros do not decay
  (optax's Muon has no decay mask for its AdamW part). The state has the form of the inner one.
  """

  def update(
    gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    shown = {name: jnp.zeros_like(value) if name in undecayed else value for name, value in params.items()}
    updates, state = inner.update(gradients, state, shown)
    return {name: factors[name] * value for name, value in updates.items()}, state

  return optax.GradientTransformation(inner.init, update)
