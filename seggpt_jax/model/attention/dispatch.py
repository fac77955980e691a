"""The table of attention implementations, the two that hold all scores in memory, and the choice for a device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float

from seggpt_jax.compilation import default_device
from seggpt_jax.model.attention.blockwise import blockwise
from seggpt_jax.model.attention.flash import cudnn, splash
from seggpt_jax.model.attention.parts import LONGEST, cudnn_parts
from seggpt_jax.model.attention.relative_positions import extend, relative_logits
from seggpt_jax.model.config import SegGPTConfig


def reference(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b t n d"]:
  """Computes the formula as it is written: logits, plus two biases broadcast over the keys, then a float32 softmax."""
  rows, cols = grid
  query, key, value = jnp.unstack(qkv, axis=2)
  batch, tokens, heads, dim = query.shape
  logits_h, logits_w = (jnp.swapaxes(logits, 1, 2) for logits in relative_logits(query, rel_pos_h, rel_pos_w, grid))
  logits = jnp.einsum("bqnd,bknd->bnqk", query * dim**-0.5, key)
  logits = logits.reshape(batch, heads, tokens, rows, cols) + logits_h[..., :, None] + logits_w[..., None, :]
  weights = jax.nn.softmax(logits.reshape(batch, heads, tokens, tokens).astype(jnp.float32), axis=-1)
  return jnp.einsum("bnqk,bknd->bqnd", weights.astype(value.dtype), value)


@jax.custom_vjp
def _float32_logits(query: Float[Array, "b q n d"], key: Float[Array, "b k n d"]) -> Float[Array, "b n q k"]:
  """Returns float32 products of queries and keys, whose gradient is rounded to the dtype of the inputs first.

  JAX would compute that gradient in float32, at half of bfloat16's rate or less on GPUs.
  """
  return jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32)


def _float32_logits_forward(query, key):
  return _float32_logits(query, key), (query, key)


def _float32_logits_backward(factors, gradient):
  query, key = factors
  gradient = gradient.astype(query.dtype)
  return jnp.einsum("bnqk,bknd->bqnd", gradient, key), jnp.einsum("bnqk,bqnd->bknd", gradient, query)


_float32_logits.defvjp(_float32_logits_forward, _float32_logits_backward)


def folded(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b t n d"]:
  """Computes the logits as one matrix product, with the biases folded into longer queries and keys (`extend`)."""
  value = qkv[:, :, 2]
  logits = _float32_logits(*extend(qkv, rel_pos_h, rel_pos_w, grid))
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bnqk,bknd->bqnd", weights, value)


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
    device: what the program is for, maybe of a topology that is not there; by default the device of new arrays.
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
