"""Networks with random weights for benchmarks: forward pass, inference and training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import noise
from seggpt_jax import canvas, compilation, palette
from seggpt_jax.model import ensemble, parameters
from seggpt_jax.model.adapters import Adapter, is_adapter_name
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.training import sharding
from seggpt_jax.training.optimizer import adamw
from seggpt_jax.training.step import TrainState, init_state, make_train_step


class Training(NamedTuple):
  """A training run before its first step.

  Attributes:
    state: state of the run.
    step: function (state, batch, key) -> (state, output).
    batch: batch of noise on the device.
    frozen: names of the parameters that are not trained.
  """

  state: TrainState
  step: Callable[..., Any]
  batch: Mapping[str, jax.Array]
  frozen: set[str]


def random_params(config: SegGPTConfig) -> parameters.Params:
  """Returns random parameters, the same ones in every call."""
  return jax.jit(lambda: parameters.split(SegGPT(config, rngs=nnx.Rngs(0)))[1])()


def start_training(
  graph: nnx.GraphDef, config: SegGPTConfig, params: parameters.Params, batch_size: int, adapter: Adapter | None = None
) -> Training:
  """Prepares training on one device with AdamW, of all parameters or of an adapter only.

  Args:
    graph: structure of the network.
    config: architecture of the network.
    params: parameters of the network, which are donated.
    batch_size: number of canvases in a step.
    adapter: adapter to initialize and train instead of the network.
  """
  mesh, optimizer = sharding.make_mesh(1, 1), adamw(lambda step: 1e-4, b1=0.9, b2=0.999, weight_decay=0.01)
  if adapter is not None:
    params = params | adapter.init(params, config.canvas_size, jax.random.key(1))
  frozen = {name for name in params if adapter is not None and not is_adapter_name(name)}
  start = functools.partial(init_state, optimizer, frozen=frozen)
  where = jax.tree.map(lambda _: sharding.replicated(mesh), jax.eval_shape(start, params))
  state = jax.jit(start, out_shardings=where, donate_argnums=0)(params)
  step = make_train_step(graph, config, optimizer, mesh, where, frozen=frozen, adapter=adapter)
  batch = sharding.put_batch(mesh, noise.training_batch(config.canvas_size, config.patch_size, batch_size))
  return Training(state, step, batch, frozen)


def train_call(training: Training) -> Callable[[], None]:
  """Returns a function that takes the next step and waits for the result."""
  state, key = training.state, jax.random.key(0)

  def call() -> None:
    nonlocal state
    state, output = training.step(state, training.batch, key)
    jax.block_until_ready((state, output))

  return call


def canvases(config: SegGPTConfig, batch_size: int) -> tuple[jax.Array, jax.Array]:
  """Returns images and colored targets of a batch of noise, normalized."""
  batch = noise.training_batch(config.canvas_size, config.patch_size, batch_size)
  colored = palette.color_labels(batch["labels"], batch["palette"])
  images, targets = (
    canvas.normalize(pixels, config.image_mean, config.image_std) for pixels in (jnp.asarray(batch["images"]), colored)
  )
  return images, targets


def forward_call(graph: nnx.GraphDef, config: SegGPTConfig, params: parameters.Params, batch_size: int):
  """Returns a function that predicts the lower halves of canvases and waits for the colors."""
  images, targets = canvases(config, batch_size)
  mask = jnp.asarray(np.broadcast_to(canvas.lower_half_mask(config.grid), (batch_size, *config.grid)))
  run = compilation.jit(lambda params, *arrays: parameters.merge(graph, params)(*arrays))
  return lambda: jax.block_until_ready(run(params, images, targets, mask))


def predict_call(
  graph: nnx.GraphDef, config: SegGPTConfig, params: parameters.Params, num_queries: int, num_prompts: int = 1
):
  """Returns a function that predicts queries, each with its own prompts, and waits for the colors."""
  rows, cols = config.grid
  side = config.canvas_size[0] // 2
  images, targets = canvases(config, num_queries * num_prompts)
  prompts, prompt_targets = (
    pixels[:, :side].reshape(num_queries, num_prompts, side, *pixels.shape[2:]) for pixels in (images, targets)
  )
  queries = images[::num_prompts, side:]
  mask = jnp.ones((num_queries, rows // 2, cols), bool)
  run = compilation.jit(lambda params, *arrays: ensemble.predict_queries(parameters.merge(graph, params), *arrays))
  return lambda: jax.block_until_ready(run(params, queries, prompts, prompt_targets, jnp.zeros_like(queries), mask))
