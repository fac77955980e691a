"""Relative positions of a grid of patches, one table for rows and one for columns (MViTv2, arXiv 2112.01526, 4.1).

In: tables of one embedding for each signed distance, queries, keys. Out: the logits that positions add, or queries and
keys extended such that their plain products are the whole logits.
"""

from __future__ import annotations

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


def fit_table(rel_pos: Float[Array, "distances d"], size: int) -> Float[Array, "fitting d"]:
  """The table for an axis of `size` positions; one stored for another size is resized linearly."""
  distances = 2 * size - 1
  if rel_pos.shape[0] == distances:
    return rel_pos
  resize = jnp.asarray(linear_resize_matrix(distances, rel_pos.shape[0]))
  return jnp.matmul(resize, rel_pos, precision=jax.lax.Precision.HIGHEST)


def relative_table(rel_pos: Float[Array, "distances d"], size: int) -> Float[Array, "size size d"]:
  """The embedding of every (query, key) pair of positions along one axis.

  Args:
    rel_pos: one embedding for each signed distance, from -(S - 1) to S - 1 for the size S it was stored for.
    size: number of positions along the axis; a table stored for another size is resized linearly.

  Returns:
    `[query, key, d]`.
  """
  index = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
  return fit_table(rel_pos, size)[index]


def relative_logits(
  query: Float[Array, "b t n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> tuple[Float[Array, "b t n rows"], Float[Array, "b t n cols"]]:
  """What each query adds to the logits of all keys in a row, and of all in a column."""
  rows, cols = grid
  batch, tokens, heads, dim = query.shape
  query = query.reshape(batch, rows, cols, heads, dim)
  table_h = relative_table(rel_pos_h, rows).astype(query.dtype)
  table_w = relative_table(rel_pos_w, cols).astype(query.dtype)
  logits_h = jnp.einsum("byxnd,yid->byxni", query, table_h)
  logits_w = jnp.einsum("byxnd,xjd->byxnj", query, table_w)
  return logits_h.reshape(batch, tokens, heads, rows), logits_w.reshape(batch, tokens, heads, cols)


def one_hot_positions(grid: tuple[int, int]) -> Float[np.ndarray, "t positions"]:
  """For each token its row and its column as one-hot vectors, side by side."""
  rows, cols = grid
  return np.concatenate([np.repeat(np.eye(rows), cols, axis=0), np.tile(np.eye(cols), (rows, 1))], axis=1)


def extend(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> tuple[Float[Array, "b t n e"], Float[Array, "b t n e"]]:
  """Queries and keys whose plain products are the logits.

  The query is extended by its `rows + cols` relative logits and the key by one-hot vectors of its row and column, so
  that no bias of the size of the scores is ever formed or added. The products with ones are exact.
  """
  query, key, _ = jnp.unstack(qkv, axis=2)
  logits = relative_logits(query, rel_pos_h, rel_pos_w, grid)
  positions = jnp.asarray(one_hot_positions(grid), key.dtype)[None, :, None]
  positions = jnp.broadcast_to(positions, (*key.shape[:3], positions.shape[-1]))
  return (
    jnp.concatenate([query * query.shape[-1] ** -0.5, *logits], axis=-1),
    jnp.concatenate([key, positions], axis=-1),
  )
