"""Optimizer and schedule: a fine-tuning recipe from PyTorch has to give the same training here."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import Mesh

from seggpt_jax import canvas
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training import sharding
from seggpt_jax.training.config import default_config
from seggpt_jax.training.optimizer import (
  _cosine_cycles,
  _frozen_names,
  _is_decayed,
  _layer_of,
  _rate_factors,
  adamw,
  make_optimizer,
  muon,
)
from seggpt_jax.training.step import TrainState, make_train_step
from tests import peers as peers_lib

BASE = {"peak": 1e-4, "first_cycle": 5000, "cycle_mult": 1.2, "warmup": 500, "decay": 0.5, "minimum": 1e-8}


def original_cycles(num_steps, peak, first_cycle, cycle_mult, warmup, decay, minimum):
  """Returns the learning rates of the original's cosine annealing with warm restarts, computed with plain counters."""
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
  schedule = _cosine_cycles(num_steps=num_steps, **values)
  ours = jax.vmap(schedule)(np.arange(num_steps))
  np.testing.assert_allclose(ours, original_cycles(num_steps, **values), rtol=0, atol=1e-5 * values["peak"])


def test_a_cycle_no_longer_than_its_warmup_is_refused():
  with pytest.raises(
    InputError, match=r"config.optim.first_cycle: found 500, expected more than config.optim.warmup = 500"
  ):
    _cosine_cycles(num_steps=10, **{**BASE, "first_cycle": 500})


@pytest.mark.parametrize(("peak", "warmup", "num_steps"), [(1e-3, 10, 100), (1e-4, 0, 7), (0.0, 2, 9)])
def test_one_cosine_rises_in_a_line_and_is_down_at_the_end_of_the_run(peak, warmup, num_steps):
  """Reference: the formula in float64; 1e-6 of the peak. A peak of 0 keeps the rate at 0."""
  optim = default_config().optim
  optim.update(schedule="cosine", peak=peak, warmup=warmup, first_cycle=0)
  ours = jax.vmap(make_optimizer(optim, num_steps, {"blocks.0.mlp.fc1.kernel": None}).schedule)(
    np.arange(num_steps + 1)
  )
  least = min(peak, 1e-8)
  for step, rate in enumerate(ours):
    phase = math.pi * (step - warmup) / (num_steps - warmup)
    expected = least + (peak - least) * (step / warmup if step < warmup else (1 + math.cos(phase)) / 2)
    assert float(rate) == pytest.approx(expected, abs=1e-6 * peak + 1e-12), step
  assert float(ours[-1]) == pytest.approx(least, rel=1e-4)


def test_a_cosine_no_longer_than_its_warmup_is_refused():
  optim = default_config().optim
  optim.schedule = "cosine"
  with pytest.raises(InputError, match=r"config.optim.warmup: found 500, expected less than config.num_steps = 500"):
    make_optimizer(optim, 500, {"blocks.0.mlp.fc1.kernel": None})


def tiny_params():
  return parameters.abstract(VARIANTS["tiny"])[1]


# Every parameter outside the blocks of the tiny network: its layer, where the six blocks are 1 to 6, and whether it is
# decayed.
OUTSIDE = {
  "patch_embed.kernel": (0, True),
  "patch_embed.bias": (0, False),
  "pos_embed": (0, False),
  "mask_token": (0, False),
  "segment_token_x": (0, False),
  "segment_token_y": (0, False),
  "type_token_cls": (0, False),
  "type_token_ins": (0, False),
  "norm.scale": (7, False),
  "norm.bias": (7, False),
  "decoder_embed.kernel": (7, True),
  "decoder_embed.bias": (7, False),
  "decoder_pred.conv.kernel": (7, True),
  "decoder_pred.conv.bias": (7, False),
  "decoder_pred.norm.scale": (7, False),
  "decoder_pred.norm.bias": (7, False),
  "decoder_pred.head.kernel": (7, True),
  "decoder_pred.head.bias": (7, False),
}
IN_A_BLOCK = {
  "norm1.scale": False,
  "norm1.bias": False,
  "norm2.scale": False,
  "norm2.bias": False,
  "attn.qkv.kernel": True,
  "attn.qkv.bias": False,
  "attn.proj.kernel": True,
  "attn.proj.bias": False,
  "attn.rel_pos_h": False,
  "attn.rel_pos_w": False,
  "mlp.fc1.kernel": True,
  "mlp.fc1.bias": False,
  "mlp.fc2.kernel": True,
  "mlp.fc2.bias": False,
}
CLASSES = OUTSIDE | {
  f"blocks.{block}.{name}": (block + 1, decayed) for block in range(6) for name, decayed in IN_A_BLOCK.items()
}

# Blocks that some tests do without; these also make all sides 2, to be quick.
WITHOUT = ("blocks.1", "blocks.2", "blocks.3", "blocks.4")


