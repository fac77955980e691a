"""Adapters change nothing at first, train only their own parameters, and merge exactly."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seggpt_jax.errors import InputError
from seggpt_jax.model import adapters, parameters
from seggpt_jax.model.adapters import LearnedPrompt, LoRA
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.seggpt import SegGPT

CONFIG = dataclasses.replace(
  VARIANTS["tiny"],
  canvas_size=(64, 32),
  width=32,
  depth=3,
  mlp_dim=64,
  num_heads=2,
  feature_taps=(1, 2),
  decoder_dim=8,
  drop_path_rate=0.0,
)


@functools.cache
def graph_and_params():
  return parameters.split(SegGPT(CONFIG, rngs=nnx.Rngs(0)))


def canvases(seed=0, count=2):
  generator = np.random.default_rng(seed)
  images, targets = (jnp.asarray(generator.normal(size=(count, 64, 32, 3)), jnp.float32) for _ in range(2))
  return images, targets, jnp.asarray(generator.random((count, *CONFIG.grid)) < 0.7)


@functools.cache
def forward():
  """Returns the network as one program, which takes parameters and a batch."""
  graph, _ = graph_and_params()
  return jax.jit(lambda params, *batch: parameters.merge(graph, params)(*batch))


def run(adapter, own, batch):
  _, params = graph_and_params()
  images, targets, mask = batch
  return forward()(adapter.merge(params, own), *adapter.prompt(images, targets, own), mask)


def trained(own, seed=5):
  """Returns the adapter's parameters as they may be after some training."""
  generator = np.random.default_rng(seed)
  return {name: value + jnp.asarray(generator.normal(0, 0.3, value.shape), jnp.float32) for name, value in own.items()}


def test_a_new_lora_changes_nothing():
  _, params = graph_and_params()
  own = LoRA(rank=4).init(params, CONFIG.canvas_size, jax.random.key(0))
  batch = canvases()
  np.testing.assert_array_equal(run(LoRA(rank=4), own, batch), forward()(params, *batch))


@pytest.mark.parametrize("targets", [("qkv",), ("fc1", "fc2"), adapters.LORA_TARGETS])
def test_a_lora_adds_the_product_of_its_factors_to_the_target_kernels_only(targets):
  """Reference: NumPy in float64, 1e-6."""
  _, params = graph_and_params()
  lora = LoRA(rank=4, alpha=2.0, targets=targets)
  own = trained(lora.init(params, CONFIG.canvas_size, jax.random.key(0)))
  assert len(own) == 2 * CONFIG.depth * len(targets)
  merged = lora.merge(params, own)
  assert merged.keys() == params.keys()
  for name, value in params.items():
    kind = name.split(".")[-2] if name.startswith("blocks.") and name.endswith(".kernel") else ""
    if kind in targets:
      a, b = (np.asarray(own[f"lora.{name}.{part}"], np.float64) for part in "ab")
      np.testing.assert_allclose(merged[name], np.asarray(value, np.float64) + 0.5 * a @ b, atol=1e-6)
    else:
      assert merged[name] is value


def test_a_lora_has_few_parameters():
  _, shapes = parameters.abstract(VARIANTS["vit_large"])
  own = jax.eval_shape(lambda key: LoRA(rank=8).init(shapes, (896, 448), key), jax.random.key(0))
  count = sum(value.size for value in own.values())
  assert count == 24 * 8 * ((1024 + 3072) + (1024 + 1024) + (1024 + 4096) + (4096 + 1024))
  assert count < 0.01 * sum(value.size for value in shapes.values())


@pytest.mark.parametrize("adapter", [LoRA(rank=4), LearnedPrompt()], ids=["lora", "prompt"])
def test_the_network_stays_frozen_while_every_part_of_the_adapter_learns(adapter):
  _, params = graph_and_params()
  own = trained(adapter.init(params, CONFIG.canvas_size, jax.random.key(0)))
  gradients = jax.grad(lambda own: jnp.sum(run(adapter, own, canvases())[:, 32:] ** 2))(own)
  assert gradients.keys() == own.keys()
  for name, gradient in gradients.items():
    assert float(jnp.abs(gradient).max()) > 0, name


def test_a_learned_prompt_takes_the_prompt_s_place_and_shows_its_target():
  _, params = graph_and_params()
  own = LearnedPrompt().init(params, CONFIG.canvas_size, jax.random.key(0))
  images, targets, mask = canvases()
  new_images, new_targets = LearnedPrompt().prompt(images, targets, own)
  for new, old, name in ((new_images, images, "image"), (new_targets, targets, "target")):
    np.testing.assert_array_equal(new[:, 32:], old[:, 32:])
    np.testing.assert_array_equal(new[:, :32], np.stack([own[f"prompt.{name}"]] * 2))
  # The batch's own prompts do not change the prediction.
  other = canvases(seed=1)
  mixed = (images.at[:, :32].set(other[0][:, :32]), targets.at[:, :32].set(other[1][:, :32]), mask)
  np.testing.assert_array_equal(run(LearnedPrompt(), own, mixed), run(LearnedPrompt(), own, (images, targets, mask)))


@pytest.mark.parametrize("adapter", [LoRA(4, 2.0, ("qkv", "fc2")), LearnedPrompt()])
def test_adapters_survive_json(adapter):
  assert adapters.from_dict(json.loads(json.dumps(adapters.to_dict(adapter)))) == adapter


def test_invalid_adapters_are_refused():
  with pytest.raises(InputError, match="found kind 'bitfit', expected one of lora, prompt"):
    adapters.from_dict({"kind": "bitfit"})
  with pytest.raises(InputError, match="found rank 0"):
    LoRA(rank=0)
  with pytest.raises(InputError, match=r"found targets \('attn',\), expected some of qkv, proj, fc1, fc2"):
    LoRA(targets=("attn",))
  with pytest.raises(InputError, match="adapter: cannot be read"):
    adapters.from_dict({"kind": "lora", "depth": 3})
