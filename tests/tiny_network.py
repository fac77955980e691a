"""The smallest SegGPT that has every part of the large one, with random parameters whose predictions vary."""

from __future__ import annotations

import dataclasses

import numpy as np

from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
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


def random_params(config: SegGPTConfig, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns random parameters, larger than initial ones.

  With its initial parameters, the network predicts gray for any input.
  """
  generator = np.random.default_rng(seed)
  _, shapes = parameters.abstract(config)
  params = {name: generator.normal(0.0, 0.1, shape.shape).astype(np.float32) for name, shape in shapes.items()}
  return {name: value + np.float32(name.endswith("scale")) for name, value in params.items()}


def build() -> SegGPT:
  """Builds the network."""
  return parameters.build_model(CONFIG, random_params(CONFIG))
