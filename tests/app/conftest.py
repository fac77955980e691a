"""A predictor whose answers differ by image, and engines that share it."""

from __future__ import annotations

import numpy as np
import pytest

from seggpt_jax.app.engine import Engine
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import PreparedPrompt
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.adapters import LearnedPrompt
from tests import adapter_runs


def noise(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
  """An image that no other seed gives."""
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prompt_of(seed: int, classes: int = 2, height: int = 36, width: int = 44) -> PreparedPrompt:
  """A prompt with a rectangle of each class."""
  labels = np.zeros((height, width), np.uint8)
  for index in range(1, classes + 1):
    labels[4 + seed % 5 : 30, 6 * index : 6 * index + 6] = index
  return PreparedPrompt(noise(seed, height, width), labels)


@pytest.fixture(scope="session")
def predictor(model):
  return Predictor(model)


@pytest.fixture(scope="session")
def learned_prompt(config, weights_directory, tmp_path_factory):
  """A learned prompt of three classes."""
  run = tmp_path_factory.mktemp("runs") / "prompt"
  adapter_runs.write_run(run, LearnedPrompt(), config, weights_directory)
  return load_adapter(run)


@pytest.fixture
def engines(predictor):
  """Starts engines that end with the test, and waits until they are ready."""
  started = []

  def start(load=lambda: predictor, wait=True, **options) -> Engine:
    started.append(Engine(load, **options))
    if wait:
      started[-1].started.result(60)
    return started[-1]

  yield start
  for engine in started:
    engine.close()


@pytest.fixture
def engine(engines):
  return engines()
