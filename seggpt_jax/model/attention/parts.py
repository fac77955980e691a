"""Flash attention in parts of the keys, for GPUs whose flash attention refuses the length of whole extended keys.

Relative positions extend each key by one-hot vectors of its row and column (`relative_positions.extend`), released
weights to 64 + 56 + 28 = 148 numbers, and most GPUs take at most 128. The keys of some rows need the one-hot vectors of
these rows alone: halves take 64 + 28 + 28 = 120. Each part is a flash attention of its own. Their outputs are weighted
by the shares of the parts' sums of exponentials, and in the backward pass each part gets the output and the log-sum of
the whole, which is all that its gradients depend on (ring attention, arXiv 2310.01889; Rabe and Staats, arXiv
2112.05682; FlashBias, arXiv 2505.12044, for biases as longer queries and keys).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seggpt_jax.model.attention.relative_positions import one_hot_positions, relative_logits

LONGEST = 128  # numbers of a head that flash attention takes on every GPU since Ampere


class Kernel(NamedTuple):
  """A plain attention with a scale of 1.

  Attributes:
    forward: (query, key, value) -> output, and the log-sums of the exponentials of the scores.
    backward: (query, key, value, log-sums, output, gradient) -> the gradients of query, key and value, where the
      softmax is divided by the sums of a larger set of keys.
  """

  forward: Callable[..., tuple[Array, Array]]
  backward: Callable[..., tuple[Array, Array, Array]]


def cudnn_parts(
  qkv: Float[Array, "b t 3 n d"],
  rel_pos_h: Float[Array, "distances_h d"],
  rel_pos_w: Float[Array, "distances_w d"],
  grid: tuple[int, int],
  kernel: Kernel | None = None,
  longest: int = LONGEST,
) -> Float[Array, "b t n d"]:
  """Runs cuDNN's flash attention on parts of the keys and puts the results together.

  Args:
    qkv: queries, keys and values.
    rel_pos_h: embeddings of distances between rows.
    rel_pos_w: embeddings of distances between columns.
    grid: rows and columns of patches.
    kernel: attention of one part; cuDNN's by default, which takes 16-bit floats.
    longest: most numbers of a head in the kernel.

  Raises:
    NotImplementedError: not even the keys of a single row are short enough.
  """
  query, key, value = jnp.unstack(qkv, axis=2)
  dim, (rows, cols) = query.shape[-1], grid
  count = _num_parts(grid, dim, longest)
  by_row, by_col = relative_logits(query, rel_pos_h, rel_pos_w, grid)
  query = query * dim**-0.5
  # The rows of a part are numbered from 0, so that the positions of all parts are the same.
  positions = jnp.asarray(one_hot_positions((rows // count, cols)), key.dtype)[None, :, None]
  parts = []
  split = (jnp.split(key, count, axis=1), jnp.split(value, count, axis=1), jnp.split(by_row, count, axis=-1))
  for its_key, its_value, its_rows in zip(*split, strict=True):
    shown = jnp.broadcast_to(positions, (*its_key.shape[:3], positions.shape[-1]))
    longer = jnp.concatenate([query, its_rows, by_col], axis=-1), jnp.concatenate([its_key, shown], axis=-1)
    parts.append(tuple(_pad_head(x, -(-longer[0].shape[-1] // 8) * 8) for x in (*longer, its_value)))
  return _attend(tuple(parts), CUDNN if kernel is None else kernel)[..., :dim]


def _num_parts(grid: tuple[int, int], dim: int, longest: int = LONGEST) -> int:
  """Returns the fewest equal parts of the rows with which extended keys of `dim` channels are at most `longest`."""
  rows, cols = grid
  for count in range(1, rows + 1):
    if rows % count == 0 and dim + rows // count + cols <= longest:
      return count
  raise NotImplementedError(f"found keys of {dim} + 1 + {cols} numbers for each row, expected at most {longest}")


def _pad_head(x: Float[Array, "b t n e"], length: int) -> Float[Array, "b t n padded"]:
  return jnp.pad(x, [(0, 0)] * 3 + [(0, length - x.shape[-1])])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(parts, kernel):
  return _attend_forward(parts, kernel)[0]


def _attend_forward(parts, kernel):
  outputs, log_sums = zip(*(kernel.forward(*part) for part in parts), strict=True)
  log_sum = functools.reduce(jnp.logaddexp, log_sums)
  shares = [jnp.swapaxes(jnp.exp(part - log_sum), 1, 2)[..., None] for part in log_sums]
  output = sum(share * part for share, part in zip(shares, outputs, strict=True)).astype(outputs[0].dtype)
  return output, (parts, log_sum, output)


def _attend_backward(kernel, saved, gradient):
  parts, log_sum, output = saved
  return (tuple(tuple(kernel.backward(*part, log_sum, output, gradient)) for part in parts),)


_attend.defvjp(_attend_forward, _attend_backward)


def _cudnn_forward(query, key, value):
  fused, options = _cudnn()
  empty = jnp.zeros(0, query.dtype)  # bias, lengths, offsets and page tables, none of which is used
  return fused._dot_product_attention_fwd_p_wrapper.bind(query, key, value, *[empty] * 7, **options, is_training=True)


def _cudnn_backward(query, key, value, log_sums, output, gradient):
  fused, options = _cudnn()
  arguments = (query, key, value, *[jnp.zeros(0, query.dtype)] * 7, log_sums, output, gradient)
  return fused._dot_product_attention_bwd_p_wrapper.bind(*arguments, **options)[:3]


def _cudnn():
  """Returns JAX's internal module with cuDNN's attention, and the options for plain attention.

  The public function does not differentiate the log-sum. `dispatch.choose` finds out where this one is missing.
  """
  from jax._src.cudnn import fused_attention_stablehlo as fused

  return fused, {
    "scale": 1.0,
    "seed": 42,
    "dropout_rate": 0.0,
    "variadic_args": (False, False),
    "mask_type": fused.MaskType.NO_MASK,
    "layout": fused.AttentionLayout.BTNH.value,
    "sliding_window_length": None,
  }


CUDNN = Kernel(_cudnn_forward, _cudnn_backward)
