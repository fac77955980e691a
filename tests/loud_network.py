"""Networks with random parameters that predict more than gray.

At the values of initialization a network predicts gray for every input; these parameters are larger.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from benchmarks.nano import NANO
from seggpt_jax.model import parameters
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT

# `NANO` with tiles of 32 x 32 pixels, and wide enough that random parameters predict several classes.
LOUD = dataclasses.replace(NANO, canvas_size=(64, 32), posemb_size=4, width=32, mlp_dim=64, decoder_dim=16)


def loud_params(config: SegGPTConfig, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns random float32 parameters, with the scales of normalization around 1."""
  generator = np.random.default_rng(seed)
  _, shapes = parameters.abstract(config)
  params = {name: generator.normal(0.0, 0.1, shape.shape).astype(np.float32) for name, shape in shapes.items()}
  return {name: value + np.float32(name.endswith("scale")) for name, value in params.items()}


def loud_network(config: SegGPTConfig = LOUD) -> SegGPT:
  """Returns a network with the parameters of `loud_params`."""
  params = {name: jnp.asarray(value) for name, value in loud_params(config).items()}
  return parameters.merge(parameters.abstract(config)[0], params)
