"""Optimiser and schedule: a fine-tuning recipe carried over from PyTorch has to walk the same path."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers as peers_lib
import pytest
import torch
from jax.sharding import Mesh

from seggpt_jax import canvas
from seggpt_jax.errors import InputError
from seggpt_jax.model import weights
from seggpt_jax.training import sharding
from seggpt_jax.training.optimizer import adamw, cosine_cycles, muon
from seggpt_jax.training.step import TrainState, make_train_step

BASE = {"peak": 1e-4, "first_cycle": 5000, "cycle_mult": 1.2, "warmup": 500, "decay": 0.5, "minimum": 1e-8}


def original_cycles(num_steps, peak, first_cycle, cycle_mult, warmup, decay, minimum):
  """The cosine annealing with warm restarts of the original's configuration, step by step with plain counters."""
  rates, in_cycle, length, top = [], 0, first_cycle, peak
  for _ in range(num_steps):
    if in_cycle < warmup:
      rates.append((top - minimum) * in_cycle / warmup + minimum)
    else:
      phase = math.pi * (in_cycle - warmup) / (length - warmup)
      rates.append(minimum + (top - minimum) * (1 + math.cos(phase)) / 2)
    in_cycle += 1
    if in_cycle >= length:
      in_cycle, top = 0, top * decay
      length = int((length - warmup) * cycle_mult) + warmup
  return np.array(rates)


@pytest.mark.parametrize("changes", [{}, {"first_cycle": 70, "warmup": 13, "cycle_mult": 1.37}, {"warmup": 0}])
def test_learning_rate_is_the_originals_over_several_cycles(changes):
  """float32 against float64 Python: 1e-5 relative to the peak."""
  values = {**BASE, **changes}
  num_steps = 3 * values["first_cycle"] + 500
  schedule = cosine_cycles(num_steps=num_steps, **values)
  ours = jax.vmap(schedule)(np.arange(num_steps))
  np.testing.assert_allclose(ours, original_cycles(num_steps, **values), rtol=0, atol=1e-5 * values["peak"])


def test_a_cycle_no_longer_than_its_warmup_is_refused():
  with pytest.raises(
    InputError, match=r"config.optim.first_cycle: found 500, expected more than config.optim.warmup = 500"
  ):
    cosine_cycles(num_steps=10, **{**BASE, "first_cycle": 500})


def test_twenty_steps_of_adamw_follow_pytorch():
  """Losses of 20 steps against transformers' network under torch.optim.AdamW: float32, 1e-3 relative; drop path off."""
  pair = peers_lib.build(**{**peers_lib.TINY["square"], "drop_path_rate": 0.0})
  config = dataclasses.replace(pair.config, drop_path_rate=0.0)
  graph, _ = weights.abstract(config)
  # Both warm-ups and both halves of a cosine within 20 steps, at a rate that changes the loss by much.
  recipe = {**BASE, "peak": 2e-3, "first_cycle": 12, "warmup": 3}
  schedule = cosine_cycles(num_steps=20, **recipe)
  optimizer = adamw(schedule, b1=0.9, b2=0.999, weight_decay=0.01)
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
  state = TrainState(jnp.zeros((), jnp.int32), pair.params, optimizer.init(pair.params))
  state_sharding = jax.tree.map(lambda _: sharding.replicated(mesh), state)
  step = make_train_step(graph, config, optimizer, mesh, state_sharding)

  generator = np.random.default_rng(0)
  height, width = config.canvas_size
  batches = [
    {
      "images": generator.integers(0, 256, (2, height, width, 3), np.uint8),
      "labels": generator.integers(0, 3, (2, height, width), np.uint8),
      "palette": generator.integers(0, 256, (2, 3, 3), np.uint8),
      "patch_mask": np.stack([canvas.random_patch_mask(generator, config.grid, 0.75) for _ in range(2)]),
      "valid": np.ones(2, bool),
    }
    for _ in range(3)
  ]
  ours = []
  state = jax.device_put(state, state_sharding)
  for index in range(20):
    state, output = step(state, sharding.put_batch(mesh, batches[index % 3]), jax.random.key(0))
    ours.append(float(output.loss))

  theirs = []
  torch_optimizer = torch.optim.AdamW(pair.theirs.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.01)
  rates = original_cycles(20, **recipe)
  for index in range(20):
    batch = batches[index % 3]
    painted = np.stack([c[label] for c, label in zip(batch["palette"], batch["labels"], strict=True)])
    images, targets = (np.asarray(canvas.normalise(np.asarray(pixels))) for pixels in (batch["images"], painted))
    for group in torch_optimizer.param_groups:
      group["lr"] = rates[index]
    loss = peers_lib.call_theirs(pair.theirs, images, targets, batch["patch_mask"], embedding_type="semantic").loss
    torch_optimizer.zero_grad()
    loss.backward()
    torch_optimizer.step()
    theirs.append(float(loss.detach()))
  assert abs(theirs[-1] - theirs[0]) > 0.05 * theirs[0]
  np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_muon_turns_matrices_of_blocks_and_leaves_the_rest_to_adamw():
  """Singular values of a block's update are nearly equal, its root mean square is Adam's; others are AdamW's."""
  generator = np.random.default_rng(0)
  shapes = {
    "blocks.0.mlp.fc1.kernel": (24, 96),
    "blocks.0.attn.rel_pos_h": (15, 24),
    "blocks.0.mlp.fc1.bias": (96,),
    "patch_embed.kernel": (48, 24),
  }
  params = {name: jnp.asarray(generator.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
  gradients = {name: jnp.asarray(generator.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
  values = {"b1": 0.9, "b2": 0.98, "weight_decay": 0.0}
  rate = 1e-3
  ours, reference = muon(lambda step: rate, **values), optax.nadamw(rate, **values)
  updates, _ = ours.update(gradients, ours.init(params), params)
  expected, _ = reference.update(gradients, reference.init(params), params)
  matrix = updates.pop("blocks.0.mlp.fc1.kernel")
  singular = np.linalg.svd(matrix, compute_uv=False)
  assert singular.max() / singular.min() < 2.0
  # 0.2 is what Adam's updates have at the learning rate 1.
  assert np.sqrt(np.mean(np.square(matrix))) == pytest.approx(0.2 * rate, rel=0.25)
  for name, value in updates.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-9)
