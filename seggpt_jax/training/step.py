"""One training step and one evaluation step as pure, jitted functions of (state, batch).

The batch comes as small integers; painting, normalising and scoring happen on the device. The old state is donated:
its buffers become the new one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from seggpt_jax import canvas, palette
from seggpt_jax.metrics.iou import confusion_counts
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.weights import Params, merge
from seggpt_jax.training import sharding
from seggpt_jax.training.loss import masked_smooth_l1


class TrainState(NamedTuple):
  """What a step changes: the number of steps done, float32 parameters, optimiser state.

  A tree of shapes or of shardings takes the same form.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState


class StepOutput(NamedTuple):
  """What a step tells, all still on the device.

  Attributes:
    loss: masked smooth L1 of the batch.
    confusion: pixel counts on the hidden patches, rows truth, columns decoded prediction.
    colours: what the network painted, 0..255, [B, 2S, S, 3].
  """

  loss: Float[Array, ""]
  confusion: Int[Array, "n n"]
  colours: Float[Array, "b h w 3"]


def _forward(
  graph: nnx.GraphDef,
  config: SegGPTConfig,
  params: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray | None,
  prompts_per_query: int,
) -> tuple[Float[Array, ""], Float[Array, "b h w 3"]]:
  """Loss and normalised colours of a batch; drop path is on when there is a key."""
  mean, std = config.image_mean, config.image_std
  images = canvas.normalise(batch["images"], mean, std)
  targets = canvas.normalise(palette.colour_labels(batch["labels"], batch["palette"]), mean, std)
  model = merge(graph, params)
  colours = model(
    images,
    targets,
    batch["patch_mask"],
    prompts_per_query=prompts_per_query,
    deterministic=key is None,
    key=key,
  )
  valid = batch["valid"][:, None, None] & (batch["labels"] != palette.IGNORE)
  return masked_smooth_l1(colours, targets, batch["patch_mask"], valid), colours


def _score(config: SegGPTConfig, batch: Mapping[str, Array], loss: Array, colours: Array) -> StepOutput:
  """Decodes the colours and counts hits on the hidden patches."""
  colours = canvas.unnormalise(colours, config.image_mean, config.image_std)
  # Ignored pixels are of no class, so they are not counted.
  hidden = canvas.upsample_mask(batch["patch_mask"], config.patch_size) & batch["valid"][:, None, None]
  labels = batch["labels"].astype(jnp.int32)
  decoded = palette.decode(colours, batch["palette"])
  return StepOutput(loss, confusion_counts(decoded, labels, batch["palette"].shape[1], hidden), colours)


def make_train_step(
  graph: nnx.GraphDef,
  config: SegGPTConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  state_sharding: TrainState,
  prompts_per_query: int = 1,
) -> Callable[[TrainState, Mapping[str, Array], PRNGKeyArray], tuple[TrainState, StepOutput]]:
  """The jitted training step.

  Args:
    graph: structure of the network, of `weights.split`.
    config: its architecture.
    optimizer: optax transformation that the state was initialised with.
    mesh: where batches are spread.
    state_sharding: a sharding for each leaf of the state.
    prompts_per_query: K; the K canvases of a query are consecutive in a batch.

  Returns:
    (state, batch, key) -> (state, output). The state passed in is donated; the key is the run's, and each step
    draws its own from it.
  """

  def train_step(state: TrainState, batch: Mapping[str, Array], key: PRNGKeyArray) -> tuple[TrainState, StepOutput]:
    step_key = jax.random.fold_in(key, state.step)
    value_and_grad = jax.value_and_grad(
      lambda params: _forward(graph, config, params, batch, step_key, prompts_per_query), has_aux=True
    )
    (loss, colours), gradients = value_and_grad(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), _score(config, batch, loss, colours)

  whole, spread = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    train_step,
    in_shardings=(state_sharding, spread, whole),
    out_shardings=(state_sharding, StepOutput(whole, whole, spread)),
    donate_argnums=0,
  )


def make_eval_step(
  graph: nnx.GraphDef, config: SegGPTConfig, mesh: Mesh, params_sharding: Any, prompts_per_query: int = 1
) -> Callable[[Params, Mapping[str, Array]], StepOutput]:
  """The jitted evaluation step, (params, batch) -> output, without drop path."""

  def eval_step(params: Params, batch: Mapping[str, Array]) -> StepOutput:
    return _score(config, batch, *_forward(graph, config, params, batch, None, prompts_per_query))

  whole, spread = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(eval_step, in_shardings=(params_sharding, spread), out_shardings=StepOutput(whole, whole, spread))
