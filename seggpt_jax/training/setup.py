"""Builds everything that a training run consists of: configuration and run directory in, `Run` out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from seggpt_jax.data import pipeline
from seggpt_jax.errors import InputError
from seggpt_jax.files import exclusive, expand, refuse_patterns, refuse_remote, remove_leftovers, writing
from seggpt_jax.model import packaged, parameters, weights
from seggpt_jax.model.adapter_files import StoredAdapter
from seggpt_jax.model.adapters import Adapter, is_adapter_name
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.training import resume, sharding
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.config import adapter_of, check_config, expand_paths
from seggpt_jax.training.inputs import Inputs, open_inputs
from seggpt_jax.training.loss import LossOptions
from seggpt_jax.training.monitor import Monitor, SharedBadFiles
from seggpt_jax.training.optimizer import Optimizer, make_optimizer
from seggpt_jax.training.sharding import DeviceFeed
from seggpt_jax.training.step import StepOutput, TrainState, init_state, make_eval_step, make_train_step
from seggpt_jax.training.step_recorder import StepProfiler, StepRecorder
from seggpt_jax.training.trackers import TRACKERS, check_tracker
from seggpt_jax.training.validation import BestScore, Validation, Validator

_KEPT = 2  # newest checkpoints
_MOST_THREADS = 16  # that read and transform ahead, in each process


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that the steps of a training run need."""

  config: ConfigDict  # checked configuration, with paths expanded
  model_config: SegGPTConfig  # architecture of the network
  mesh: Mesh  # all devices
  start: int  # number of steps done by earlier starts of the run
  state: TrainState  # restored or fresh state; the first step donates it
  schedule: optax.Schedule  # step, counted from 0 -> learning rate
  # (state, batch, key) -> (state, output), compiled at its first call.
  train_step: Callable[..., tuple[TrainState, StepOutput]]
  validate: Callable[[parameters.Params], Validation]  # scores parameters on the validation data
  best: BestScore  # best validation score so far
  feed: DeviceFeed  # training batches, on the devices
  bad_files: SharedBadFiles  # collects files that cannot be read
  recorder: StepRecorder  # collects the numbers of the steps
  profiler: StepProfiler  # profiles a few steps if config.profile_steps asks for it
  checkpoints: Checkpoints  # writes checkpoints
  monitor: Monitor  # writes metrics, pictures and lines for the person at the keyboard
  epoch: int | None = None  # number of training pairs after which they start again in another order, if they do

  @property
  def progress(self) -> dict[str, Any]:
    """Numbers that a checkpoint stores in addition to the state."""
    return {"epoch": self.epoch, **self.best.to_progress()}


