"""The table of attention implementations, and the choice of one for a device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from seggpt_jax.model.attention.blockwise import blockwise
from seggpt_jax.model.attention.dense import folded, reference
from seggpt_jax.model.attention.flash import cudnn, splash
from seggpt_jax.model.config import SegGPTConfig

IMPLEMENTATIONS: dict[str, Callable] = {
  "reference": reference,
  "folded": folded,
  "blockwise": blockwise,
  "cudnn": cudnn,
  "splash": splash,
}
HOLD_ALL_SCORES = ("reference", "folded")
# Other platforms, and machines where the best one does not compile, get "folded".
_BEST = {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"}


def choose(name: str, config: SegGPTConfig, dtype: jnp.dtype) -> str:
  """Returns the name of the implementation to use.

  Args:
    name: a key of `IMPLEMENTATIONS`, or "auto" for the best one that the default backend compiles.
    config: the architecture.
    dtype: compute dtype.

  Raises:
    ValueError: the name is unknown.
  """
  if name not in ("auto", *IMPLEMENTATIONS):
    raise ValueError(f"attention: found {name!r}, expected auto or one of {', '.join(IMPLEMENTATIONS)}")
  if name != "auto":
    return name
  platform = jax.default_backend()
  best = _BEST.get(platform, "folded")
  problem = _problem(best, platform, config, jnp.dtype(dtype))
  if problem is None:
    return best
  logging.log_first_n(logging.WARNING, "attention: folded in place of %s: %s", 1, best, problem)
  return "folded"


@functools.cache
def _problem(name: str, platform: str, config: SegGPTConfig, dtype: jnp.dtype) -> str | None:
  """Returns why this machine cannot compile an implementation, forward and backward, or None if it can."""
  del platform  # only a cache key: the default backend decides what is compiled for
  if name in ("folded", "blockwise"):
    return None  # these compile everywhere, so a trial would only cost time
  rows, cols = config.grid
  qkv = jax.ShapeDtypeStruct((1, rows * cols, 3, config.num_heads, config.head_dim), dtype)
  rel_pos_h, rel_pos_w = (jax.ShapeDtypeStruct((2 * n - 1, config.head_dim), jnp.float32) for n in (rows, cols))

  def loss(qkv, rel_pos_h, rel_pos_w):
    return jnp.sum(IMPLEMENTATIONS[name](qkv, rel_pos_h, rel_pos_w, config.grid).astype(jnp.float32))

  try:
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(qkv, rel_pos_h, rel_pos_w).compile()
  # Libraries raise these for shapes, dtypes, devices and versions they do not support. `choose` logs the reason.
  except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  return None
