"""Attention over a grid of patches with decomposed relative positions (MViTv2, arXiv 2112.01526, section 4.1).

The logit of a key at (i, j) for a query at (y, x) is

    scale * q . k  +  q . R_h[y - i]  +  q . R_w[x - j]

with one table per axis and the UNSCALED query in the last two terms. In: queries, keys and values of all heads as the
linear layer gives them, `[B, rows * cols, 3, heads, head_dim]`. Out: `[B, rows * cols, heads, head_dim]`. `reference`
is the formula written down and the truth in tests; the others compute the same:

    folded     one product for the logits, all scores in memory; any device
    blockwise  scores of a few heads at a time, in a CPU's cache
    cudnn      cuDNN's flash attention, scores never in memory; NVIDIA, bfloat16
    splash     the Pallas kernel that comes with JAX, likewise; TPU
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float

from seggpt_jax.model.attention.blockwise import blockwise
from seggpt_jax.model.attention.flash import cudnn, splash
from seggpt_jax.model.attention.relative_positions import extend, relative_logits
from seggpt_jax.model.config import SegGPTConfig


def reference(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b t n d"]:
  """The formula as it stands: logits, plus the two biases broadcast over the keys, softmax in float32."""
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
  """The products of all queries with all keys, in float32 whatever they are given in.

  JAX would make the gradient of that with float32 products of the size of the scores, at half of bfloat16's rate or
  less on GPUs. Here the gradient of the scores is rounded to the factors' dtype first, as flash attention does it.
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
  """The biases folded into the contraction (`extend`): one matrix product gives the logits."""
  value = qkv[:, :, 2]
  logits = _float32_logits(*extend(qkv, rel_pos_h, rel_pos_w, grid))
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bnqk,bknd->bqnd", weights, value)


IMPLEMENTATIONS: dict[str, Callable] = {
  "reference": reference,
  "folded": folded,
  "blockwise": blockwise,
  "cudnn": cudnn,
  "splash": splash,
}
HOLD_ALL_SCORES = ("reference", "folded")
# Where there is none for a platform, or it does not compile, it is "folded".
_BEST = {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"}


def choose(name: str, config: SegGPTConfig, dtype: jnp.dtype) -> str:
  """The implementation that is meant by a name.

  Args:
    name: a key of `IMPLEMENTATIONS`, or "auto" for the best that the default backend compiles.
    config: the architecture.
    dtype: compute dtype.

  Raises:
    ValueError: unknown name.
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
  """Why this machine does not compile an implementation, forward and backward, if it does not."""
  del platform  # part of the key alone: it decides what is compiled for
  if name in ("folded", "blockwise"):
    return None  # for any device, so that a trial would only cost time
  rows, cols = config.grid
  qkv = jax.ShapeDtypeStruct((1, rows * cols, 3, config.num_heads, config.head_dim), dtype)
  rel_pos_h, rel_pos_w = (jax.ShapeDtypeStruct((2 * n - 1, config.head_dim), jnp.float32) for n in (rows, cols))

  def loss(qkv, rel_pos_h, rel_pos_w):
    return jnp.sum(IMPLEMENTATIONS[name](qkv, rel_pos_h, rel_pos_w, config.grid).astype(jnp.float32))

  try:
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(qkv, rel_pos_h, rel_pos_w).compile()
  # What libraries raise for shapes, dtypes, devices and versions they do not support; `choose` passes the reason on.
  except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  return None
