"""Makes batches of noise in the format of the training pipeline, for timing. Imports NumPy only."""

from __future__ import annotations

import numpy as np


def training_batch(canvas_size: tuple[int, int], patch_size: int, batch_size: int) -> dict[str, np.ndarray]:
  """Returns a batch with two classes and three quarters of the patches masked, the same one in every call."""
  generator = np.random.default_rng(0)
  height, width = canvas_size
  return {
    "images": generator.integers(0, 256, (batch_size, height, width, 3), np.uint8),
    "labels": generator.integers(0, 2, (batch_size, height, width), np.uint8),
    "palette": generator.integers(0, 256, (batch_size, 2, 3), np.uint8),
    "patch_mask": generator.random((batch_size, height // patch_size, width // patch_size)) < 0.75,
    "valid": np.ones(batch_size, bool),
  }
