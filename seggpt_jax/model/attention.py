"""Attention over a grid of patches with decomposed relative positions (MViTv2, arXiv 2112.01526, section 4.1).

The logit of a key at (i, j) for a query at (y, x) is

    scale * q . k  +  q . R_h[y - i]  +  q . R_w[x - j]

with one table per axis and the UNSCALED query in the last two terms. In: queries, keys and values of all heads as the
linear layer gives them, `[B, rows * cols, 3, heads, head_dim]`. Out: `[B, rows * cols, heads, head_dim]`. `reference`
is the formula written down and the truth in tests; the others compute the same and differ in what they hold in memory:

    folded     all scores at once; any device
    blockwise  the scores of a few heads, in a CPU's cache, forward and backward
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# The scores that `blockwise` works on at once, in bytes: what a core's second-level cache commonly holds. One head of
# ViT-Large has 9.8 MB and is not cut further: cutting it gained nothing.
_BLOCK_BYTES = 2_000_000


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


def _fit_table(rel_pos: Float[Array, "distances d"], size: int) -> Float[Array, "fitting d"]:
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
  return _fit_table(rel_pos, size)[index]


def _relative_logits(query, rel_pos_h, rel_pos_w, grid):
  """q . R_h `[B, rows * cols, heads, rows]` and q . R_w `[B, rows * cols, heads, cols]`."""
  rows, cols = grid
  batch, tokens, heads, dim = query.shape
  query = query.reshape(batch, rows, cols, heads, dim)
  table_h = relative_table(rel_pos_h, rows).astype(query.dtype)
  table_w = relative_table(rel_pos_w, cols).astype(query.dtype)
  logits_h = jnp.einsum("byxnd,yid->byxni", query, table_h)
  logits_w = jnp.einsum("byxnd,xjd->byxnj", query, table_w)
  return logits_h.reshape(batch, tokens, heads, rows), logits_w.reshape(batch, tokens, heads, cols)


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
  logits_h, logits_w = (
    jnp.swapaxes(logits, 1, 2) for logits in _relative_logits(query, rel_pos_h, rel_pos_w, grid)
  )
  logits = jnp.einsum("bqnd,bknd->bnqk", query * dim**-0.5, key)
  logits = logits.reshape(batch, heads, tokens, rows, cols) + logits_h[..., :, None] + logits_w[..., None, :]
  weights = jax.nn.softmax(logits.reshape(batch, heads, tokens, tokens).astype(jnp.float32), axis=-1)
  return jnp.einsum("bnqk,bknd->bqnd", weights.astype(value.dtype), value)


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
  logits = _relative_logits(query, rel_pos_h, rel_pos_w, grid)
  positions = jnp.asarray(one_hot_positions(grid), key.dtype)[None, :, None]
  positions = jnp.broadcast_to(positions, (*key.shape[:3], positions.shape[-1]))
  return (
    jnp.concatenate([query * query.shape[-1] ** -0.5, *logits], axis=-1),
    jnp.concatenate([key, positions], axis=-1),
  )


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


def blockwise(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
) -> Float[Array, "b t n d"]:
  """`folded`, a few heads after the other, so that their scores never leave the cache.

  The backward pass goes block by block too and makes the scores again from one number that is kept for each query, the
  logarithm of its softmax's denominator, as in flash attention (arXiv 2205.14135).
  """
  rows, cols = grid
  table = jnp.concatenate([_fit_table(rel_pos_h, rows), _fit_table(rel_pos_w, cols)]).astype(qkv.dtype)
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

  def pull_back(table_gradient, block):
    qkv, (output, gradient), log_total = block[0], (_heads_first(x)[0] for x in block[1:3]), block[3]
    query, key, value = _heads_first(qkv)
    relative, pull_back_relative = jax.vjp(lambda query, table: _shifted_logits(query, table, grid), query, table)
    weights = jnp.exp(_keys_first_logits(query, key, relative, grid) - log_total[:, None])
    # The softmax's gradient: of each query's weights, less their mean under the weights themselves.
    mean = jnp.sum(output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    of_weights = jnp.einsum("hkd,hqd->hkq", value, gradient, preferred_element_type=jnp.float32)
    of_logits = (weights * (of_weights - mean[:, None])).astype(qkv.dtype)
    of_value = jnp.einsum("hkq,hqd->hkd", weights.astype(qkv.dtype), gradient)
    scale = query.shape[-1] ** -0.5
    of_key = jnp.einsum("hkq,hqd->hkd", of_logits, query * scale)
    of_extended = jnp.swapaxes(jnp.einsum("hke,hkq->heq", _extended_keys(key, grid), of_logits), 1, 2)
    of_query, of_relative = jnp.split(of_extended, [query.shape[-1]], axis=-1)
    by_relative, of_table = pull_back_relative(of_relative)
    found = jnp.stack([of_query * scale + by_relative, of_key, of_value])
    return table_gradient + of_table.astype(jnp.float32), _tokens_first(found, canvases)

  blocks = (
    *(_cut(x, canvases, heads) for x in (qkv, output[:, :, None], gradient[:, :, None])),
    log_total,
  )
  table_gradient, of_qkv = jax.lax.scan(pull_back, jnp.zeros(table.shape, jnp.float32), blocks)
  return _join(of_qkv, qkv.shape), table_gradient.astype(table.dtype)


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _block_size(qkv: Float[Array, "b t 3 n d"]) -> tuple[int, int]:
  """How many canvases and heads a block has: all heads of several canvases, or some heads of one, at least one."""
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
  """Inverse of `_cut`; `shape` is that of what was cut, but for the number of parts c."""
  batch, tokens, _, all_heads, dim = shape
  _, canvases, _, parts, heads, _ = x.shape
  x = x.reshape(batch // canvases, all_heads // heads, canvases, tokens, parts, heads, dim)
  return jnp.moveaxis(x, 1, 4).reshape(batch, tokens, parts, all_heads, dim)


def _heads_first(x: Float[Array, "m t c h d"]) -> Float[Array, "c mh t d"]:
  canvases, tokens, parts, heads, dim = x.shape
  return jnp.transpose(x, (2, 0, 3, 1, 4)).reshape(parts, canvases * heads, tokens, dim)


def _tokens_first(x: Float[Array, "c mh t d"], canvases: int) -> Float[Array, "m t c h d"]:
  """Inverse of `_heads_first`."""
  parts, _, tokens, dim = x.shape
  return jnp.transpose(x.reshape(parts, canvases, -1, tokens, dim), (1, 3, 0, 2, 4))


def _extended_keys(key: Float[Array, "h t d"], grid: tuple[int, int]) -> Float[Array, "h t e"]:
  positions = jnp.asarray(one_hot_positions(grid), key.dtype)
  return jnp.concatenate([key, jnp.broadcast_to(positions, (*key.shape[:2], positions.shape[-1]))], axis=-1)


def _keys_first_logits(query, key, relative, grid) -> Float[Array, "h k q"]:
  """The logits in float32, keys before queries.

  A maximum or a sum over keys then has one query in each lane of a vector unit, and what belongs to a query is added
  to a row as it stands: both are several times faster than along the last axis.
  """
  extended = jnp.concatenate([query * query.shape[-1] ** -0.5, relative], axis=-1)
  return jnp.einsum("hke,hqe->hkq", _extended_keys(key, grid), extended, preferred_element_type=jnp.float32)


def _shifted_logits(
  query: Float[Array, "h t d"], table: Float[Array, "distances d"], grid: tuple[int, int]
) -> Float[Array, "h t positions"]:
  """The relative logits by one product with the embeddings of all distances, of which each query then picks its own.

  `_relative_logits` has a product for every row and every column instead, and brings the queries into both orders: on
  CPUs that costs more than it saves.
  """
  return _pick_distances(jnp.einsum("htd,ud->htu", query, table), grid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pick_distances(x: Float[Array, "h t distances"], grid: tuple[int, int]) -> Float[Array, "h t positions"]:
  """From logits by distance to logits by row and by column of the key."""
  picked, _ = _distance_indices(grid)
  return x.reshape(len(x), -1)[:, picked.ravel()].reshape(len(x), *picked.shape)


def _unpick_distances(grid, _, gradient):
  # Where a distance goes to at most one place, the gradient is another choice of elements, and no sum over scattered
  # ones.
  _, source = _distance_indices(grid)
  found = gradient.reshape(len(gradient), -1)[:, np.maximum(source, 0).ravel()].reshape(-1, *source.shape)
  return (jnp.where(source >= 0, found, 0),)


_pick_distances.defvjp(lambda x, grid: (_pick_distances(x, grid), None), _unpick_distances)


@functools.cache
def _distance_indices(
  grid: tuple[int, int],
) -> tuple[Int[np.ndarray, "t positions"], Int[np.ndarray, "t distances"]]:
  """Flat indices into `[t, distances]` for each of `[t, positions]`, and back: -1 for distances outside the grid."""
  rows, cols = grid
  tokens, distances = rows * cols, 2 * (rows + cols) - 2
  y, x = (part[:, None] for part in np.divmod(np.arange(tokens), cols))
  by_row = y - np.arange(rows) + rows - 1
  by_col = x - np.arange(cols) + cols - 1 + 2 * rows - 1
  picked = np.concatenate([by_row, by_col], axis=1) + distances * np.arange(tokens)[:, None]
  source = np.full(tokens * distances, -1)
  source[picked.ravel()] = np.arange(picked.size)
  return picked, source.reshape(tokens, distances)


IMPLEMENTATIONS: dict[str, Callable] = {"reference": reference, "folded": folded, "blockwise": blockwise}
