"""PyTorch's interpolation along one axis, as matrices. Training resized the tables in released weights in this way."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def linear_resize_matrix(out_size: int, in_size: int) -> Float[np.ndarray, "o i"]:
  """Returns the matrix of PyTorch's `F.interpolate(mode="linear", align_corners=False)`."""
  position = np.maximum((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0.0)
  lower = np.minimum(position.astype(int), in_size - 1)
  upper = np.minimum(lower + 1, in_size - 1)
  weight = position - lower
  matrix = np.zeros((out_size, in_size))
  np.add.at(matrix, (np.arange(out_size), lower), 1.0 - weight)
  np.add.at(matrix, (np.arange(out_size), upper), weight)
  return matrix.astype(np.float32)


def bicubic_resize_matrix(out_size: int, in_size: int) -> Float[np.ndarray, "o i"]:
  """Returns the matrix of PyTorch's `F.interpolate(mode="bicubic", align_corners=False)` along one axis.

  PyTorch uses Keys' kernel with a = -0.75, half-pixel centers, repeated edges and no antialiasing. `jax.image.resize`
  uses a = -0.5 and antialiases, which gives other numbers.
  """
  a = -0.75
  position = (np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5
  base = np.floor(position).astype(int)
  matrix = np.zeros((out_size, in_size))
  for offset in range(-1, 3):
    distance = np.abs(position - (base + offset))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    np.add.at(matrix, (np.arange(out_size), np.clip(base + offset, 0, in_size - 1)), np.where(distance <= 1, near, far))
  return matrix.astype(np.float32)
