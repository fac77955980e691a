"""The smallest SegGPT that has every part of the large one, in memory and on disk."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from image_folders import make_folders

from seggpt_jax.model import weights
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT

_CONFIG = dataclasses.replace(
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


@pytest.fixture(scope="session")
def config() -> SegGPTConfig:
  return _CONFIG


@pytest.fixture(scope="session")
def model() -> SegGPT:
  """Random, and louder than initialisation: that paints grey whatever it is shown."""
  generator = np.random.default_rng(0)
  graph, shapes = weights.abstract(_CONFIG)
  params = {name: generator.normal(0.0, 0.1, shape.shape).astype(np.float32) for name, shape in shapes.items()}
  return weights.merge(graph, {name: jnp.asarray(value + name.endswith("scale")) for name, value in params.items()})


@pytest.fixture(scope="session")
def weights_directory(model, tmp_path_factory):
  directory = tmp_path_factory.mktemp("weights") / "tiny"
  weights.save_weights(directory, weights.split(model)[1], _CONFIG)
  return directory


@pytest.fixture
def folders(tmp_path):
  return make_folders(tmp_path)