def test_every_parameter_has_its_layer_and_its_decay():
  """A parameter that is new to the network has to be put into the tables here and there."""
  params = tiny_params()
  assert {name: (_layer_of(name, 6), _is_decayed(name)) for name in params} == CLASSES
  factors = _rate_factors(params, 0.5)
  assert factors["pos_embed"] == 0.5**7 and factors["blocks.5.norm1.scale"] == 0.5 and factors["norm.scale"] == 1
  for name in ("memory_token", "head.weight", "blocks.0.attn.gate"):
    with pytest.raises(ValueError, match=f"{name}: found in no row"):
      _rate_factors({**params, name: None}, 0.5)
      _is_decayed(name)


@pytest.mark.parametrize(("name", "decay_all"), [("adamw", False), ("adamw", True), ("muon", False)])
def test_layer_decay_and_decay_mask_reach_every_parameter_of_both_optimizers(name, decay_all):
  """Two steps, with decay and without, on ones and the same gradients: 1e-5 relative, float32 rounding.

  The difference between them is rate * factor * weight_decay where there is decay, and zero elsewhere.
  """
  config = default_config()
  config.optim.update(name=name, schedule="cosine", warmup=0, peak=0.1)
  config.optim.update(layer_decay=0.8, decay_all=decay_all)
  shapes = {name: (2,) * value.ndim for name, value in tiny_params().items() if not name.startswith(WITHOUT)}
  params = {name: jnp.ones(shape) for name, shape in shapes.items()}
  generator = np.random.default_rng(0)
  gradients = {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
  updates = {}
  for factor, decay in ((0.8, 0.0), (0.8, 0.5), (1.0, 0.0)):
    config.optim.layer_decay, config.optim.weight_decay = factor, decay
    transform = make_optimizer(config.optim, 10, params).transform
    updates[factor, decay], _ = transform.update(gradients, transform.init(params), params)
  for name, value in updates[0.8, 0.5].items():
    layer, decayed = CLASSES[name]
    rate = 0.8 ** (7 - layer)
    expected = updates[0.8, 0.0][name] - (0.1 * rate * 0.5 if decayed or decay_all else 0.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(updates[0.8, 0.0][name], rate * updates[1.0, 0.0][name], rtol=1e-5, err_msg=name)


def test_freezing_takes_the_names_in_which_a_pattern_is_found():
  params = tiny_params()
  frozen = _frozen_names((r"^blocks\.[0-4]\.", "pos_embed"), params)
  assert frozen == {name for name, (layer, _) in CLASSES.items() if 1 <= layer <= 5} | {"pos_embed"}
  assert _frozen_names((), params) == frozenset()
  optim = default_config().optim
  for patterns, message in (
    (("pos_embed", "posembed"), r"found 'posembed', expected a regular expression that fits the name of a parameter"),
    (("(",), r"found '\(', expected a regular expression: missing \)"),
    (("kernel", "."), r"found \('kernel', '.'\), expected some parameters to be left to train"),
  ):
    optim.freeze = patterns
    with pytest.raises(InputError, match=f"config.optim.freeze: {message}"):
      make_optimizer(optim, 10, params)


@pytest.mark.parametrize("freeze", ["^blocks", "^(?!blocks.*kernel)"])
def test_muon_is_left_with_only_its_matrices_or_none_of_them(freeze):
  params = {name: jnp.ones((2,) * value.ndim) for name, value in tiny_params().items() if not name.startswith(WITHOUT)}
  optim = default_config().optim
  optim.update(name="muon", freeze=(freeze,))
  transform, _, frozen = make_optimizer(optim, 10, params)
  trained = {name: value for name, value in params.items() if name not in frozen}
  updates, _ = transform.update(trained, transform.init(trained), trained)
  assert updates.keys() == trained.keys() and 0 < len(trained) < len(params)


def test_twenty_steps_of_adamw_follow_pytorch():
  """Losses of 20 steps against transformers' network under torch.optim.AdamW: float32, 1e-3 relative; drop path off."""
  pair = peers_lib.build(**{**peers_lib.TINY["square"], "drop_path_rate": 0.0})
  config = dataclasses.replace(pair.config, drop_path_rate=0.0)
  graph, _ = parameters.abstract(config)
  # Both warm-ups and both halves of a cosine within 20 steps, at a rate that changes the loss by much.
  recipe = {**BASE, "peak": 2e-3, "first_cycle": 12, "warmup": 3}
  schedule = _cosine_cycles(num_steps=20, **recipe)
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
    images, targets = (np.asarray(canvas.normalize(np.asarray(pixels))) for pixels in (batch["images"], painted))
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
  """The update of a matrix has nearly equal singular values and Adam's root mean square; others are AdamW's."""
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
  # Adam's updates have a root mean square of 0.2 at the learning rate 1.
  assert np.sqrt(np.mean(np.square(matrix))) == pytest.approx(0.2 * rate, rel=0.25)
  for name, value in updates.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-9)
