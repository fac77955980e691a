"""Converts batches of the training pipeline for transformers' SegGPT in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch


def peers_input(
  batch: Mapping[str, np.ndarray], mean: Sequence[float], std: Sequence[float]
) -> dict[str, torch.Tensor]:
  """Returns a batch in the format of transformers: colored, normalized, channels first, canvases in halves."""
  colored = np.stack([palette[labels] for palette, labels in zip(batch["palette"], batch["labels"], strict=True)])
  images, targets = (
    torch.from_numpy(((pixels / 255 - np.asarray(mean)) / np.asarray(std)).astype(np.float32)).permute(0, 3, 1, 2)
    for pixels in (batch["images"], colored)
  )
  half = images.shape[2] // 2
  return {
    "pixel_values": images[:, :, half:],
    "prompt_pixel_values": images[:, :, :half],
    "prompt_masks": targets[:, :, :half],
    "labels": targets[:, :, half:],
    "bool_masked_pos": torch.from_numpy(batch["patch_mask"].copy()).flatten(1),
  }
