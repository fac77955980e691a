"""Builds the training step and the evaluation step: pure, jitted functions of (state, batch).

A batch arrives as small integers; coloring, normalizing and scoring happen on the device. The old state is donated: its
buffers become those of the new state. A batch may be computed in micro-batches, one after the other, with the same
result.
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
from seggpt_jax.training.loss import LossOptions, training_loss


def _compiler_options(mesh: Mesh) -> dict[str, Any]:
  """Returns the options of XLA for the devices of a mesh."""
  platform = mesh.devices.flat[0].platform
  options = compilation.options(platform)
  if platform == "cpu":
    # XLA's CPU compiler drops the barriers with which remat waits for the gradient, and recomputes all blocks at once:
    # ViT-L and one canvas then take 19 instead of 1.5 GB on top of the state. Other compilers keep the barriers.
    options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    # Several devices of a CPU are its cores. One thread for each is enough: more get in each other's way.
    options["xla_cpu_multi_thread_eigen"] = len(mesh.local_devices) == 1
  return options


class TrainState(NamedTuple):
  """The state that a step changes. Trees of its shapes or shardings have the same form.

  Attributes:
    step: number of steps done.
    params: all parameters, float32.
    opt_state: state of the optimizer, for the trained parameters alone.
    ema: float32 moving average of the trained parameters; {} without an average.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState
  ema: Params = {}  # noqa: RUF012 (never changed in place)

  @property
  def averaged(self) -> Params:
    """Parameters to evaluate and to keep as best: averages where there are any."""
    return {**self.params, **self.ema}


class StepOutput(NamedTuple):
  """The results of a step, still on the device.

  Attributes:
    loss: loss of the batch.
    confusion: pixel counts on the hidden patches; rows are the truth, columns the decoded prediction.
    colors: predicted colors, 0..255, [B, 2S, S, 3], of the whole batch in its order; None of a trained head.
    gradient_norm: global norm of the gradients of all trained parameters, before clipping; None in an evaluation.
  """

  loss: Float[Array, ""]
  confusion: Int[Array, "n n"]
  colors: Float[Array, "b h w 3"] | None
  gradient_norm: Float[Array, ""] | None = None


def init_state(
  optimizer: optax.GradientTransformation, params: Params, *, frozen: Collection[str] = (), ema: bool = False
) -> TrainState:
  """Returns the state before the first step.

  Args:
    optimizer: transformation of the trained parameters.
    params: all parameters; the moving average starts as a copy of the trained ones.
    frozen: names of the parameters that are not trained.
    ema: whether to keep a moving average.
  """
  trained = {name: value for name, value in params.items() if name not in frozen}
  average = {name: jnp.array(value, jnp.float32, copy=True) for name, value in trained.items()} if ema else {}
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), average)


def apply_adapter(adapter: Adapter | None, params: Mapping[str, Any]) -> tuple[Params, Params]:
  """Returns the network's parameters with the adapter merged in, and the adapter's own parameters.

  Args:
    adapter: adapter, or None.
    params: parameters of network and adapter together.
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
  loss: LossOptions,
) -> tuple[Float[Array, ""], Float[Array, "b h w 3"]]:
  """Returns loss and normalized colors of a batch; drop path is on when there is a key."""
  mean, std = config.image_mean, config.image_std
  images = canvas.normalize(batch["images"], mean, std)
  targets = canvas.normalize(palette.color_labels(batch["labels"], batch["palette"]), mean, std)
  params, own = apply_adapter(adapter, params)
  if adapter is not None:
    images, targets = adapter.prompt(images, targets, own)
  model = merge(graph, params)
  colors = model(
    images, targets, batch["patch_mask"], prompts_per_query=prompts_per_query, deterministic=key is None, key=key
  )
  unnormalized = canvas.unnormalize(colors, mean, std)
  scored = (batch["labels"], batch["palette"], batch["patch_mask"], batch["valid"])
  return training_loss(colors, targets, *scored, unnormalized, loss), colors


def _hidden(config: SegGPTConfig, batch: Mapping[str, Array]) -> Bool[Array, "b h w"]:
  """Returns the mask of pixels hidden from the network, without canvases that only fill up a batch."""
  return canvas.upsample_mask(batch["patch_mask"], config.patch_size) & batch["valid"][:, None, None]


def _score(
  config: SegGPTConfig, batch: Mapping[str, Array], loss: Array, colors: Array, group: int | None
) -> StepOutput:
  """Decodes the colors, as inference does, and counts pixels of the hidden patches by class.

  Args:
    config: the architecture.
    batch: the canvases.
    loss: the loss.
    colors: predicted colors, normalized.
    group: canvases of a query, whose prompts together say which classes are asked for; None asks for all classes.
  """
  colors = canvas.unnormalize(colors, config.image_mean, config.image_std)
  labels = batch["labels"].astype(jnp.int32)
  prompts = labels[:, : labels.shape[1] // 2]
  shown = None if group is None else palette.shown_classes(prompts, batch["palette"].shape[1], group)
  decoded = palette.decode(colors, batch["palette"], shown=shown)
  # Ignored pixels have a label that is no class, so `confusion_counts` leaves them out.
  confusion = confusion_counts(decoded, labels, batch["palette"].shape[1], _hidden(config, batch))
  return StepOutput(loss, confusion, colors)


def _asked_together(prompts_per_query: int, adapter: Adapter | None) -> int | None:
  """Returns how many canvases' prompts ask a query together; None if a learned prompt asks for all classes."""
  return None if isinstance(adapter, adapters.LearnedPrompt) else prompts_per_query


