"""The feature ensemble as inference runs it, without computing the query once for each of its K prompts.

The K canvases of a query differ only in their upper halves, the prompts. Their lower halves start as the same tokens,
and the ensemble replaces each by the same mean after every attention, so they stay the same in all blocks. Here, the
query half is computed once for all K prompt halves, and only attention sees whole canvases. Only the query half is
decoded. So `K + 1` halves instead of `2 K` go through the linear layers, and one instead of `2 K` through the decoder.
The tests hold this against `SegGPT.__call__`, which takes any masks and is used in training.

In: normalized pixels and targets of K prompts and of the query. Out: the colors of the query.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seggpt_jax import canvas
from seggpt_jax.model.attention import dispatch as attention
from seggpt_jax.model.matcher import Matcher
from seggpt_jax.model.seggpt import Block, SegGPT, SegType, stack_streams, unstack_streams
from seggpt_jax.typing import AnyArray

# Canvases that attend at once where all scores are in memory. One canvas takes 157 MB in the released network.
_MOST_CANVASES = 8


def predict_queries(
  model: SegGPT,
  queries: Float[AnyArray, "q h w 3"],
  prompts: Float[AnyArray, "q k h w 3"],
  prompt_targets: Float[AnyArray, "q k h w 3"],
  query_targets: Float[AnyArray, "q h w 3"],
  patch_mask: Bool[AnyArray, "q rows cols"],
  seg_type: SegType = "semantic",
) -> Float[Array, "q h w 3"]:
  """Predicts the colors of queries, each from an ensemble of K prompts.

  Args:
    model: the network.
    queries: Q normalized images, each half a canvas.
    prompts: K normalized images for each query.
    prompt_targets: normalized colored masks of the prompts.
    query_targets: normalized colors of the queries where they are already known; not read where `patch_mask` is True.
    patch_mask: True for patches of the query's target that are hidden.
    seg_type: "semantic" or "instance".

  Returns:
    Normalized colors of the queries, float32.
  """
  q, k = prompts.shape[:2]
  if isinstance(model, Matcher):
    canvases = [
      jnp.concatenate([upper, jnp.broadcast_to(lower[:, None], upper.shape)], axis=2).reshape(
        q * k, -1, *lower.shape[2:]
      )
      for upper, lower in ((prompts, queries), (prompt_targets, query_targets))
    ]
    mask = jnp.concatenate([jnp.zeros_like(patch_mask), patch_mask], axis=1)
    colors = model(*canvases, jnp.repeat(mask, k, axis=0), seg_type=seg_type, prompts_per_query=k)
    return canvas.query_half(colors)[::k]
  patch, (rows, cols) = model.config.patch_size, patch_mask.shape[1:]

  def halves(upper, lower):
    return jnp.concatenate([upper, lower[:, None]], axis=1).reshape(q * (k + 1), *lower.shape[1:])

  images, targets = halves(prompts, queries), halves(prompt_targets, query_targets)
  mask = halves(jnp.zeros((q, k, rows, cols), bool), jnp.asarray(patch_mask))
  patches = canvas.patchify(stack_streams(images, targets, k + 1).astype(model.dtype), patch)
  x, y = unstack_streams(model.patch_embed(patches), k + 1)
  y = jnp.where(mask[..., None], model.mask_token[...].astype(model.dtype), y)
  posemb = model.position_embedding((2 * rows, cols))
  shared = jnp.concatenate([posemb[:, :rows]] * k + [posemb[:, rows:]]) + model.type_token(seg_type)
  shared = jnp.tile(shared, (q, 1, 1, 1))
  x = x + (model.segment_token_x[...] + shared).astype(model.dtype)
  y = y + (model.segment_token_y[...] + shared).astype(model.dtype)

  x, features = stack_streams(x, y, k + 1), []
  for index, block in enumerate(model.blocks):
    graph, params = nnx.split(block)
    x = _run_block(graph, params, x, prompts_per_query=k)
    if index == model.config.merge_block:
      image_stream, target_stream = unstack_streams(x, k + 1)
      x = (image_stream + target_stream) * 0.5
    if index in model.config.feature_taps:
      groups = x.reshape(q, k + 1, *x.shape[1:])
      # The decoder's convolution sees one row of pixels of a prompt. As in the original, that is the first prompt's.
      features.append(model.norm(jnp.concatenate([groups[:, 0, -1:], groups[:, k]], axis=1)))
  return model.decode(jnp.concatenate(features, axis=-1))[:, patch:]


@functools.partial(jax.jit, static_argnums=0, static_argnames="prompts_per_query")
def _run_block(graph, params, x, *, prompts_per_query):
  """Runs one block as a function of its parameters, so that equal blocks are traced once."""
  block: Block = nnx.merge(graph, params)
  x = x + block.attn.proj(_attend(block, block.attn.qkv(block.norm1(x)), prompts_per_query))
  return x + block.mlp(block.norm2(x))


def _attend(block: Block, qkv: Float[Array, "b rows cols d3"], k: int) -> Float[Array, "b rows cols d"]:
  """Builds whole canvases, runs attention on them, and returns K prompt halves and the mean of the query halves."""
  _, rows, cols, width = qkv.shape
  groups = qkv.reshape(-1, k + 1, rows, cols, width)
  queries = jnp.broadcast_to(groups[:, k:], (len(groups), k, rows, cols, width))
  canvases = jnp.concatenate([groups[:, :k], queries], axis=2).reshape(-1, 2 * rows, cols, width)
  if len(canvases) > _MOST_CANVASES and block.attn.implementation in attention.HOLD_ALL_SCORES:
    y = jax.lax.map(lambda one: block.attn.attend(one[None])[0], canvases, batch_size=_MOST_CANVASES)
  else:
    y = block.attn.attend(canvases)
  y = y.reshape(-1, k, 2 * rows, cols, width // 3)
  mean = jnp.mean(y[:, :, rows:], axis=1, keepdims=True, dtype=jnp.float32).astype(y.dtype)
  return jnp.concatenate([y[:, :, :rows], mean], axis=1).reshape(-1, rows, cols, width // 3)
