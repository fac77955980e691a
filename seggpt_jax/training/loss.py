"""Computes the loss of SegGPT: smooth L1 on the hidden patches of the target canvas.

Input: predicted and true colors, both normalized, and the mask of hidden patches. Output: one float32 scalar.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from seggpt_jax import canvas
from seggpt_jax.typing import AnyArray

BETA = 0.01


def smooth_l1(difference: Float[Array, "*b"], beta: float = BETA) -> Float[Array, "*b"]:
  """Returns PyTorch's `smooth_l1_loss` of each difference: a parabola below `beta`, a straight line above."""
  size = jnp.abs(difference)
  return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def masked_smooth_l1(
  colors: Float[AnyArray, "b h w 3"],
  targets: Float[AnyArray, "b h w 3"],
  patch_mask: Bool[AnyArray, "b rows cols"],
  valid: Shaped[AnyArray, "b h w"] | Shaped[AnyArray, "b h w 3"] | None = None,
) -> Float[Array, ""]:
  """Returns the mean smooth L1 over all color channels of the hidden, valid pixels.

  Args:
    colors: predicted colors, normalized.
    targets: true colored canvases, normalized.
    patch_mask: True for hidden patches; only these are scored. The patch size follows from the shapes.
    valid: pixels or single channels that count: bool, or a weight where 1 counts fully. By default all.

  Returns:
    A float32 scalar. It is 0 when no pixel is scored: a batch can consist of invalid pixels only, and one NaN would
    spoil every parameter of the run.
  """
  patch_size = colors.shape[1] // patch_mask.shape[1]
  mask = canvas.upsample_mask(patch_mask, patch_size)[..., None].astype(jnp.float32)
  if valid is not None:
    valid = valid if valid.ndim == 4 else valid[..., None]
    mask = mask * valid.astype(jnp.float32)
  mask = jnp.broadcast_to(mask, colors.shape)
  loss = smooth_l1(colors.astype(jnp.float32) - targets.astype(jnp.float32)) * mask
  total = jnp.sum(mask)
  return jnp.sum(loss) / jnp.where(total > 0, total, 1.0)
