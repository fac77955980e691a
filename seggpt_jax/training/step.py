"""One training step and one evaluation step as pure, jitted functions of (state, batch).

The batch comes as small integers; painting, normalizing and scoring happen on the device. The old state is donated:
its buffers become the new one's. A batch may be computed in micro-batches, one after the other; the step is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from seggpt_jax import canvas, compilation, palette
from seggpt_jax.metrics.iou import confusion_counts
from seggpt_jax.model import adapters
from seggpt_jax.model.adapters import Adapter
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.parameters import Params, merge
from seggpt_jax.training import sharding
from seggpt_jax.training.loss import masked_smooth_l1


def _compiler_options(mesh: Mesh) -> dict[str, Any]:
  platform = mesh.devices.flat[0].platform
  found = compilation.options(platform)
  if platform == "cpu":
    # XLA's CPU compiler drops the barriers that make remat wait for the gradient it is for, and computes all blocks
    # anew at once: 19 instead of 1.5 GB beside the state for ViT-L and one canvas. Other compilers know their barriers.
    found["xla_disable_hlo_passes"] = "cse_barrier_expander"
    # Several devices of a CPU are its cores, and one core for each is enough: all cores for all get in each other's
    # way.
    found["xla_cpu_multi_thread_eigen"] = len(mesh.local_devices) == 1
  return found


class TrainState(NamedTuple):
  """What a step changes. A tree of shapes or of shardings takes the same form.

  Attributes:
    step: number of steps done.
    params: all parameters, float32.
    opt_state: the optimizer's, of the trained parameters alone.
    ema: float32 average of the trained parameters; {} where none is kept.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState
  ema: Params = {}  # noqa: RUF012 (never changed in place)

  @property
  def averaged(self) -> Params:
    """The parameters to evaluate and to keep as best: averages where there are any."""
    return {**self.params, **self.ema}


class StepOutput(NamedTuple):
  """What a step tells, all still on the device.

  Attributes:
    loss: masked smooth L1 of the batch.
    confusion: pixel counts on the hidden patches, rows truth, columns decoded prediction.
    colors: what the network painted, 0..255, [B, 2S, S, 3]; of the whole batch, in its order, also when it was
      computed in micro-batches.
    gradient_norm: global norm of the trained parameters' gradients, before any clipping; None in an evaluation.
  """

  loss: Float[Array, ""]
  confusion: Int[Array, "n n"]
  colors: Float[Array, "b h w 3"]
  gradient_norm: Float[Array, ""] | None = None


def init_state(
  optimizer: optax.GradientTransformation, params: Params, *, frozen: Collection[str] = (), ema: bool = False
) -> TrainState:
  """The state before the first step.

  Args:
    optimizer: as for `make_train_step`.
    params: all parameters; the average starts as a copy of the trained ones.
    frozen: names of the parameters that are not trained.
    ema: whether an average is kept.
  """
  trained = {name: value for name, value in params.items() if name not in frozen}
  average = {name: jnp.array(value, jnp.float32, copy=True) for name, value in trained.items()} if ema else {}
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), average)


def apply_adapter(adapter: Adapter | None, params: Mapping[str, Any]) -> tuple[Params, Params]:
  """The network's parameters, with what an adapter adds to them, and the adapter's own.

  Args:
    adapter: None if there is none.
    params: those of the network and of the adapter together.
  """
  if adapter is None:
    return dict(params), {}
  own = {name: value for name, value in params.items() if adapters.is_adapter_name(name)}
  return adapter.merge({name: value for name, value in params.items() if name not in own}, own), own


def _forward(
  graph: nnx.GraphDef,
  config: SegGPTConfig,
  params: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray | None,
  prompts_per_query: int,
  adapter: Adapter | None,
) -> tuple[Float[Array, ""], Float[Array, "b h w 3"]]:
  """Loss and normalized colors of a batch; drop path is on when there is a key."""
  mean, std = config.image_mean, config.image_std
  images = canvas.normalize(batch["images"], mean, std)
  targets = canvas.normalize(palette.color_labels(batch["labels"], batch["palette"]), mean, std)
  params, own = apply_adapter(adapter, params)
  if adapter is not None:
    images, targets = adapter.prompt(images, targets, own)
  model = merge(graph, params)
  colors = model(
    images,
    targets,
    batch["patch_mask"],
    prompts_per_query=prompts_per_query,
    deterministic=key is None,
    key=key,
  )
  valid = batch["valid"][:, None, None] & (batch["labels"] != palette.IGNORE)
  return masked_smooth_l1(colors, targets, batch["patch_mask"], valid), colors


def _hidden(config: SegGPTConfig, batch: Mapping[str, Array]) -> Bool[Array, "b h w"]:
  """The pixels that are hidden from the network, but for canvases that only fill up a batch."""
  return canvas.upsample_mask(batch["patch_mask"], config.patch_size) & batch["valid"][:, None, None]


def _score(config: SegGPTConfig, batch: Mapping[str, Array], loss: Array, colors: Array) -> StepOutput:
  """Decodes the colors and counts hits on the hidden patches."""
  colors = canvas.unnormalize(colors, config.image_mean, config.image_std)
  labels = batch["labels"].astype(jnp.int32)
  decoded = palette.decode(colors, batch["palette"])
  # Ignored pixels are of no class, so they are not counted.
  confusion = confusion_counts(decoded, labels, batch["palette"].shape[1], _hidden(config, batch))
  return StepOutput(loss, confusion, colors)


