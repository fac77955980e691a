"""Flash attention from libraries: the relative positions ride on longer queries and keys (`extend`).

In and out as in `attention.py`. The scores stay on the chip, forward and backward (arXiv 2205.14135).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from seggpt_jax.model.attention.relative_positions import extend

_TPU_LANES = 128


def cudnn(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
  implementation: str = "cudnn",
) -> Float[Array, "b t n d"]:
  """cuDNN's flash attention by way of `jax.nn.dot_product_attention`.

  It takes 16-bit floats and one length of queries, keys and values: a multiple of 8, at most 128, or 256 on Hopper
  GPUs and later. Released weights have 64 + 56 + 28 = 148, so they need one of the latter.

  Args:
    qkv: as of `attention.reference`, like the other arguments.
    rel_pos_h: see there.
    rel_pos_w: see there.
    grid: see there.
    implementation: "xla" does the same without cuDNN.
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
  """The splash attention kernel of `jax.experimental.pallas`.

  Tokens are filled up to whole blocks, and lengths to whole vector registers; the tokens that fill up belong to another
  segment, which no query looks at.

  Args:
    qkv: as of `attention.reference`, like the other arguments.
    rel_pos_h: see there.
    rel_pos_w: see there.
    grid: see there.
    interpret: runs the kernel step by step on any device: for tests.
  """
  # Imported where it is used: it is experimental, and no other machine needs it.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  query, key = extend(qkv, rel_pos_h, rel_pos_w, grid)
  value = qkv[:, :, 2]
  tokens, heads = value.shape[1:3]
  filled = -(-tokens // _TPU_LANES) * _TPU_LANES
  query, key, padded = (
    _pad(_pad(jnp.swapaxes(x, 1, 2), 2, filled), 3, -(-x.shape[-1] // _TPU_LANES) * _TPU_LANES)
    for x in (query, key, value)
  )
  block = max(size for size in (128, 256, 512) if filled % size == 0)
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
  """Zeros at the end of an axis."""
  return jnp.pad(x, [(0, length - size if index == axis else 0) for index, size in enumerate(x.shape)])