def prepare(config: ConfigDict, workdir: str | os.PathLike, held: contextlib.ExitStack) -> Run:
  """Checks everything that can be wrong before the first step and builds the run, or restores it.

  Args:
    config: configuration, with the keys of `training.schema`; it is not changed.
    workdir: run directory; nothing is written to it before all checks have passed.
    held: takes the lock of the run directory, which is released when it closes.

  Raises:
    InputError: something is wrong with the configuration, the data, the weights or the run directory.
  """
  workdir, config, changed = check_start(config, workdir)
  model_config = architecture(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  _check_batch_size(config, model_config)
  inputs = open_inputs(config, model_config, workdir)
  # What was measured becomes part of the run, for its next start and for inference.
  config.data.update(zoom=inputs.scale.zoom, prompt_grid=inputs.scale.prompt_grid)
  # So do the names of classes, under which labeling tools get predictions.
  config.data.class_names = config.data.class_names or inputs.class_names
  plan = make_plan(config, model_config, mesh)

  make_folders(workdir, held)
  checkpoints, state, progress = open_state(config, model_config, plan, workdir)
  if progress.get("epoch", inputs.training.epoch) != inputs.training.epoch:
    changed.append(
      f"the number of training images, {progress['epoch']} then, {inputs.training.epoch} now: another order"
    )
  start, described = int(state.step), _describe(config, model_config, mesh)
  monitor = open_monitor(config, workdir, start, described, changed, (*checkpoints.warnings, *inputs.notes))
  bad_files = SharedBadFiles(inputs.sources, config.data.bad_share, monitor.say)
  prompts, where = config.data.prompts, plan.state_sharding
  learning = {"frozen": plan.optimizer.frozen, "accumulate": config.accumulate, "ema": config.optim.ema}
  transform, adapter = plan.optimizer.transform, plan.adapter
  loss = LossOptions(**config.loss)
  batches = pipeline.training_batches(
    inputs.training,
    batch_size=config.batch_size // jax.process_count(),
    seed=config.seed,
    num_threads=min(os.cpu_count() or 1, _MOST_THREADS),
    num_workers=config.data.num_workers,
    **{"process_index": jax.process_index(), "process_count": jax.process_count()},
    start=start,  # each step takes one batch, so the number of steps done is also the position in the data
  )
  eval_step = make_eval_step(plan.graph, model_config, mesh, where.params, prompts, adapter, loss)
  return Run(
    config=config,
    model_config=model_config,
    mesh=mesh,
    start=start,
    state=state,
    epoch=inputs.training.epoch,
    schedule=plan.optimizer.schedule,
    train_step=make_train_step(
      plan.graph, model_config, transform, mesh, where, prompts, adapter=adapter, loss=loss, **learning
    ),
    validate=Validator(config, inputs.evaluation, model_config, mesh, eval_step, bad_files),
    best=BestScore.resumed(config, progress),
    feed=DeviceFeed(batches, functools.partial(sharding.put_pairs, mesh)),
    bad_files=bad_files,
    recorder=StepRecorder(
      config.data.num_classes, functools.partial(_describe_samples, inputs), checkpoints.describe_newest
    ),
    profiler=StepProfiler(workdir / "profile", start, config.profile_steps, monitor.say),
    checkpoints=checkpoints,
    monitor=monitor,
  )


def check_start(config: ConfigDict, workdir: str | os.PathLike) -> tuple[Path, ConfigDict, list[str]]:
  """Returns run directory and checked configuration, and the keys that have changed since the run's last start."""
  refuse_remote("--workdir", workdir)
  refuse_patterns("--workdir", workdir)
  workdir, config = Path(expand(workdir)), expand_paths(config)
  check_config(config)
  check_tracker(config.tracker)
  resume.check_workdir(workdir)
  config = resume.keep_pairs(workdir, config)
  changed = resume.changed_keys(workdir, config)
  return workdir, config, changed


def make_folders(workdir: Path, held: contextlib.ExitStack) -> None:
  """Makes the folders of a run and takes its lock."""
  for folder in ("checkpoints", "best", "panels"):
    with writing(workdir / folder):
      (workdir / folder).mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    held.enter_context(exclusive(workdir))
    remove_leftovers(workdir, "panels", "checkpoints", "best")


def open_monitor(
  config: ConfigDict, workdir: Path, start: int, described: str, changed: Sequence[str], lines: Sequence[str]
) -> Monitor:
  """Stores the configuration, and opens the monitor of a run with what there is to say about its start."""
  resume.store_config(workdir, config)
  tracker = functools.partial(TRACKERS[config.tracker], workdir, start, config.to_dict())
  monitor = Monitor(workdir, config.num_steps, start, enabled=jax.process_index() == 0, tracker=tracker)
  monitor.say(f"{f'resumed at step {start}' if start else 'new run'}: {described}")
  for line in (*([f"changed since the run was last started: {', '.join(changed)}"] if changed else []), *lines):
    monitor.say(line)
  return monitor


@dataclasses.dataclass(frozen=True)
class Plan:
  """The computation of a run, without any values."""

  graph: nnx.GraphDef  # structure of the network
  adapter: Adapter | None  # adapter to train, or None
  init_adapter: Callable[[jax.Array], parameters.Params] | None  # key -> fresh parameters of the adapter
  optimizer: Optimizer  # optimizer, schedule and names of frozen parameters
  init_state: Callable[[parameters.Params], TrainState]  # parameters -> state before the first step
  state_sharding: TrainState  # a sharding for each leaf of the state
  abstract_state: TrainState  # shape, dtype and sharding of each leaf of the state


def make_plan(config: ConfigDict, model_config: SegGPTConfig, mesh: Mesh, *, scan: bool | None = None) -> Plan:
  """Builds network, adapter and optimizer from shapes alone.

  Args:
    config: checked configuration.
    model_config: architecture of the network.
    mesh: devices, which may be part of a topology that is not there.
    scan: option of `SegGPT`; by default as the devices need it.
  """
  # The devices of the mesh decide, not those of this process, so that a plan can be made for devices that are not here.
  device = mesh.devices.flat[0]
  model = config.model
  options = {"dtype": _dtype(config, device), "remat": model.remat, "attention": model.attention}
  options |= {"device": device, "scan": scan}
  if mesh.size > 1:
    options["batch_sharding"] = sharding.batch_sharding(mesh)
  graph, params = parameters.abstract(model_config, **options)
  adapter, init_adapter = adapter_of(config), None
  if adapter is not None:
    init_adapter = functools.partial(adapter.init, params, model_config.canvas_size)
    params = params | jax.eval_shape(init_adapter, jax.random.key(0))
  optimizer = make_optimizer(config.optim, config.num_steps, params, config.adapter.kind)
  initial = functools.partial(init_state, optimizer.transform, frozen=optimizer.frozen, ema=config.optim.ema > 0)
  shapes = jax.eval_shape(initial, params)
  trees = (sharding.tree_sharding(mesh, tree) for tree in (shapes.params, shapes.opt_state, shapes.ema))
  state_sharding = TrainState(sharding.replicated(mesh), *trees)
  placed = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, state_sharding
  )
  return Plan(graph, adapter, init_adapter, optimizer, initial, state_sharding, placed)


