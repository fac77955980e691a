"""Draws training pairs with their predictions: a batch and colors in, one picture out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from seggpt_jax import canvas, palette
from seggpt_jax.data.pipeline import Batch
from seggpt_jax.model.config import SegGPTConfig

_HIDDEN = np.uint8(128)
_IGNORED = np.uint8(96)


def draw_panels(
  batch: Batch, colors: Float[np.ndarray, "b h w 3"], config: SegGPTConfig, limit: int = 4
) -> UInt8[np.ndarray, "height width 3"]:
  """Draws five canvases side by side for each pair: image, masked target, target, raw and decoded prediction.

  Args:
    batch: the pairs.
    colors: their predicted colors, 0..255.
    config: architecture, for the patch size.
    limit: largest number of pairs to draw, one row each.
  """
  rows = []
  for index in range(min(limit, len(colors))):
    images, labels, patch_mask = batch["images"][index], batch["labels"][index], batch["patch_mask"][index]
    color_of = batch["palette"][index]
    hidden = np.asarray(canvas.upsample_mask(patch_mask[None], config.patch_size))[0]
    target = np.where((labels == palette.IGNORE)[..., None], _IGNORED, color_of[labels % len(color_of)])
    shown = palette.shown_classes(labels[None, : len(labels) // 2], len(color_of))
    decoded = color_of[np.asarray(palette.decode(colors[index : index + 1], color_of[None], shown=shown))[0]]
    masked = np.where(hidden[..., None], _HIDDEN, target)
    parts = [images, masked, target, np.round(colors[index]).astype(np.uint8), decoded]
    gap = np.full((images.shape[0], 4, 3), 255, np.uint8)
    rows.append(np.concatenate([p for part in parts for p in (part, gap)][:-1], axis=1))
  gap = np.full((4, rows[0].shape[1], 3), 255, np.uint8)
  return np.concatenate([r for row in rows for r in (row, gap)][:-1], axis=0)
