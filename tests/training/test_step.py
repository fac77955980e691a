"""The step on one device and on eight: a recipe must give the same result on every machine."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from seggpt_jax import canvas, palette
from seggpt_jax.metrics.iou import confusion_counts
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.training import sharding
from seggpt_jax.training.loss import masked_smooth_l1
from seggpt_jax.training.optimizer import adamw
from seggpt_jax.training.step import TrainState, init_state, make_eval_step, make_train_step

CONFIG = dataclasses.replace(
  VARIANTS["tiny"],
  canvas_size=(64, 32),
  width=32,
  depth=3,
  mlp_dim=64,
  num_heads=2,
  feature_taps=(1, 2),
  decoder_dim=8,
  drop_path_rate=0.2,
)


def mesh_of(data, fsdp):
  return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


def make_batch(seed=0, size=8):
  generator = np.random.default_rng(seed)
  return {
    "images": generator.integers(0, 256, (size, 64, 32, 3), np.uint8),
    "labels": generator.integers(0, 3, (size, 64, 32), np.uint8),
    "palette": np.stack([palette.sample_palette(generator, 3) for _ in range(size)]),
    "patch_mask": np.stack([canvas.random_patch_mask(generator, CONFIG.grid, 0.75) for _ in range(size)]),
    "valid": np.ones(size, bool),
  }


@functools.cache
def graph_and_params():
  return parameters.split(SegGPT(CONFIG, rngs=nnx.Rngs(0)))


def setup(mesh):
  """Returns the jitted step and a state on the mesh."""
  graph, params = graph_and_params()
  optimizer = adamw(lambda step: 1e-3, b1=0.9, b2=0.999, weight_decay=0.01)
  state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
  where = TrainState(
    sharding.replicated(mesh),
    sharding.tree_sharding(mesh, state.params),
    sharding.tree_sharding(mesh, state.opt_state),
  )
  # A copy: the step donates its state, and several tests start from the same one.
  state = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=where)(state)
  return make_train_step(graph, CONFIG, optimizer, mesh, where), state


@functools.cache
def trajectory(data, fsdp):
  """Returns losses and confusion counts of five steps with drop path, and the final parameters."""
  mesh = mesh_of(data, fsdp)
  step, state = setup(mesh)
  outputs = []
  for index in range(5):
    state, output = step(state, sharding.put_batch(mesh, make_batch(index)), jax.random.key(0))
    outputs.append((float(output.loss), np.asarray(output.confusion)))
  return [loss for loss, _ in outputs], [c for _, c in outputs], jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize(
  ("data", "fsdp"),
  [(4, 2), (2, 1)]
  + [pytest.param(*m, marks=pytest.mark.slow) for m in [(8, 1), (1, 8), (1, 2), (4, 1), (2, 2), (1, 4), (2, 4)]],
)
def test_every_mesh_gives_the_losses_of_one_device(data, fsdp):
  """Reference: one device; float32, 1e-5 relative. Only the order of sums differs, also with drop path."""
  losses, confusions, params = trajectory(data, fsdp)
  expected_losses, expected_confusions, expected_params = trajectory(1, 1)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  total = sum(c.sum() for c in expected_confusions)
  assert sum(np.abs(a - b).sum() for a, b in zip(confusions, expected_confusions, strict=True)) <= 1e-3 * total
  for name, value in params.items():
    # AdamW divides by tiny second moments at first: where a gradient is rounding noise, so is the sign of the step.
    error = np.linalg.norm(value - expected_params[name]) / np.linalg.norm(expected_params[name])
    assert error < 2e-2, name


def test_fsdp_really_splits_parameters_and_optimizer_state():
  mesh = mesh_of(1, 8)
  _, state = setup(mesh)
  bytes_whole = sum(value.nbytes for value in jax.tree.leaves((state.params, state.opt_state)))
  device = jax.devices()[0]
  leaves = jax.tree.leaves((state.params, state.opt_state))
  bytes_here = sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards if s.device == device)
  assert bytes_here < 0.3 * bytes_whole


@pytest.mark.slow  # .ci/run runs it
def test_remat_saves_memory_on_cpus_too():
  """Memory that XLA reserves on top of the state. With the default passes of the CPU compiler remat saves nothing."""
  config = dataclasses.replace(CONFIG, canvas_size=(256, 128), depth=6)
  mesh, optimizer, shape = (
    mesh_of(1, 1),
    adamw(lambda step: 1e-3, b1=0.9, b2=0.999, weight_decay=0.01),
    jax.ShapeDtypeStruct,
  )
  batch = {
    "images": shape((1, *config.canvas_size, 3), jnp.uint8),
    "labels": shape((1, *config.canvas_size), jnp.uint8),
    "palette": shape((1, 3, 3), jnp.uint8),
    "patch_mask": shape((1, *config.grid), jnp.bool_),
    "valid": shape((1,), jnp.bool_),
  }
  temporary = {}
  for remat in ("none", "full"):
    graph, params = parameters.abstract(config, remat=remat, attention="folded")
    state = jax.eval_shape(functools.partial(init_state, optimizer), params)
    step = make_train_step(graph, config, optimizer, mesh, jax.tree.map(lambda _: sharding.replicated(mesh), state))
    compiled = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()
    temporary[remat] = compiled.memory_analysis().temp_size_in_bytes
  assert temporary["full"] < 0.5 * temporary["none"]


def test_the_state_is_donated():
  mesh = mesh_of(1, 1)
  step, state = setup(mesh)
  old = state.params["patch_embed.kernel"]
  state, _ = step(state, sharding.put_batch(mesh, make_batch()), jax.random.key(0))
  assert old.is_deleted() and int(state.step) == 1


def test_the_step_reports_the_loss_and_the_hits_of_the_network_itself():
  """Reference: the network called without jit; loss 1e-4 relative, counts of all but 0.1 % of the pixels."""
  graph, params = graph_and_params()
  mesh, batch = mesh_of(1, 1), make_batch()
  output = make_eval_step(graph, CONFIG, mesh, sharding.tree_sharding(mesh, params))(
    params, sharding.put_batch(mesh, batch)
  )
  painted = np.stack([c[label] for c, label in zip(batch["palette"], batch["labels"], strict=True)])
  images, targets = (canvas.normalize(jnp.asarray(pixels)) for pixels in (batch["images"], painted))
  colors = parameters.merge(graph, params)(images, targets, jnp.asarray(batch["patch_mask"]))
  np.testing.assert_allclose(output.loss, masked_smooth_l1(colors, targets, batch["patch_mask"]), rtol=1e-4)
  decoded = palette.decode(canvas.unnormalize(colors), jnp.asarray(batch["palette"]))
  hidden = np.repeat(np.repeat(batch["patch_mask"], 8, axis=1), 8, axis=2)
  expected = confusion_counts(decoded, batch["labels"].astype(np.int32), 3, hidden)
  assert output.confusion.sum() == hidden.sum()
  assert np.abs(output.confusion - expected).sum() <= 2e-3 * hidden.sum()


def test_pairs_that_only_fill_up_a_batch_count_for_nothing():
  graph, params = graph_and_params()
  mesh = mesh_of(1, 1)
  step = make_eval_step(graph, CONFIG, mesh, sharding.tree_sharding(mesh, params))
  batch = make_batch(size=4)
  batch["valid"] = np.array([True, True, False, False])
  changed = {key: value.copy() for key, value in batch.items()}
  changed["images"][2:] = 0
  changed["labels"][2:] = 0
  first, second = (step(params, sharding.put_batch(mesh, b)) for b in (batch, changed))
  np.testing.assert_allclose(first.loss, second.loss, rtol=1e-6)
  np.testing.assert_array_equal(first.confusion, second.confusion)


def test_ignored_pixels_count_neither_in_the_loss_nor_in_the_scores():
  """Only their label is unknown; the network still sees their image."""
  graph, params = graph_and_params()
  mesh = mesh_of(1, 1)
  step = make_eval_step(graph, CONFIG, mesh, sharding.tree_sharding(mesh, params))
  batch = make_batch(size=4)
  hidden = np.repeat(np.repeat(batch["patch_mask"], 8, axis=1), 8, axis=2)
  ignored = hidden & (np.random.default_rng(1).random(hidden.shape) < 0.5)
  results = []
  for value in (palette.IGNORE, 0):
    changed = {**batch, "labels": np.where(ignored, np.uint8(value), batch["labels"])}
    results.append(step(params, sharding.put_batch(mesh, changed)))
  assert results[0].confusion.sum() == (hidden & ~ignored).sum()
  # The network does not see hidden targets, so its prediction is the same and can be scored by hand.
  np.testing.assert_allclose(results[0].colors, results[1].colors, atol=1e-3)
  painted = np.stack([c[label] for c, label in zip(batch["palette"], batch["labels"], strict=True)])
  colors, targets = canvas.normalize(results[0].colors), canvas.normalize(jnp.asarray(painted))
  size = np.abs(np.asarray(colors - targets))[hidden & ~ignored]
  expected = np.where(size < 0.01, 50 * size * size, size - 0.005).mean()
  # The output clips colors to 0..255, which changes few of them.
  np.testing.assert_allclose(results[0].loss, expected, rtol=2e-2)
  assert abs(float(results[0].loss) - float(results[1].loss)) > 1e-3


def test_the_prompts_of_a_query_are_averaged_and_other_queries_left_alone():
  """Two queries with two prompts each. Reference: one query at a time; 1e-4 relative."""
  graph, params = graph_and_params()
  mesh, batch = mesh_of(1, 1), make_batch(size=4)
  for key in ("images", "labels"):
    batch[key][1::2, 32:] = batch[key][::2, 32:]
  for key in ("palette", "patch_mask"):
    batch[key][1::2] = batch[key][::2]
  where = sharding.tree_sharding(mesh, params)
  together = make_eval_step(graph, CONFIG, mesh, where, prompts_per_query=2)(params, sharding.put_batch(mesh, batch))
  alone = make_eval_step(graph, CONFIG, mesh, where)(params, sharding.put_batch(mesh, batch))
  assert np.abs(together.colors - alone.colors).max() > 1
  for query in (slice(0, 2), slice(2, 4)):
    part = {key: value[query] for key, value in batch.items()}
    step = make_eval_step(graph, CONFIG, mesh, where, prompts_per_query=2)
    np.testing.assert_allclose(
      together.colors[query], step(params, sharding.put_batch(mesh, part)).colors, rtol=1e-4, atol=1e-2
    )