def open_state(
  config: ConfigDict, model_config: SegGPTConfig, plan: Plan, workdir: Path
) -> tuple[Checkpoints, TrainState, dict[str, Any]]:
  """Opens the checkpoints and restores the newest one, or starts afresh without a checkpoint.

  Returns:
    The checkpoints, the state on its devices, and the progress stored with it ({} for a new run).
  """
  stored = description = None
  if plan.adapter is not None:
    # An adapter needs the base weights twice: for the fingerprint that identifies them, and as its frozen network.
    stored = weights.load_params(config.model.init_from)
    base, classes = config.model.init_from, config.data.num_classes
    adapter = StoredAdapter(plan.adapter, {}, model_config, parameters.fingerprint(stored), base, classes)
    description = adapter.describe()
  checkpoints = Checkpoints(workdir, model_config, _KEPT, config.keep_every, description)
  where = plan.state_sharding
  if checkpoints.latest_step() is not None:
    state, progress = checkpoints.restore(plan.abstract_state)
    if plan.adapter is not None:
      base = _initial_params(config, model_config, where.params, stored)
      state = state._replace(params={**base, **state.params})
    return checkpoints, state, progress
  checkpoints.start_fresh()
  params = _initial_params(config, model_config, where.params, stored)
  if plan.adapter is not None:
    params |= jax.jit(plan.init_adapter)(jax.random.key(config.seed))
  return checkpoints, jax.jit(plan.init_state, out_shardings=where, donate_argnums=0)(params), {}


def architecture(config: ConfigDict) -> SegGPTConfig:
  """Returns the model config of `init_from` or `variant`, with the config's overrides applied."""
  model = config.model
  if model.init_from:
    try:
      architecture = weights.load_config(model.init_from)
    except InputError as error:
      remedy = (
        f"; or convert the released weights with `seggpt convert seggpt_vit_large.pth {model.init_from}`, take "
        f"packaged ones ({', '.join(packaged.names())}), or set it to '' for a random start"
      )
      is_there = Path(model.init_from).exists()
      raise InputError(f"config.model.init_from: {error}{'' if is_there else remedy}") from error
  elif model.variant in VARIANTS:
    architecture = VARIANTS[model.variant]
  else:
    raise InputError(f"config.model.variant: found {model.variant!r}, expected one of {', '.join(VARIANTS)}")
  changes: dict[str, Any] = {"head_classes": 0, "head_side": 0}  # only a run that trains a head has one
  if model.square:
    if model.square % architecture.patch_size:
      raise InputError(
        f"config.model.square: found {model.square}, expected a multiple of the patch size {architecture.patch_size}"
      )
    changes["canvas_size"] = (2 * model.square, model.square)
  return dataclasses.replace(architecture, drop_path_rate=model.drop_path_rate, **changes)


