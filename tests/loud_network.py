"""The smallest SegGPT that has every part of the large one, with random parameters that paint something."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.seggpt import SegGPT

CONFIG = dataclasses.replace(
  VARIANTS["tiny"],
  canvas_size=(64, 32),
  posemb_size=4,
  width=32,
  depth=2,
  num_heads=2,
  mlp_dim=64,
  merge_block=0,
  feature_taps=(0, 1),
)


def build() -> SegGPT:
  """Louder than initialization: that paints gray whatever it is shown."""
  generator = np.random.default_rng(0)
  graph, shapes = parameters.abstract(CONFIG)
  params = {name: generator.normal(0.0, 0.1, shape.shape).astype(np.float32) for name, shape in shapes.items()}
  return parameters.merge(graph, {name: jnp.asarray(value + name.endswith("scale")) for name, value in params.items()})
