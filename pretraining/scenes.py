"""Scenes: pictures of the same kinds of objects, and the type of the functions that draw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Scenes(NamedTuple):
  """Pictures of the same kinds of objects.

  Attributes:
    images: float32 [size, size, 3] each, about 0..255, not clipped.
    kinds: uint8 [size, size] each: 0 for the background, 1, 2, ... for kinds that a task may ask for.
  """

  images: list[np.ndarray]
  kinds: list[np.ndarray]


# From a generator, the side of a picture in pixels, the number of pictures and the difficulty, 0..1.
Family = Callable[[np.random.Generator, int, int, float], Scenes]
