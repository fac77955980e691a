"""The feature ensemble without doing the same work K times: what inference runs.

The K canvases of a query differ in their upper halves, the prompts. Their lower halves start as the same tokens, and
the ensemble gives each the same mean after every attention, so they stay the same all the way: here the query half is
carried once beside its K prompt halves, and only attention sees whole canvases. Of the result, only the query half is
decoded. That is `K + 1` halves through the linear layers in place of `2 K`, and one through the decoder in place of
`2 K`; `SegGPT.__call__`, which takes any masks and trains, is the truth that this is tested against.

In: normalized pixels and targets of K prompts and of the query. Out: the query's painted colors.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seggpt_jax import canvas
from seggpt_jax.model.attention import dispatch as attention
from seggpt_jax.model.seggpt import Block, SegGPT, SegType, pair_streams, part_streams
from seggpt_jax.typing import AnyArray

# That attend at once where all scores are held: those of one canvas take 157 MB in the released network.
_MOST_CANVASES = 8


def paint_queries(
  model: SegGPT,
  queries: Float[AnyArray, "q h w 3"],
  prompts: Float[AnyArray, "q k h w 3"],
  prompt_targets: Float[AnyArray, "q k h w 3"],
  painted: Float[AnyArray, "q h w 3"],
  patch_mask: Bool[AnyArray, "q rows cols"],
  seg_type: SegType = "semantic",
) -> Float[Array, "q h w 3"]:
  """What `model` paints in the query halves of canvases with K prompts for each query.

  Args:
    model: the network.
    queries: Q images of half a canvas, normalized.
    prompts: K images for each, likewise.
    prompt_targets: their colored masks, likewise.
    painted: the target of the query as far as it is known, likewise; what lies under `patch_mask` is not read.
    patch_mask: True for patches of the query's target that are hidden.
    seg_type: "semantic" or "instance".

  Returns:
    Normalized colors of the queries, float32.
  """
  q, k = prompts.shape[:2]
  patch, (rows, cols) = model.config.patch_size, patch_mask.shape[1:]

  def halves(upper, lower):
    return jnp.concatenate([upper, lower[:, None]], axis=1).reshape(q * (k + 1), *lower.shape[1:])

  images, targets = halves(prompts, queries), halves(prompt_targets, painted)
  mask = halves(jnp.zeros((q, k, rows, cols), bool), jnp.asarray(patch_mask))
  patches = canvas.patchify(pair_streams(images, targets, k + 1).astype(model.dtype), patch)
  x, y = part_streams(model.patch_embed(patches), k + 1)
  y = jnp.where(mask[..., None], model.mask_token[...].astype(model.dtype), y)
  posemb = model.position_embedding((2 * rows, cols))
  shared = jnp.concatenate([posemb[:, :rows]] * k + [posemb[:, rows:]]) + model.type_token(seg_type)
  shared = jnp.tile(shared, (q, 1, 1, 1))
  x = x + (model.segment_token_x[...] + shared).astype(model.dtype)
  y = y + (model.segment_token_y[...] + shared).astype(model.dtype)

  x, features = pair_streams(x, y, k + 1), []
  for index, block in enumerate(model.blocks):
    graph, params = nnx.split(block)
    x = _run_block(graph, params, x, prompts_per_query=k)
    if index == model.config.merge_block:
      image_stream, target_stream = part_streams(x, k + 1)
      x = (image_stream + target_stream) * 0.5
    if index in model.config.feature_taps:
      of_query = x.reshape(q, k + 1, *x.shape[1:])
      # The decoder's convolution sees one row of pixels of the prompt: as in the original, of the first, best one.
      features.append(model.norm(jnp.concatenate([of_query[:, 0, -1:], of_query[:, k]], axis=1)))
  return model.decode(jnp.concatenate(features, axis=-1))[:, patch:]


@functools.partial(jax.jit, static_argnums=0, static_argnames="prompts_per_query")
def _run_block(graph, params, x, *, prompts_per_query):
  """One block as a function of its parameters: equal blocks are traced once."""
  block: Block = nnx.merge(graph, params)
  x = x + block.attn.proj(_attend(block, block.attn.qkv(block.norm1(x)), prompts_per_query))
  return x + block.mlp(block.norm2(x))


def _attend(block: Block, qkv: Float[Array, "b rows cols d3"], k: int) -> Float[Array, "b rows cols d"]:
  """Puts canvases together, lets each attend, and takes them apart: K prompt halves, and the mean of the query's."""
  _, rows, cols, width = qkv.shape
  groups = qkv.reshape(-1, k + 1, rows, cols, width)
  of_query = jnp.broadcast_to(groups[:, k:], (len(groups), k, rows, cols, width))
  canvases = jnp.concatenate([groups[:, :k], of_query], axis=2).reshape(-1, 2 * rows, cols, width)
  if len(canvases) > _MOST_CANVASES and block.attn.implementation in attention.HOLD_ALL_SCORES:
    y = jax.lax.map(lambda one: block.attn.attend(one[None])[0], canvases, batch_size=_MOST_CANVASES)
  else:
    y = block.attn.attend(canvases)
  y = y.reshape(-1, k, 2 * rows, cols, width // 3)
  mean = jnp.mean(y[:, :, rows:], axis=1, keepdims=True, dtype=jnp.float32).astype(y.dtype)
  return jnp.concatenate([y[:, :, :rows], mean], axis=1).reshape(-1, rows, cols, width // 3)
