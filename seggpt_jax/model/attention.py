"""Attention over a grid of patches with decomposed relative positions (MViTv2, arXiv 2112.01526, section 4.1).

The logit of a key at (i, j) for a query at (y, x) is

    scale * q . k  +  q . R_h[y - i]  +  q . R_w[x - j]

with one table per axis and the UNSCALED query in the last two terms. In: queries, keys and values `[B, heads, rows *
cols, head_dim]`. Out: the same shape. `reference` is the formula written down and the truth in tests; `folded`
computes the same and is what runs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def linear_resize_matrix(out_size: int, in_size: int) -> Float[np.ndarray, "o i"]:
  """The matrix of PyTorch's `F.interpolate(mode="linear", align_corners=False)`."""
  position = np.maximum((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0.0)
  lower = np.minimum(position.astype(int), in_size - 1)
  upper = np.minimum(lower + 1, in_size - 1)
  weight = position - lower
  matrix = np.zeros((out_size, in_size))
  np.add.at(matrix, (np.arange(out_size), lower), 1.0 - weight)
  np.add.at(matrix, (np.arange(out_size), upper), weight)
  return matrix.astype(np.float32)


def relative_table(rel_pos: Float[Array, "distances d"], size: int) -> Float[Array, "size size d"]:
  """The embedding of every (query, key) pair of positions along one axis.

  Args:
    rel_pos: one embedding for each signed distance, from -(S - 1) to S - 1 for the size S it was stored for.
    size: number of positions along the axis; a table stored for another size is resized linearly.

  Returns:
    `[query, key, d]`.
  """
  distances = 2 * size - 1
  if rel_pos.shape[0] != distances:
    resize = jnp.asarray(linear_resize_matrix(distances, rel_pos.shape[0]))
    rel_pos = jnp.matmul(resize, rel_pos, precision=jax.lax.Precision.HIGHEST)
  index = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
  return rel_pos[index]


def _relative_logits(query, rel_pos_h, rel_pos_w, grid):
  """q . R_h `[B, heads, rows * cols, rows]` and q . R_w `[B, heads, rows * cols, cols]`."""
  rows, cols = grid
  batch, heads, tokens, dim = query.shape
  query = query.reshape(batch, heads, rows, cols, dim)
  table_h = relative_table(rel_pos_h, rows).astype(query.dtype)
  table_w = relative_table(rel_pos_w, cols).astype(query.dtype)
  logits_h = jnp.einsum("bnyxd,yid->bnyxi", query, table_h)
  logits_w = jnp.einsum("bnyxd,xjd->bnyxj", query, table_w)
  return logits_h.reshape(batch, heads, tokens, rows), logits_w.reshape(batch, heads, tokens, cols)


def reference(
  query: Float[Array, "b n t d"],
  key: Float[Array, "b n t d"],
  value: Float[Array, "b n t d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b n t d"]:
  """The formula as it stands: logits, plus the two biases broadcast over the keys, softmax in float32."""
  rows, cols = grid
  batch, heads, tokens, dim = query.shape
  logits_h, logits_w = _relative_logits(query, rel_pos_h, rel_pos_w, grid)
  logits = jnp.einsum("bnqd,bnkd->bnqk", query * dim**-0.5, key)
  logits = logits.reshape(batch, heads, tokens, rows, cols) + logits_h[..., :, None] + logits_w[..., None, :]
  weights = jax.nn.softmax(logits.reshape(batch, heads, tokens, tokens).astype(jnp.float32), axis=-1)
  return jnp.einsum("bnqk,bnkd->bnqd", weights.astype(value.dtype), value)


@jax.custom_vjp
def _float32_logits(query: Float[Array, "b n q d"], key: Float[Array, "b n k d"]) -> Float[Array, "b n q k"]:
  """The products of all queries with all keys, in float32 whatever they are given in.

  JAX would make the gradient of that with float32 products of the size of the scores, at half of bfloat16's rate or
  less on GPUs. Here the gradient of the scores is rounded to the factors' dtype first, as flash attention does it.
  """
  return jnp.einsum("bnqd,bnkd->bnqk", query, key, preferred_element_type=jnp.float32)


def _float32_logits_forward(query, key):
  return _float32_logits(query, key), (query, key)


def _float32_logits_backward(factors, gradient):
  query, key = factors
  gradient = gradient.astype(query.dtype)
  return jnp.einsum("bnqk,bnkd->bnqd", gradient, key), jnp.einsum("bnqk,bnqd->bnkd", gradient, query)


_float32_logits.defvjp(_float32_logits_forward, _float32_logits_backward)


def folded(
  query: Float[Array, "b n t d"],
  key: Float[Array, "b n t d"],
  value: Float[Array, "b n t d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b n t d"]:
  """The biases folded into the contraction: one matrix product gives the logits.

  The query is extended by its `rows + cols` relative logits and the key by one-hot vectors of its row and column, so
  that no bias of the size of the scores is ever formed or added. The products with ones are exact.
  """
  rows, cols = grid
  batch, heads, tokens, dim = query.shape
  logits_h, logits_w = _relative_logits(query, rel_pos_h, rel_pos_w, grid)
  extended_query = jnp.concatenate([query * dim**-0.5, logits_h, logits_w], axis=-1)
  one_hot = np.concatenate([np.repeat(np.eye(rows), cols, axis=0), np.tile(np.eye(cols), (rows, 1))], axis=1)
  one_hot = jnp.broadcast_to(jnp.asarray(one_hot, key.dtype)[None, None], (batch, heads, tokens, rows + cols))
  extended_key = jnp.concatenate([key, one_hot], axis=-1)
  logits = _float32_logits(extended_query, extended_key)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bnqk,bnkd->bnqd", weights, value)


IMPLEMENTATIONS: dict[str, Callable] = {"reference": reference, "folded": folded}
