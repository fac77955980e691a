"""Micro-batches, frozen parameters, averaged weights: they save memory and work and do not change the recipe."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from seggpt_jax import canvas, palette
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.training import sharding
from seggpt_jax.training.loss import masked_smooth_l1
from seggpt_jax.training.optimizer import _frozen_names, adamw
from seggpt_jax.training.step import TrainState, init_state, make_train_step

CONFIG = dataclasses.replace(
  VARIANTS["tiny"],
  canvas_size=(32, 16),
  posemb_size=4,
  width=16,
  depth=1,
  mlp_dim=32,
  num_heads=2,
  merge_block=0,
  feature_taps=(0,),
  decoder_dim=8,
)


def make_batch(seed, size=32):
  """Returns a batch whose ignored pixels are so uneven that some micro-batches have few or no pixels that count."""
  generator = np.random.default_rng(seed)
  labels = generator.integers(0, 3, (size, 32, 16), np.uint8)
  for index in range(size):
    share = 1.0 if index < 8 or index % 4 == 0 else (index % 4 - 1) / 3
    labels[index][generator.random((32, 16)) < share] = palette.IGNORE
  return {
    "images": generator.integers(0, 256, (size, 32, 16, 3), np.uint8),
    "labels": labels,
    "palette": np.stack([palette.sample_palette(generator, 3) for _ in range(size)]),
    "patch_mask": np.stack([canvas.random_patch_mask(generator, CONFIG.grid, 0.75) for _ in range(size)]),
    "valid": np.ones(size, bool),
  }


@functools.cache
def graph_and_params():
  return parameters.split(SegGPT(CONFIG, rngs=nnx.Rngs(0)))


def build(data, fsdp, optimizer, prompts=1, frozen=(), ema=0.0, accumulate=1):
  """Returns the compiled step, its mesh, and a state on that mesh."""
  mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))
  graph, params = graph_and_params()
  state = init_state(optimizer, params, frozen=frozen, ema=ema > 0)
  where = TrainState(sharding.replicated(mesh), *(sharding.tree_sharding(mesh, part) for part in state[1:]))
  # A copy: the step donates its state.
  state = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=where)(state)
  step = make_train_step(graph, CONFIG, optimizer, mesh, where, prompts, frozen=frozen, accumulate=accumulate, ema=ema)
  compiled = step.lower(state, sharding.put_batch(mesh, make_batch(0)), jax.random.key(0)).compile()
  return compiled, mesh, state


@functools.cache
def trajectory(devices, accumulate, prompts=1):
  """Returns the step, the outputs of three steps of plain gradient descent, and the parameters after them."""
  step, mesh, state = build(devices, 1, optax.sgd(0.05), prompts, accumulate=accumulate)
  outputs = []
  for index in range(3):
    state, output = step(state, sharding.put_batch(mesh, make_batch(index)), jax.random.key(0))
    outputs.append(jax.tree.map(np.asarray, output))
  return step, outputs, jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize(("devices", "accumulate", "prompts"), [(1, 2, 1), (1, 4, 1), (8, 1, 1), (8, 4, 1), (8, 2, 2)])
def test_micro_batches_add_up_to_the_batch(devices, accumulate, prompts):
  """Reference: one device and the whole batch; float32, 1e-5 relative for sums in another order; no drop path."""
  _, outputs, params = trajectory(devices, accumulate, prompts)
  _, expected_outputs, expected_params = trajectory(1, 1, prompts)
  for output, expected in zip(outputs, expected_outputs, strict=True):
    np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(output.gradient_norm, expected.gradient_norm, rtol=1e-5)
    # The colors are those of the whole batch in its order. Pixels on the border between two classes may differ.
    np.testing.assert_allclose(output.colors, expected.colors, atol=0.02)
    assert np.abs(output.confusion - expected.confusion).sum() <= 2e-3 * expected.confusion.sum()
  start = graph_and_params()[1]
  for name, value in params.items():
    expected = expected_params[name]
    assert np.linalg.norm(value - expected) <= 1e-5 * np.linalg.norm(expected), name
  assert any(np.linalg.norm(value - start[name]) > 0.01 * np.linalg.norm(value) for name, value in params.items())


def test_micro_batches_save_memory():
  memory = {count: trajectory(1, count)[0].memory_analysis().temp_size_in_bytes for count in (1, 4)}
  assert memory[4] < 0.45 * memory[1]


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2)])
def test_each_device_cuts_its_own_share_and_nothing_is_sent(data, fsdp):
  mesh = Mesh(np.array(jax.devices()).reshape(data, fsdp), ("data", "fsdp"))
  batch = sharding.put_batch(mesh, {"labels": np.arange(32 * 6).reshape(32, 6)})
  cut = jax.jit(lambda batch: sharding.cut_batch(mesh, batch, 2)).lower(batch).compile()
  parts = cut(batch)["labels"]
  # Each micro-batch has two of the four canvases of every device.
  np.testing.assert_array_equal(parts[0, :, 0] // 6, [i for i in range(32) if i % 4 < 2])
  assert {shard.data.shape for shard in parts.addressable_shards} == {(2, 2, 6)}
  join = jax.jit(lambda parts: sharding.join_batch(mesh, parts), out_shardings=sharding.batch_sharding(mesh))
  joined = join.lower(parts).compile()
  np.testing.assert_array_equal(joined(parts), batch["labels"])
  for program in (cut.as_text(), joined.as_text()):
    assert not re.search("all-to-all|collective-permute|all-gather|all-reduce", program)


def test_frozen_parameters_stay_averages_follow_and_the_norm_is_that_of_the_gradients():
  """Four steps of AdamW on devices that share parameters. Reference of the averages: NumPy; float32, 1e-6 relative."""
  graph, params = graph_and_params()
  frozen = _frozen_names((r"^blocks\.0\.attn", "pos_embed", "decoder_embed.kernel"), params)
  optimizer = optax.chain(optax.clip_by_global_norm(1e-3), adamw(lambda step: 1e-2, b1=0.9, b2=0.99, weight_decay=0.1))
  step, mesh, state = build(4, 2, optimizer, frozen=frozen, ema=0.35, accumulate=2)
  trained = params.keys() - frozen
  in_state = {key.key for path, _ in jax.tree.leaves_with_path(state.opt_state) for key in path if hasattr(key, "key")}
  assert in_state == state.ema.keys() == trained

  def loss(part):
    batch = {key: jnp.asarray(value) for key, value in make_batch(0).items()}
    targets = canvas.normalize(palette.color_labels(batch["labels"], batch["palette"]))
    model = parameters.merge(graph, {**params, **part})
    colors = model(canvas.normalize(batch["images"]), targets, batch["patch_mask"])
    return masked_smooth_l1(colors, targets, batch["patch_mask"], batch["labels"] != palette.IGNORE)

  gradients = jax.jit(jax.grad(loss))({name: params[name] for name in trained})
  norm = np.sqrt(sum(np.sum(np.square(np.asarray(value, np.float64))) for value in gradients.values()))
  average = {name: np.asarray(params[name], np.float64) for name in trained}
  for index in range(4):
    old = state.ema["norm.scale"]
    state, output = step(state, sharding.put_batch(mesh, make_batch(index)), jax.random.key(0))
    assert old.is_deleted()
    if index == 0:
      np.testing.assert_allclose(output.gradient_norm, norm, rtol=1e-5)
    past = min(0.35, (1 + index) / (10 + index))  # 0.1, 0.18, 0.25, 0.31: the start is forgotten
    average = {name: past * value + (1 - past) * np.asarray(state.params[name]) for name, value in average.items()}
  for name, value in average.items():
    assert state.ema[name].dtype == jnp.float32
    assert state.ema[name].sharding == state.params[name].sharding
    np.testing.assert_allclose(state.ema[name], value, rtol=1e-6, atol=1e-7)
    assert np.any(np.asarray(state.params[name]) != np.asarray(params[name])) or name.startswith("type_token_ins")
  for name in frozen:
    np.testing.assert_array_equal(state.params[name], params[name])
    np.testing.assert_array_equal(state.averaged[name], params[name])


def test_no_gradients_are_computed_below_what_is_trained():
  """The forward pass is a third of the work of a step, so only little more may remain."""
  _, params = graph_and_params()
  frozen = _frozen_names(("^(?!decoder_pred.head)",), params)
  work = trajectory(1, 1)[0].cost_analysis()["flops"]
  step, _, _ = build(1, 1, optax.sgd(0.05), frozen=frozen)
  assert step.cost_analysis()["flops"] < 0.45 * work