def _check_batch_size(config: ConfigDict, model_config: SegGPTConfig) -> None:
  """Refuses a batch that cannot be split evenly, or that the memory of this machine cannot hold."""
  if config.batch_size % (jax.device_count() * config.accumulate):
    parts = f" x config.accumulate = {config.accumulate}" if config.accumulate > 1 else ""
    raise InputError(
      f"config.batch_size: found {config.batch_size}, expected a multiple of the {jax.device_count()} devices{parts}"
    )
  canvases = config.batch_size * config.data.prompts // jax.process_count()
  needed = canvases * math.prod(model_config.canvas_size) * 4  # an image and its label, in bytes
  memory = math.inf
  with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows does not tell
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
  if needed > memory:
    raise InputError(
      f"config.batch_size: found {config.batch_size} with data.prompts={config.data.prompts}, expected a batch that "
      f"fits into the {memory / 1e9:.0f} GB of memory here; its images alone take {needed / 1e9:.0f} GB"
    )


def _initial_params(
  config: ConfigDict, model_config: SegGPTConfig, where: dict[str, NamedSharding], stored: dict[str, np.ndarray] | None
) -> parameters.Params:
  """Returns random parameters or those of `init_from`, read already if `stored`, as float32 on their devices."""
  if not config.model.init_from:
    return jax.jit(lambda: parameters.split(parameters.network(model_config, config.seed))[1], out_shardings=where)()
  found = weights.resolve(config.model.init_from)
  stored = weights.load_params(found) if stored is None else stored
  params = parameters.resize_canvas(stored, found.config, model_config.canvas_size)
  given = {name: params.pop(name) for name in list(params) if is_adapter_name(name)}
  if model_config.head_classes:  # it starts from a head of as many classes, else at random

    def draw() -> parameters.Params:
      drawn = parameters.split(parameters.network(model_config, config.seed))[1]
      return {name: value for name, value in drawn.items() if is_adapter_name(name)}

    fits = found.config.head_classes == model_config.head_classes
    params |= given if fits else jax.tree.map(np.asarray, jax.jit(draw)())
  return {name: _place(value, where[name]) for name, value in params.items()}


def _place(value: np.ndarray, where: NamedSharding) -> jax.Array:
  """Copies a host array to its devices as float32; each process fills its own devices."""
  return jax.make_array_from_callback(value.shape, where, lambda index: value[index].astype(np.float32))


def _dtype(config: ConfigDict, device: jax.Device) -> jnp.dtype:
  return parameters.default_dtype(device) if config.model.dtype == "auto" else jnp.dtype(config.model.dtype)


def _describe(config: ConfigDict, model_config: SegGPTConfig, mesh: Mesh) -> str:
  """Returns canvas, classes, number format and devices in words."""
  height, width = model_config.canvas_size
  shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return (
    f"canvas {height} x {width}, {config.data.num_classes} classes, {_dtype(config, mesh.devices.flat[0]).name} on "
    f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({shape})"
  )


def _describe_samples(inputs: Inputs, samples: np.ndarray) -> str:
  """Returns the names of the queries in a batch, at most eight of them."""
  queries = list(dict.fromkeys(inputs.sources["train"].name(int(index)) for index in samples[:, 1]))
  share = f" (the share of process {jax.process_index()})" if jax.process_count() > 1 else ""
  return ", ".join(queries[:8]) + (f" and {len(queries) - 8} more" if len(queries) > 8 else "") + share
