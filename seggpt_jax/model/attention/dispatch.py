"""The table of attention implementations, and the choice of one for a device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from seggpt_jax.compilation import default_device
from seggpt_jax.model.attention.blockwise import blockwise
from seggpt_jax.model.attention.dense import folded, reference
from seggpt_jax.model.attention.flash import cudnn, splash
from seggpt_jax.model.attention.parts import LONGEST, cudnn_parts
from seggpt_jax.model.config import SegGPTConfig

IMPLEMENTATIONS: dict[str, Callable] = {
  "reference": reference,
  "folded": folded,
  "blockwise": blockwise,
  "cudnn": cudnn,
  "cudnn_parts": cudnn_parts,
  "splash": splash,
}
HOLD_ALL_SCORES = ("reference", "folded")
# The best first. Other platforms, and machines where none of them compiles, get "folded".
_BEST = {"cpu": ("blockwise",), "gpu": ("cudnn", "cudnn_parts"), "tpu": ("splash",)}


def choose(
  name: str, config: SegGPTConfig, dtype: jnp.dtype, *, device: jax.Device | None = None, training: bool = True
) -> str:
  """Returns the name of the implementation to use.

  Args:
    name: a key of `IMPLEMENTATIONS`, or "auto" for the best one that compiles for the device.
    config: the architecture.
    dtype: compute dtype.
    device: a device that the program is for; it may be part of a topology that is not there. By default that of new
      arrays.
    training: whether the gradients must compile, too.

  Raises:
    ValueError: the name is unknown.
  """
  if name not in ("auto", *IMPLEMENTATIONS):
    raise ValueError(f"attention: found {name!r}, expected auto or one of {', '.join(IMPLEMENTATIONS)}")
  if name != "auto":
    return name
  device = default_device() if device is None else device
  problems = []
  for best in _BEST.get(device.platform, ()):
    problem = _problem(best, device, config, jnp.dtype(dtype), training)
    if problem is None:
      break
    problems.append(f"{best}: {problem}")
  else:
    best = "folded"
  if problems:
    logging.log_first_n(logging.WARNING, "attention: %s in place of %s", 1, best, "; ".join(problems))
  return best


@functools.cache
def _problem(name: str, device: jax.Device, config: SegGPTConfig, dtype: jnp.dtype, training: bool) -> str | None:
  """Returns why an implementation does not compile for a device, or None if it does."""
  if name in ("folded", "blockwise"):
    return None  # these compile everywhere, so a trial would only cost time
  rows, cols = config.grid
  if name == "cudnn" and (problem := cudnn_problem(config, getattr(device, "compute_capability", ""))):
    return problem
  where = jax.sharding.SingleDeviceSharding(device)
  qkv = jax.ShapeDtypeStruct((1, rows * cols, 3, config.num_heads, config.head_dim), dtype, sharding=where)
  tables = [jax.ShapeDtypeStruct((2 * n - 1, config.head_dim), jnp.float32, sharding=where) for n in (rows, cols)]

  def loss(qkv, rel_pos_h, rel_pos_w):
    return jnp.sum(IMPLEMENTATIONS[name](qkv, rel_pos_h, rel_pos_w, config.grid).astype(jnp.float32))

  try:
    jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if training else loss).lower(qkv, *tables).compile()
  # Libraries raise these for shapes, dtypes, devices and versions they do not support. `choose` logs the reason.
  except (ImportError, AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  return None


def cudnn_problem(config: SegGPTConfig, capability: str) -> str | None:
  """Returns why cuDNN's flash attention refuses whole keys, or None. Compilers do not ask it about a GPU elsewhere.

  Args:
    config: the architecture.
    capability: compute capability of the GPU, such as "9.0"; "" if unknown.
  """
  length = config.head_dim + sum(config.grid)
  if length <= LONGEST or not capability or capability.startswith("9."):
    return None
  return f"found heads of {length} numbers with relative positions, expected at most {LONGEST} on GPUs but Hopper's"
