"""Canvases: a prompt image stacked over a query image.

In: uint8 pixels of prompts and queries. Out: canvases `[B, 2S, S, 3]`, raw or normalized, and patch masks, which mark
the patches of the target canvas that the network has to predict.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

from seggpt_jax.typing import AnyArray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def stack(prompt: Shaped[np.ndarray, "s s *c"], query: Shaped[np.ndarray, "s s *c"]) -> np.ndarray:
  """Stacks the prompt over the query: `[S, S, ...]` twice -> `[2S, S, ...]`."""
  return np.concatenate([prompt, query], axis=0)


def query_half(canvas: Shaped[AnyArray, "*b h w c"]) -> Shaped[AnyArray, "*b s w c"]:
  """Returns the query: the lower half of a canvas whose last axis is channels."""
  return canvas[..., canvas.shape[-3] // 2 :, :, :]


def _per_channel(values: Sequence[float], ndim: int) -> AnyArray:
  return jnp.reshape(jnp.asarray(values, jnp.float32), (1,) * (ndim - 1) + (3,))


def normalize(
  pixels: Num[AnyArray, "*b 3"], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Float[AnyArray, "*b 3"]:
  """Normalizes pixels to zero mean and unit standard deviation.

  Args:
    pixels: RGB values, 0..255.
    mean: channel means, where 1.0 stands for 255.
    std: channel standard deviations, in the same unit.

  Returns:
    float32 values of the same shape.
  """
  center, scale = (_per_channel(values, pixels.ndim) for values in (mean, std))
  return (pixels.astype(jnp.float32) / 255.0 - center) / scale


def unnormalize(
  colors: Float[AnyArray, "*b 3"], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Float[AnyArray, "*b 3"]:
  """Inverts `normalize` and clips to 0..255; the result stays float32."""
  center, scale = (_per_channel(values, colors.ndim) for values in (mean, std))
  return jnp.clip((colors.astype(jnp.float32) * scale + center) * 255.0, 0.0, 255.0)


def grid_size(canvas_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
  """Returns the number of rows and columns of patches on a canvas.

  Args:
    canvas_size: height and width in pixels.
    patch_size: side of a patch in pixels.

  Raises:
    ValueError: a side of the canvas is not a positive multiple of the patch size.
  """
  height, width = canvas_size
  if height < 1 or width < 1 or height % patch_size or width % patch_size:
    raise ValueError(
      f"canvas size: found {height} x {width}, expected both sides to be multiples of the patch size {patch_size}"
    )
  return height // patch_size, width // patch_size


def lower_half_mask(grid: tuple[int, int]) -> Bool[np.ndarray, "rows cols"]:
  """Returns the patch mask of evaluation and inference, which hides the query's target and shows the prompt's."""
  rows, cols = grid
  mask = np.zeros((rows, cols), bool)
  mask[rows // 2 :] = True
  return mask


def random_patch_mask(
  generator: np.random.Generator, grid: tuple[int, int], mask_ratio: float
) -> Bool[np.ndarray, "rows cols"]:
  """Draws a patch mask for training, which hides exactly `round(mask_ratio * patches)` patches of the whole canvas.

  Args:
    generator: source of randomness.
    grid: rows and columns of patches.
    mask_ratio: share of patches to hide, 0..1; the original fine-tuning tool uses 0.75.

  Returns:
    Mask that is True where the target is hidden.
  """
  rows, cols = grid
  mask = np.zeros(rows * cols, bool)
  mask[: round(mask_ratio * rows * cols)] = True
  return generator.permutation(mask).reshape(rows, cols)


def patchify(canvas: Num[AnyArray, "b h w c"], patch_size: int) -> Num[AnyArray, "b rows cols values"]:
  """Cuts canvases into patches of `patch_size**2 * C` values: row by row, channels last."""
  batch, height, width, channels = canvas.shape
  rows, cols = grid_size((height, width), patch_size)
  tiles = jnp.reshape(canvas, (batch, rows, patch_size, cols, patch_size, channels))
  return jnp.reshape(jnp.transpose(tiles, (0, 1, 3, 2, 4, 5)), (batch, rows, cols, patch_size**2 * channels))


def unpatchify(patches: Num[AnyArray, "b rows cols values"], patch_size: int) -> Num[AnyArray, "b h w c"]:
  """Inverts `patchify`: a pixel shuffle with channels last."""
  batch, rows, cols, values = patches.shape
  channels = values // patch_size**2
  tiles = jnp.reshape(patches, (batch, rows, cols, patch_size, patch_size, channels))
  return jnp.reshape(jnp.transpose(tiles, (0, 1, 3, 2, 4, 5)), (batch, rows * patch_size, cols * patch_size, channels))


def upsample_mask(patch_mask: Shaped[AnyArray, "b rows cols"], patch_size: int) -> Shaped[AnyArray, "b h w"]:
  """Repeats the value of every patch over its pixels."""
  return jnp.repeat(jnp.repeat(patch_mask, patch_size, axis=1), patch_size, axis=2)
