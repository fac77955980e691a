"""Attention with all scores in memory: the formula itself, and the formula as one matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seggpt_jax.model.attention.relative_positions import extend, relative_logits


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
  """Returns the products of all queries with all keys, in float32 for inputs of any dtype.

  JAX would compute the gradient with float32 products of the size of the scores, at half of bfloat16's rate or less on
  GPUs. Here the gradient of the scores is first rounded to the dtype of the inputs, as flash attention does.
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