def _shares(config: SegGPTConfig, batches: Mapping[str, Array]) -> Float[Array, "a"]:
  """The share of each micro-batch in the pixels that the whole batch's loss is the mean over."""

  def count(batch: Mapping[str, Array]) -> Array:
    return jnp.sum(_hidden(config, batch) & (batch["labels"] != palette.IGNORE))

  counts = jax.vmap(count)(batches)
  return counts / jnp.maximum(jnp.sum(counts), 1)


def _update_ema(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
  """Exponential moving average; with no more than (1 + t) / (10 + t) of its past after t steps, as usual, so that
  it forgets where it started."""
  past = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return {name: past * average + (1.0 - past) * params[name] for name, average in ema.items()}


def make_train_step(
  graph: nnx.GraphDef,
  config: SegGPTConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  state_sharding: TrainState,
  prompts_per_query: int = 1,
  *,
  frozen: Collection[str] = (),
  accumulate: int = 1,
  ema: float = 0.0,
  adapter: Adapter | None = None,
) -> Callable[[TrainState, Mapping[str, Array], PRNGKeyArray], tuple[TrainState, StepOutput]]:
  """The jitted training step.

  Args:
    graph: structure of the network, of `parameters.split`.
    config: its architecture.
    optimizer: optax transformation that the state was initialized with.
    mesh: where batches are spread.
    state_sharding: a sharding for each leaf of the state.
    prompts_per_query: K; the K canvases of a query are consecutive in a batch.
    frozen: names of parameters that are not trained; no gradients are computed for them.
    accumulate: number of micro-batches that a batch is computed in; its queries are a multiple of this times the
      devices. Gradients are those of the whole batch, but for drop path, which draws anew in each micro-batch.
    ema: decay of the average of the trained parameters, if the state has one.
    adapter: whose parameters stand among those of the state.

  Returns:
    (state, batch, key) -> (state, output). The state passed in is donated; the key is the run's, and each step
    draws its own from it.
  """
  forward = functools.partial(_forward, graph, config, prompts_per_query=prompts_per_query, adapter=adapter)

  def gradients_of(
    trained: Params, fixed: Params, batch: Mapping[str, Array], key: PRNGKeyArray
  ) -> tuple[Params, StepOutput]:
    value_and_grad = jax.value_and_grad(lambda trained: forward({**fixed, **trained}, batch, key), has_aux=True)
    (loss, colors), gradients = value_and_grad(trained)
    return gradients, _score(config, batch, loss, colors)

  def accumulated(
    trained: Params, fixed: Params, batch: Mapping[str, Array], key: PRNGKeyArray
  ) -> tuple[Params, StepOutput]:
    batches = sharding.cut_batch(mesh, batch, accumulate)

    def add(total: Params, element: tuple[Array, Array, Mapping[str, Array]]) -> tuple[Params, StepOutput]:
      index, share, batch = element
      gradients, output = gradients_of(trained, fixed, batch, jax.random.fold_in(key, index))
      # Means over unlike numbers of pixels: each counts for its share of them.
      total = jax.tree.map(lambda total, gradient: total + share * gradient, total, gradients)
      return total, output._replace(loss=share * output.loss)

    zeros = {
      name: jax.lax.with_sharding_constraint(jnp.zeros_like(value), state_sharding.params[name])
      for name, value in trained.items()
    }
    elements = jnp.arange(accumulate), _shares(config, batches), batches
    gradients, outputs = jax.lax.scan(add, zeros, elements)
    colors = sharding.join_batch(mesh, outputs.colors)
    return gradients, StepOutput(jnp.sum(outputs.loss), jnp.sum(outputs.confusion, axis=0), colors)

  def train_step(state: TrainState, batch: Mapping[str, Array], key: PRNGKeyArray) -> tuple[TrainState, StepOutput]:
    trained = {name: value for name, value in state.params.items() if name not in frozen}
    fixed = {name: value for name, value in state.params.items() if name in frozen}
    differentiate = gradients_of if accumulate == 1 else accumulated
    gradients, output = differentiate(trained, fixed, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    average = _update_ema(state.ema, trained, state.step, ema)
    state = TrainState(state.step + 1, {**fixed, **trained}, opt_state, average)
    return state, output._replace(gradient_norm=optax.tree.norm(gradients))

  whole, spread = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    train_step,
    in_shardings=(state_sharding, spread, whole),
    out_shardings=(state_sharding, StepOutput(whole, whole, spread, whole)),
    donate_argnums=0,
    compiler_options=_compiler_options(mesh),
  )


def make_eval_step(
  graph: nnx.GraphDef,
  config: SegGPTConfig,
  mesh: Mesh,
  params_sharding: Any,
  prompts_per_query: int = 1,
  adapter: Adapter | None = None,
) -> Callable[[Params, Mapping[str, Array]], StepOutput]:
  """The jitted evaluation step, (params, batch) -> output, without drop path."""

  def eval_step(params: Params, batch: Mapping[str, Array]) -> StepOutput:
    return _score(config, batch, *_forward(graph, config, params, batch, None, prompts_per_query, adapter))

  whole, spread = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    eval_step,
    in_shardings=(params_sharding, spread),
    out_shardings=StepOutput(whole, whole, spread),
    compiler_options=_compiler_options(mesh),
  )
