"""Batches as the training pipeline makes them, of noise: for what is only to be timed. NumPy alone."""

from __future__ import annotations

import numpy as np


def training_batch(canvas_size: tuple[int, int], patch_size: int, batch_size: int) -> dict[str, np.ndarray]:
  """The same numbers each time; two classes, three quarters of the patches masked."""
  generator = np.random.default_rng(0)
  height, width = canvas_size
  return {
    "images": generator.integers(0, 256, (batch_size, height, width, 3), np.uint8),
    "labels": generator.integers(0, 2, (batch_size, height, width), np.uint8),
    "palette": generator.integers(0, 256, (batch_size, 2, 3), np.uint8),
    "patch_mask": generator.random((batch_size, height // patch_size, width // patch_size)) < 0.75,
    "valid": np.ones(batch_size, bool),
  }
