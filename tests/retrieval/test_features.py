"""Features of images: pooled over the right patches, and independent of the batch."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seggpt_jax import canvas
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.retrieval.features import Encoder, encode, in_blocks, presence


@pytest.fixture(scope="module")
def images(config):
  side = config.canvas_size[1]
  return np.random.default_rng(1).integers(0, 256, (3, side, side, 3), np.uint8)


@pytest.mark.parametrize("tap", [1, 2])
def test_features_are_means_over_the_tokens_of_the_query_half(model, config, images, tap):
  encoder = Encoder(model, tap)
  shares = np.random.default_rng(2).random((3, *encoder.grid), np.float32)
  shares[2] = 0
  found = encoder(images, shares)

  pixels = canvas.normalize(images)
  both = jnp.concatenate([pixels, pixels], axis=1)
  tokens = model.embed(both, jnp.zeros_like(both), np.ones((3, *config.grid), bool), "semantic", 1)
  rows, width = config.grid[0] // 2, config.width
  expected = np.asarray(model.encode(tokens, 1, None))[:, rows:, :, (tap - 1) * width : tap * width]
  np.testing.assert_allclose(found.patches, expected, atol=1e-4)
  np.testing.assert_allclose(found.image, expected.mean(axis=(1, 2)), atol=1e-4)
  for index in range(2):
    weighted = np.average(expected[index].reshape(-1, width), axis=0, weights=shares[index].ravel())
    np.testing.assert_allclose(found.foreground[index], weighted, atol=1e-4)
  np.testing.assert_array_equal(found.foreground[2], 0)


def test_features_do_not_depend_on_the_batch(model, images):
  encoder = Encoder(model, 1)
  before = encode.compiled()._cache_size()
  together, alone = encoder(images), encoder(images[1:2])
  assert encode.compiled()._cache_size() <= before + 1  # one program for full and for smaller batches
  np.testing.assert_array_equal(together.image[1:2], alone.image)


def test_an_unknown_tap_is_refused(model):
  with pytest.raises(InputError, match=r"tap: found 3, expected 1\.\.2"):
    Encoder(model, 3)


def test_the_identity_of_features_covers_everything_that_they_depend_on(model, config):
  graph, params = parameters.split(model)
  other = parameters.merge(graph, {**params, "norm.bias": params["norm.bias"] + 1})
  recolored = dataclasses.replace(config, image_mean=(0.5, 0.5, 0.5))
  rebuilt = parameters.merge(parameters.split(nnx.eval_shape(lambda: SegGPT(recolored, rngs=nnx.Rngs(0))))[0], params)
  same = parameters.merge(graph, dict(params))
  names = [Encoder(m, tap).identity for m, tap in ((model, 1), (model, 2), (other, 1), (rebuilt, 1))]
  assert len(set(names)) == 4
  assert Encoder(same, 1).identity == names[0]


def test_presence_is_the_mean_of_the_best_cosines():
  generator = np.random.default_rng(3)
  patches, mean = generator.normal(size=(2, 7, 6, 5)).astype(np.float32), generator.normal(size=5).astype(np.float32)
  prompts = generator.normal(size=(300, 5)).astype(np.float32)  # more than one block
  prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
  tokens = patches.reshape(2, 42, 5) - mean
  cosines = np.einsum("bnd,pd->bpn", tokens / np.linalg.norm(tokens, axis=2, keepdims=True), prompts)
  expected = np.sort(cosines, axis=2)[:, :, -2:].mean(axis=2)  # a twentieth of 42 patches
  np.testing.assert_allclose(presence(patches, in_blocks(prompts), mean)[:, :300], expected, atol=1e-5)
