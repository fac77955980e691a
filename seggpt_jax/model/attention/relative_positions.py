"""Relative positions of a grid of patches, from one table for rows and one for columns.

In: tables with one embedding for each signed distance, queries, keys. Out: the logits that relative positions add, or
queries and keys that are extended such that their plain products are the logits.
"""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def fit_table(rel_pos: Float[Array, "distances d"], size: int) -> Float[Array, "fitting d"]:
  """Returns the table for an axis of `size` positions; a table stored for another size is resized linearly."""
  distances = 2 * size - 1
  if rel_pos.shape[0] == distances:
    return rel_pos
  stored = rel_pos.shape[0]
  resize = cv2.resize(np.eye(stored, dtype=np.float32), (stored, distances), interpolation=cv2.INTER_LINEAR)
  return jnp.matmul(resize, rel_pos, precision=jax.lax.Precision.HIGHEST)


def relative_index(size: int) -> Int[np.ndarray, "size size"]:
  """Returns the place of every (query, key) pair of positions in a table for an axis of `size` positions."""
  return np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1


def relative_logits(
  query: Float[Array, "b t n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> tuple[Float[Array, "b t n rows"], Float[Array, "b t n cols"]]:
  """Returns what each query adds to the logits of all keys in each row, and to those of all keys in each column."""
  rows, cols = grid
  batch, tokens, heads, dim = query.shape
  query = query.reshape(batch, rows, cols, heads, dim)
  table_h, table_w = (
    fit_table(table, size)[relative_index(size)].astype(query.dtype)
    for table, size in ((rel_pos_h, rows), (rel_pos_w, cols))
  )
  logits_h = jnp.einsum("byxnd,yid->byxni", query, table_h)
  logits_w = jnp.einsum("byxnd,xjd->byxnj", query, table_w)
  return logits_h.reshape(batch, tokens, heads, rows), logits_w.reshape(batch, tokens, heads, cols)


def one_hot_positions(grid: tuple[int, int]) -> Float[np.ndarray, "t positions"]:
  """Returns the row and the column of each token as one-hot vectors, side by side."""
  rows, cols = grid
  return np.concatenate([np.repeat(np.eye(rows), cols, axis=0), np.tile(np.eye(cols), (rows, 1))], axis=1)


def extend(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> tuple[Float[Array, "b t n e"], Float[Array, "b t n e"]]:
  """Returns queries and keys whose plain products are the logits.

  Each query is extended by its `rows + cols` relative logits, each key by one-hot vectors of its row and column. No
  bias of the size of the scores is formed or added, and the products with ones are exact.
  """
  query, key, _ = jnp.unstack(qkv, axis=2)
  logits = relative_logits(query, rel_pos_h, rel_pos_w, grid)
  positions = jnp.asarray(one_hot_positions(grid), key.dtype)[None, :, None]
  positions = jnp.broadcast_to(positions, (*key.shape[:3], positions.shape[-1]))
  return (
    jnp.concatenate([query * query.shape[-1] ** -0.5, *logits], axis=-1),
    jnp.concatenate([key, positions], axis=-1),
  )
