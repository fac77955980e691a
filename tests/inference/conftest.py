"""The smallest network in memory and on disk, and folders to run it on."""

from __future__ import annotations

import pytest

from seggpt_jax.model import parameters, weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT
from tests import tiny_network
from tests.inference.image_folders import make_folders


@pytest.fixture(scope="session")
def config() -> SegGPTConfig:
  return tiny_network.CONFIG


@pytest.fixture(scope="session")
def model() -> SegGPT:
  return tiny_network.build()


@pytest.fixture(scope="session")
def weights_directory(model, tmp_path_factory):
  directory = tmp_path_factory.mktemp("weights") / "tiny"
  weights.save_weights(directory, parameters.split(model)[1], model.config)
  return directory


@pytest.fixture
def folders(tmp_path):
  return make_folders(tmp_path)
