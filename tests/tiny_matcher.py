"""A tiny network of the small network's design, for tests of the model and of inference."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.imagenet import CHANNELS

CONFIG = dataclasses.replace(
  VARIANTS["small"],
  canvas_size=(64, 32),
  width=32,
  depth=3,
  num_heads=2,
  mlp_dim=32,
  feature_taps=(2,),
  decoder_dim=8,
)


def cheap_features(self, images):
  """Stands in for the ImageNet features, which take long to compile and are tested elsewhere: pooled colors."""
  del self
  generator, maps = np.random.default_rng(3), {}
  for stride, channels in CHANNELS.items():
    n, height, width, _ = images.shape
    pooled = images.reshape(n, height // stride, stride, width // stride, stride, 3).mean(axis=(2, 4))
    maps[stride] = jnp.sin(pooled @ generator.normal(0, 2, (3, channels)).astype(np.float32))
  return maps


def tiny_matcher(**changed):
  """Returns a network with random parameters, some of which are given as functions of their random values."""
  generator, (graph, shapes) = np.random.default_rng(0), parameters.abstract(CONFIG)
  params = {
    name: np.ones(shape.shape) if shape.ndim < 2 else generator.normal(0, 1, shape.shape) / shape.shape[-2] ** 0.5
    for name, shape in shapes.items()
  }
  return parameters.fill(graph, params | {name: change(params[name]) for name, change in changed.items()})
