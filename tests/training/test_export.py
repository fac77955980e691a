"""Full-size programs are lowered for accelerators without having one: mistakes show before a machine is rented.

ViT-L in bfloat16 is traced from shapes and lowered for TPU and CUDA. Its 1.5 GB are never allocated and nothing runs.
Compilation on the accelerator itself is not tested.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh

from seggpt_jax.inference.forward import predict_colors
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training import sharding
from seggpt_jax.training.optimizer import adamw
from seggpt_jax.training.step import StepOutput, TrainState, make_train_step

PLATFORMS = ("tpu", "cuda")
CONFIG = VARIANTS["vit_large"]
CLASSES = 2
BATCH_RANKS = {"images": 4, "labels": 3, "palette": 3, "patch_mask": 3, "valid": 1}
shape = jax.ShapeDtypeStruct


def mesh_of(data, fsdp):
  return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


def placed(tree, where):
  return jax.tree.map(lambda leaf, s: shape(leaf.shape, leaf.dtype, sharding=s), tree, where)


@functools.cache
def train_program(data, fsdp, batch_size):
  """Returns the exported step and the abstract state it was traced with."""
  mesh = mesh_of(data, fsdp)
  spread = sharding.batch_sharding(mesh) if mesh.size > 1 else None
  options = {"dtype": jnp.bfloat16, "remat": "full", "attention": "folded"}
  graph, params = parameters.abstract(CONFIG, batch_sharding=spread, **options)
  optimizer = adamw(lambda step: 1e-4, b1=0.9, b2=0.999, weight_decay=0.01)
  state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), params)
  where = TrainState(
    sharding.replicated(mesh),
    sharding.tree_sharding(mesh, state.params),
    sharding.tree_sharding(mesh, state.opt_state),
  )
  batch = {
    "images": shape((batch_size, *CONFIG.canvas_size, 3), jnp.uint8),
    "labels": shape((batch_size, *CONFIG.canvas_size), jnp.uint8),
    "palette": shape((batch_size, CLASSES, 3), jnp.uint8),
    "patch_mask": shape((batch_size, *CONFIG.grid), jnp.bool_),
    "valid": shape((batch_size,), jnp.bool_),
  }
  step = make_train_step(graph, CONFIG, optimizer, mesh, where)
  return export.export(step, platforms=PLATFORMS)(state, batch, jax.eval_shape(lambda: jax.random.key(0))), state


@functools.cache
def predict_program(data, fsdp):
  """Returns the exported prediction of two queries with two prompts each, four canvases."""
  graph, params = parameters.abstract(CONFIG, dtype=jnp.bfloat16, attention="folded")
  params = placed(params, sharding.tree_sharding(mesh_of(data, fsdp), params))
  half = shape((2, CONFIG.canvas_size[0] // 2, CONFIG.canvas_size[1], 3), jnp.uint8)
  prompts = shape((2, *half.shape), jnp.uint8)
  mask = shape((2, CONFIG.grid[0] // 2, CONFIG.grid[1]), jnp.bool_)
  return export.export(predict_colors.compiled(), platforms=PLATFORMS)(
    graph, params, half, prompts, prompts, half, mask, "semantic"
  )


def products(exported):
  """Yields kind, dtypes of the factors and size of the result of each matrix product and convolution."""
  pattern = r"stablehlo\.(dot_general|convolution)[^\n]*? : \((.*?)\) -> tensor<(\S+?)x(?:bf16|f32)>"
  for kind, factors, result in re.findall(pattern, exported.mlir_module()):
    yield kind, tuple(re.findall(r"x(bf16|f32)>", factors)), np.prod([int(size) for size in result.split("x")])


def check_products(exported, least):
  """Checks that all products of the size of an activation are computed in bfloat16.

  Only products of parameters with constants are in float32: the resizing of the position embedding.
  """
  found = list(products(exported))
  assert sum(factors == ("bf16", "bf16") for _, factors, _ in found) >= least
  largest = max(size for _, factors, size in found if factors != ("bf16", "bf16"))
  assert largest <= CONFIG.width * CONFIG.grid[0] * CONFIG.grid[1]
  assert all(factors == ("bf16", "bf16") for kind, factors, _ in found if kind == "convolution")


def described(tree):
  return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("data", "fsdp", "batch_size"), [(1, 1, 4), (1, 8, 8)])
def test_the_full_size_training_step_is_a_program_for_tpu_and_cuda(data, fsdp, batch_size):
  exported, state = train_program(data, fsdp, batch_size)
  assert exported.platforms == PLATFORMS and exported.nr_devices == data * fsdp
  new_state, output = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  assert described(new_state) == described(state)
  colors = shape((batch_size, *CONFIG.canvas_size, 3), jnp.float32)
  expected = StepOutput(shape((), jnp.float32), shape((CLASSES, CLASSES), jnp.int32), colors, shape((), jnp.float32))
  assert described(output) == described(expected)
  # Some of the 24 blocks are one function that is called several times.
  check_products(exported, least=5 * CONFIG.depth)


@pytest.mark.parametrize(("data", "fsdp", "batch_size"), [(1, 1, 4), (1, 8, 8)])
def test_the_program_writes_the_new_state_over_the_old_one(data, fsdp, batch_size):
  """Otherwise parameters and optimizer state would be in memory twice: 4.4 GB more on one device."""
  exported, state = train_program(data, fsdp, batch_size)
  module = exported.mlir_module()
  main = next(line for line in module.splitlines() if "func.func public @main" in line)
  leaves = jax.tree.leaves(state)
  for index in range(len(leaves)):
    # Argument 0 is the index of the platform, since the program is exported for several.
    argument = re.search(rf"%arg{index + 1}: tensor<.*?(?=, %arg)", main).group()
    assert f"tf.aliasing_output = {index} :" in argument, argument


def test_the_program_splits_parameters_and_batch_over_the_devices():
  """On eight devices with FSDP, kernels, their moments and the batch are split by eight; the rest is copied."""
  exported, state = train_program(1, 8, 8)
  mesh = mesh_of(1, 8)
  inputs = jax.tree.unflatten(exported.in_tree, exported.in_shardings_jax(mesh))[0]
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_shardings_jax(mesh))
  split = sharding.batch_sharding(mesh)
  for name, leaf in state.params.items():
    expected = sharding._param_sharding(mesh, name, leaf.shape)
    for tree in (inputs[0].params, inputs[0].opt_state[0].mu, inputs[0].opt_state[0].nu, outputs[0].params):
      assert tree[name].is_equivalent_to(expected, len(leaf.shape)), name
  whole = sum(np.prod(leaf.shape) for leaf in state.params.values())
  here = sum(np.prod(inputs[0].params[name].shard_shape(leaf.shape)) for name, leaf in state.params.items())
  assert 1 / 8 <= here / whole < 1.02 / 8
  for name, leaf in inputs[1].items():
    assert leaf.is_equivalent_to(split, BATCH_RANKS[name]), name


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (1, 8)])
def test_the_full_size_prediction_is_a_program_for_tpu_and_cuda(data, fsdp):
  exported = predict_program(data, fsdp)
  assert exported.platforms == PLATFORMS and exported.nr_devices == data * fsdp
  height, width = CONFIG.canvas_size
  assert described(exported.out_avals) == [((2, height // 2, width, 3), jnp.dtype(jnp.uint8))]
  check_products(exported, least=10)
