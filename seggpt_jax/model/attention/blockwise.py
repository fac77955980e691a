"""Attention a few heads at a time, so that the scores never leave a CPU's cache.

The backward pass also goes block by block. It recomputes the scores from one number kept for each query, the logarithm
of its softmax's denominator, as flash attention does (arXiv 2205.14135).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seggpt_jax.model.attention.relative_positions import fit_table, one_hot_positions

# Bytes of a block's scores: what a core's second-level cache commonly holds. One head of ViT-Large needs 9.8 MB and is
# not cut further, because that gained nothing.
_BLOCK_BYTES = 2_000_000


def blockwise(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b t n d"]:
  """Computes attention in blocks of as many canvases and heads as fit `_BLOCK_BYTES`."""
  rows, cols = grid
  table = jnp.concatenate([fit_table(rel_pos_h, rows), fit_table(rel_pos_w, cols)]).astype(qkv.dtype)
  return _blockwise(qkv, table, grid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _blockwise(
  qkv: Float[Array, "b t 3 n d"], table: Float[Array, "distances d"], grid: tuple[int, int]
) -> Float[Array, "b t n d"]:
  return _blockwise_forward(qkv, table, grid)[0]


def _blockwise_forward(qkv, table, grid):
  canvases, heads = _block_size(qkv)

  def attend(block):
    query, key, value = _heads_first(block)
    logits = _keys_first_logits(query, key, _shifted_logits(query, table, grid), grid)
    highest = jnp.max(logits, axis=1, keepdims=True)
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=1, keepdims=True)
    output = jnp.einsum("hkd,hkq->hdq", value, weights.astype(value.dtype)) / total.astype(value.dtype)
    return _tokens_first(jnp.swapaxes(output, 1, 2)[None], canvases), (highest + jnp.log(total))[:, 0]

  output, log_total = jax.lax.map(attend, _cut(qkv, canvases, heads))
  output = _join(output, qkv.shape)[:, :, 0]
  return output, (qkv, table, output, log_total)


def _blockwise_backward(grid, kept, gradient):
  qkv, table, output, log_total = kept
  canvases, heads = _block_size(qkv)

  def pull_back(d_table_sum, block):
    qkv, (output, gradient), log_total = block[0], (_heads_first(x)[0] for x in block[1:3]), block[3]
    query, key, value = _heads_first(qkv)
    relative, pull_back_relative = jax.vjp(lambda query, table: _shifted_logits(query, table, grid), query, table)
    weights = jnp.exp(_keys_first_logits(query, key, relative, grid) - log_total[:, None])
    # The gradient of a softmax: the weights' own gradient, less its mean under the weights.
    mean = jnp.sum(output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    d_weights = jnp.einsum("hkd,hqd->hkq", value, gradient, preferred_element_type=jnp.float32)
    d_logits = (weights * (d_weights - mean[:, None])).astype(qkv.dtype)
    d_value = jnp.einsum("hkq,hqd->hkd", weights.astype(qkv.dtype), gradient)
    scale = query.shape[-1] ** -0.5
    d_key = jnp.einsum("hkq,hqd->hkd", d_logits, query * scale)
    d_extended = jnp.swapaxes(jnp.einsum("hke,hkq->heq", _extended_keys(key, grid), d_logits), 1, 2)
    d_scaled_query, d_relative = jnp.split(d_extended, [query.shape[-1]], axis=-1)
    d_query, d_table = pull_back_relative(d_relative)
    d_qkv = jnp.stack([d_scaled_query * scale + d_query, d_key, d_value])
    return d_table_sum + d_table.astype(jnp.float32), _tokens_first(d_qkv, canvases)

  blocks = (*(_cut(x, canvases, heads) for x in (qkv, output[:, :, None], gradient[:, :, None])), log_total)
  d_table, d_qkv = jax.lax.scan(pull_back, jnp.zeros(table.shape, jnp.float32), blocks)
  return _join(d_qkv, qkv.shape), d_table.astype(table.dtype)


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _block_size(qkv: Float[Array, "b t 3 n d"]) -> tuple[int, int]:
  """Returns how many canvases and heads a block has: all heads of several canvases, or some heads of one canvas."""
  batch, tokens, _, heads, _ = qkv.shape
  most = max(1, _BLOCK_BYTES // (4 * tokens**2))

  def largest_divisor(count, most):
    return max(n for n in range(1, count + 1) if count % n == 0 and n <= most)

  return largest_divisor(batch, max(1, most // heads)), largest_divisor(heads, most)


def _cut(x: Float[Array, "b t c n d"], canvases: int, heads: int) -> Float[Array, "blocks m t c h d"]:
  batch, tokens, parts, all_heads, dim = x.shape
  x = x.reshape(batch // canvases, canvases, tokens, parts, all_heads // heads, heads, dim)
  return jnp.moveaxis(x, 4, 1).reshape(-1, canvases, tokens, parts, heads, dim)


def _join(x: Float[Array, "blocks m t c h d"], shape: tuple[int, ...]) -> Float[Array, "b t c n d"]:
  """Inverts `_cut`; `shape` is the shape of the array before the cut, whose number of parts c may differ."""
  batch, tokens, _, all_heads, dim = shape
  _, canvases, _, parts, heads, _ = x.shape
  x = x.reshape(batch // canvases, all_heads // heads, canvases, tokens, parts, heads, dim)
  return jnp.moveaxis(x, 1, 4).reshape(batch, tokens, parts, all_heads, dim)


def _heads_first(x: Float[Array, "m t c h d"]) -> Float[Array, "c mh t d"]:
  canvases, tokens, parts, heads, dim = x.shape
  return jnp.transpose(x, (2, 0, 3, 1, 4)).reshape(parts, canvases * heads, tokens, dim)


def _tokens_first(x: Float[Array, "c mh t d"], canvases: int) -> Float[Array, "m t c h d"]:
  """Inverts `_heads_first`."""
  parts, _, tokens, dim = x.shape
  return jnp.transpose(x.reshape(parts, canvases, -1, tokens, dim), (1, 3, 0, 2, 4))


def _extended_keys(key: Float[Array, "h t d"], grid: tuple[int, int]) -> Float[Array, "h t e"]:
  positions = jnp.asarray(one_hot_positions(grid), key.dtype)
  return jnp.concatenate([key, jnp.broadcast_to(positions, (*key.shape[:2], positions.shape[-1]))], axis=-1)


def _keys_first_logits(query, key, relative, grid) -> Float[Array, "h k q"]:
  """Returns float32 logits, keys before queries: sums over keys are then several times faster on vector units."""
  extended = jnp.concatenate([query * query.shape[-1] ** -0.5, relative], axis=-1)
  return jnp.einsum("hke,hqe->hkq", _extended_keys(key, grid), extended, preferred_element_type=jnp.float32)


def _shifted_logits(
  query: Float[Array, "h t d"], table: Float[Array, "distances d"], grid: tuple[int, int]
) -> Float[Array, "h t positions"]:
  """Returns the relative logits by one product and a selection: cheaper on CPUs than the many of `relative_logits`."""
  return _pick_distances(jnp.einsum("htd,ud->htu", query, table), grid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pick_distances(x: Float[Array, "h t distances"], grid: tuple[int, int]) -> Float[Array, "h t positions"]:
  """Selects logits by row and by column of the key from logits by distance."""
  picked, _ = _distance_indices(grid)
  return x.reshape(len(x), -1)[:, picked.ravel()].reshape(len(x), *picked.shape)


def _unpick_distances(grid, _, gradient):
  # Each distance of a query is selected at most once, so the gradient is another selection and needs no scatter-add.
  _, source = _distance_indices(grid)
  found = gradient.reshape(len(gradient), -1)[:, np.maximum(source, 0).ravel()].reshape(-1, *source.shape)
  return (jnp.where(source >= 0, found, 0),)


_pick_distances.defvjp(lambda x, grid: (_pick_distances(x, grid), None), _unpick_distances)


@functools.cache
def _distance_indices(grid: tuple[int, int]) -> tuple[Int[np.ndarray, "t positions"], Int[np.ndarray, "t distances"]]:
  """Returns flat indices into `[t, distances]` for `[t, positions]`, and back; -1 marks distances outside the grid."""
  rows, cols = grid
  tokens, distances = rows * cols, 2 * (rows + cols) - 2
  y, x = (part[:, None] for part in np.divmod(np.arange(tokens), cols))
  by_row = y - np.arange(rows) + rows - 1
  by_col = x - np.arange(cols) + cols - 1 + 2 * rows - 1
  picked = np.concatenate([by_row, by_col], axis=1) + distances * np.arange(tokens)[:, None]
  source = np.full(tokens * distances, -1)
  source[picked.ravel()] = np.arange(picked.size)
  return picked, source.reshape(tokens, distances)