def _loss_weights(config: SegGPTConfig, batches: Mapping[str, Array]) -> Float[Array, "a"]:
  """Returns the share of each micro-batch in the pixels over which the loss of the whole batch is averaged."""

  def count(batch: Mapping[str, Array]) -> Array:
    return jnp.sum(_hidden(config, batch) & (batch["labels"] != palette.IGNORE))

  counts = jax.vmap(count)(batches)
  return counts / jnp.maximum(jnp.sum(counts), 1)


def _update_ema(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
  """Returns the next exponential moving average.

  After t steps at most (1 + t) / (10 + t) of the former average remains, as usual, so that it forgets the start.
  """
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
  loss: LossOptions | None = None,
) -> Callable[[TrainState, Mapping[str, Array], PRNGKeyArray], tuple[TrainState, StepOutput]]:
  """Returns the jitted training step.

  Args:
    graph: structure of the network, from `parameters.split`.
    config: architecture of the network.
    optimizer: optax transformation that the state was initialized with.
    mesh: devices that share a batch.
    state_sharding: a sharding for each leaf of the state.
    prompts_per_query: K; the K canvases of a query are consecutive in a batch.
    frozen: names of parameters that are not trained; no gradients are computed for them.
    accumulate: number of micro-batches of a batch; the number of queries is a multiple of this times the devices.
      Gradients are those of the whole batch, except that drop path draws anew in each micro-batch, and that
      the Dice loss is the mean over the canvases of each, weighted by its hidden pixels.
    ema: decay of the moving average, if the state has one.
    adapter: adapter whose parameters are in the state; None without one.
    loss: weights of the parts of the loss; SegGPT's by default.

  Returns:
    (state, batch, key) -> (state, output). The state passed in is donated. The key is that of the run; each step
    derives its own key from it.
  """
  loss, group = loss or LossOptions(), _asked_together(prompts_per_query, adapter)
  forward = functools.partial(_forward, graph, config, prompts_per_query=prompts_per_query, adapter=adapter, loss=loss)

  def whole_batch(
    trained: Params, fixed: Params, batch: Mapping[str, Array], key: PRNGKeyArray
  ) -> tuple[Params, StepOutput]:
    """Returns gradients and output of a batch."""
    value_and_grad = jax.value_and_grad(lambda trained: forward({**fixed, **trained}, batch, key), has_aux=True)
    (loss, colors), gradients = value_and_grad(trained)
    return gradients, _score(config, batch, loss, colors, group)

  def micro_batches(
    trained: Params, fixed: Params, batch: Mapping[str, Array], key: PRNGKeyArray
  ) -> tuple[Params, StepOutput]:
    """Returns gradients and output of a batch that is computed in parts."""
    batches = sharding.cut_batch(mesh, batch, accumulate)

    def add(total: Params, element: tuple[Array, Array, Mapping[str, Array]]) -> tuple[Params, StepOutput]:
      index, weight, batch = element
      gradients, output = whole_batch(trained, fixed, batch, jax.random.fold_in(key, index))
      # Losses are means over different numbers of pixels, so each is weighted by its number.
      total = jax.tree.map(lambda total, gradient: total + weight * gradient, total, gradients)
      return total, output._replace(loss=weight * output.loss)

    zeros = {
      name: jax.lax.with_sharding_constraint(jnp.zeros_like(value), state_sharding.params[name])
      for name, value in trained.items()
    }
    elements = jnp.arange(accumulate), _loss_weights(config, batches), batches
    gradients, outputs = jax.lax.scan(add, zeros, elements)
    colors = sharding.join_batch(mesh, outputs.colors)
    return gradients, StepOutput(jnp.sum(outputs.loss), jnp.sum(outputs.confusion, axis=0), colors)

  def train_step(state: TrainState, batch: Mapping[str, Array], key: PRNGKeyArray) -> tuple[TrainState, StepOutput]:
    trained = {name: value for name, value in state.params.items() if name not in frozen}
    fixed = {name: value for name, value in state.params.items() if name in frozen}
    differentiate = whole_batch if accumulate == 1 else micro_batches
    gradients, output = differentiate(trained, fixed, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    average = _update_ema(state.ema, trained, state.step, ema)
    state = TrainState(state.step + 1, {**fixed, **trained}, opt_state, average)
    return state, output._replace(gradient_norm=optax.tree.norm(gradients))

  replicated, batch_sharded = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    train_step,
    in_shardings=(state_sharding, batch_sharded, replicated),
    out_shardings=(state_sharding, StepOutput(replicated, replicated, batch_sharded, replicated)),
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
  loss: LossOptions | None = None,
) -> Callable[[Params, Mapping[str, Array]], StepOutput]:
  """Returns the jitted evaluation step, (params, batch) -> output, without drop path.

  Args:
    graph: structure of the network, from `parameters.split`.
    config: architecture of the network.
    mesh: devices that share a batch.
    params_sharding: a sharding for each parameter.
    prompts_per_query: K; the K canvases of a query are consecutive in a batch.
    adapter: adapter whose parameters are among `params`; None without one.
    loss: weights of the parts of the loss; SegGPT's by default.
  """

  def eval_step(params: Params, batch: Mapping[str, Array]) -> StepOutput:
    output = _forward(graph, config, params, batch, None, prompts_per_query, adapter, loss or LossOptions())
    return _score(config, batch, *output, _asked_together(prompts_per_query, adapter))

  replicated, batch_sharded = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    eval_step,
    in_shardings=(params_sharding, batch_sharded),
    out_shardings=StepOutput(replicated, replicated, batch_sharded),
    compiler_options=_compiler_options(mesh),
  )
