"""Flash attention from libraries, with the relative positions as part of longer queries and keys (`extend`).

The scores stay on the chip in the forward and in the backward pass (arXiv 2205.14135).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from seggpt_jax.model.attention.relative_positions import extend

_TPU_LANES = 128
_LARGEST_BLOCK = 1024  # tokens; the scores of a block and their gradients stay in a TPU's fast memory


def cudnn(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
  implementation: str = "cudnn",
) -> Float[Array, "b t n d"]:
  """Runs cuDNN's flash attention through `jax.nn.dot_product_attention`.

  cuDNN takes 16-bit floats, and queries, keys and values of one length: a multiple of 8, up to 128, or up to 256 on
  Hopper GPUs. Released weights have length 64 + 56 + 28 = 148, so they need Hopper; `parts` serves other GPUs.

  Args:
    qkv: queries, keys and values.
    rel_pos_h: embeddings of distances between rows.
    rel_pos_w: embeddings of distances between columns.
    grid: rows and columns of patches.
    implementation: "xla" computes the same without cuDNN, for tests.
  """
  query, key = extend(qkv, rel_pos_h, rel_pos_w, grid)
  value = qkv[:, :, 2]
  length = -(-query.shape[-1] // 8) * 8
  query, key, padded = (_pad(x, 3, length) for x in (query, key, value))
  output = jax.nn.dot_product_attention(query, key, padded, scale=1.0, implementation=implementation)
  return output[..., : value.shape[-1]]


def splash(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
  interpret: bool = False,
) -> Float[Array, "b t n d"]:
  """Runs the splash attention kernel of `jax.experimental.pallas`.

  Tokens are padded to whole blocks and embeddings to whole vector registers. The padding tokens belong to a segment of
  their own, which no real query attends to.

  Args:
    qkv: queries, keys and values.
    rel_pos_h: embeddings of distances between rows.
    rel_pos_w: embeddings of distances between columns.
    grid: rows and columns of patches.
    interpret: whether to run the kernel step by step on any device, for tests.
  """
  # Imported here because it is experimental and only TPUs need it.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  query, key = extend(qkv, rel_pos_h, rel_pos_w, grid)
  value = qkv[:, :, 2]
  tokens, heads = value.shape[1:3]
  # Few large blocks: the backward pass keeps a copy of the query's gradient for each block of keys, and a number of
  # tokens such as 13 x 128 would leave blocks of 128 only.
  count = -(-tokens // _LARGEST_BLOCK)
  block = -(-tokens // (count * _TPU_LANES)) * _TPU_LANES
  filled = count * block
  query, key, padded = (
    _pad(_pad(jnp.swapaxes(x, 1, 2), 2, filled), 3, -(-x.shape[-1] // _TPU_LANES) * _TPU_LANES)
    for x in (query, key, value)
  )
  kernel = kernels.make_splash_mha(
    mask=masks.MultiHeadMask([masks.FullMask((filled, filled)) for _ in range(heads)]),
    block_sizes=kernels.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      use_fused_bwd_kernel=True,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  segments = jnp.asarray(np.arange(filled) < tokens, jnp.int32)
  segments = kernels.SegmentIds(q=segments, kv=segments)
  output = jax.vmap(lambda *canvas: kernel(*canvas, segments))(query, key, padded)
  return jnp.swapaxes(output, 1, 2)[:, :tokens, :, : value.shape[-1]]


def _pad(x: Array, axis: int, length: int) -> Array:
  """Pads the end of an axis with zeros."""
  return jnp.pad(x, [(0, length - size if index == axis else 0) for index, size in enumerate(x.shape)])
