"""The training run, top to bottom: a configuration and a folder in, better weights out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from seggpt_jax.data import pipeline
from seggpt_jax.errors import InputError
from seggpt_jax.files import refuse_remote, write_whole, writing
from seggpt_jax.metrics.iou import iou_from_confusion, mean_iou
from seggpt_jax.model import packaged, parameters, weights
from seggpt_jax.model.adapter_files import describe_adapter
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.training import sharding
from seggpt_jax.training.bad_files import SharedBadFiles
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.config import adapter_of, check_config
from seggpt_jax.training.cost import model_flops_utilization
from seggpt_jax.training.ending import orderly
from seggpt_jax.training.feed import Feed
from seggpt_jax.training.inputs import Inputs, open_inputs
from seggpt_jax.training.monitor import Meter, Monitor
from seggpt_jax.training.optimizer import make_optimizer
from seggpt_jax.training.step import StepOutput, TrainState, init_state, make_eval_step, make_train_step
from seggpt_jax.training.trace import StepTrace
from seggpt_jax.training.watch import EarlyStopping, Watch, peak_memory

# What a resumed run cannot change: what it learns, and the form of its optimizer's state.
_FIXED = (
  "data.source",
  "data.num_classes",
  "data.class_names",
  "data.labels",
  "data.threshold",
  "data.table",
  "data.ignore",
  "optim.name",
  "optim.freeze",
  "optim.ema",
  "adapter.kind",
)
# What runs did before there were these keys.
_BEFORE = {
  "accumulate": 1,
  "optim.schedule": "cycles",
  "optim.layer_decay": 1.0,
  "optim.decay_all": True,
  "optim.freeze": [],
  "optim.ema": 0.0,
  "adapter.kind": "none",
}
_EVERY = ("log_every", "eval_every", "checkpoint_every")


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, float]:
  """Trains, or goes on training where an earlier run in the same folder stopped.

  Args:
    config: see `training.config`.
    workdir: the run's folder; checkpoints, metrics and pictures go there.

  Returns:
    The last evaluation: loss, mIoU and each class's IoU.

  Raises:
    InputError: something in the configuration or the data is wrong, or the disk is full.
    SystemExit: of status 0, after SIGTERM and a checkpoint.
    KeyboardInterrupt: after Ctrl-C and a checkpoint.
  """
  # ------------------------------------------------------------------------------------------- what is to be trained
  check_config(config)
  refuse_remote("--workdir", workdir)
  changed = _changed_since(workdir, config)
  model_config = _architecture(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  if config.batch_size % (jax.device_count() * config.accumulate):
    parts = f" x config.accumulate = {config.accumulate}" if config.accumulate > 1 else ""
    raise InputError(
      f"config.batch_size: found {config.batch_size}, expected a multiple of the {jax.device_count()} devices{parts}"
    )
  inputs = open_inputs(config, model_config, workdir)

  options = {"dtype": _dtype(config), "remat": config.model.remat, "attention": config.model.attention}
  if mesh.size > 1:
    options["batch_sharding"] = sharding.batch_sharding(mesh)
  graph, abstract_params = parameters.abstract(model_config, **options)
  adapter = adapter_of(config)
  if adapter is not None:
    init_adapter = functools.partial(adapter.init, abstract_params, model_config.canvas_size)
    abstract_params = abstract_params | jax.eval_shape(init_adapter, jax.random.key(0))
  optimizer, schedule, frozen = make_optimizer(config.optim, config.num_steps, abstract_params, adapter is not None)

  # -------------------------------------------------------------------------------------------- where its state lives
  initial_state = functools.partial(init_state, optimizer, frozen=frozen, ema=config.optim.ema > 0)
  abstract_state = jax.eval_shape(initial_state, abstract_params)
  state_sharding = TrainState(
    sharding.replicated(mesh),
    sharding.tree_sharding(mesh, abstract_state.params),
    sharding.tree_sharding(mesh, abstract_state.opt_state),
    sharding.tree_sharding(mesh, abstract_state.ema),
  )
  for folder in ("checkpoints", "best", "panels"):
    with writing(Path(workdir) / folder):
      (Path(workdir) / folder).mkdir(parents=True, exist_ok=True)
  stored = described = None
  if adapter is not None:
    # Adapters need the base weights twice, to be known by and to be added to.
    stored = weights.load_params(config.model.init_from)
    fingerprint = parameters.fingerprint(stored)
    described = describe_adapter(adapter, model_config, fingerprint, config.model.init_from, config.data.num_classes)
  checkpoints = Checkpoints(workdir, model_config, config.keep_checkpoints, config.keep_every, described)
  best, since_best = -1.0, 0
  if checkpoints.latest_step() is not None:
    placed = jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract_state, state_sharding
    )
    state, progress = checkpoints.restore(placed)
    if adapter is not None:
      base = _initial_params(config, model_config, state_sharding.params, stored)
      state = state._replace(params={**base, **state.params})
    best, since_best = progress.get("best_miou", -1.0), progress.get("since_best", 0)
    epoch = progress.get("epoch", inputs.training.epoch)
    if epoch != inputs.training.epoch:
      changed.append(f"the number of training images, {epoch} then, {inputs.training.epoch} now: another order")
  else:
    checkpoints.begin()
    params = _initial_params(config, model_config, state_sharding.params, stored)
    if adapter is not None:
      params |= jax.jit(init_adapter)(jax.random.key(config.seed))
    state = jax.jit(initial_state, out_shardings=state_sharding, donate_argnums=0)(params)
  del stored  # 1.5 GB of the host's memory for the released weights
  start = int(state.step)
  _write_config(workdir, config)

  # ------------------------------------------------------------------------------------------------------- the steps
  prompts = config.data.prompts
  learning = {"frozen": frozen, "accumulate": config.accumulate, "ema": config.optim.ema, "adapter": adapter}
  train_step = make_train_step(graph, model_config, optimizer, mesh, state_sharding, prompts, **learning)
  eval_step = make_eval_step(graph, model_config, mesh, state_sharding.params, prompts, adapter)
  monitor = Monitor(workdir, config.num_steps, start, enabled=jax.process_index() == 0)
  monitor.say(f"{'resumed at step ' + str(start) if start else 'new run'}: {_describe(config, model_config, mesh)}")
  if changed:
    monitor.say(f"changed since the run was last started: {', '.join(changed)}")
  for line in (*checkpoints.lines, *inputs.lines):
    monitor.say(line)
  # Each step takes one batch, so its number is also the position in the data.
  feed = Feed(_training_batches(config, inputs.training, start), functools.partial(sharding.put_batch, mesh))
  bad_files = SharedBadFiles(inputs.sources, config.data.bad_share, monitor.say)
  key, meter = jax.random.key(config.seed), Meter()
  watch = Watch(config.data.num_classes, functools.partial(_names, inputs), checkpoints.describe_newest)
  trace = StepTrace(Path(workdir) / "profile", start, config.profile_steps, monitor.say)
  stopping = EarlyStopping(config.stop_after, since_best)
  nothing_left = start >= config.num_steps or stopping.now()
  result: dict[str, float] = {}
  with orderly(monitor, checkpoints, mesh) as interruption, contextlib.closing(trace):
    for step in range(start + 1, config.num_steps + 1):
      if stopping.now():
        break
      placed, batch = feed.take()
      trace.before(step)
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        state, output = train_step(state, placed, key)
      last = step == config.num_steps or interruption.asked()
      if not last:
        feed.prepare()
      bad_files.add("train", batch["bad"])
      monitor.advance()
      meter.add(config.batch_size)
      # A step's numbers are read while the next one runs, so that the device never waits for the host; but for what is
      # about to be written down, where they have to be known to be finite.
      watch.add(step, output, batch["samples"])
      trace.after(step, output)
      milestone = last or any(step % config[key] == 0 for key in _EVERY)
      watch.settle(leave=0 if milestone else 1)
      if milestone:
        bad_files.settle()
      if step % config.log_every == 0:
        rate = meter.rate()
        numbers = {**watch.summary(), "lr": float(schedule(step - 1)), "pairs_per_second": rate}
        numbers |= {"data_wait": feed.waited(), "memory_gb": peak_memory()}
        # The count is of a network that is trained as a whole.
        utilization = None if frozen else model_flops_utilization(model_config, prompts * rate, jax.devices())
        monitor.log(step, "train", numbers if utilization is None else {**numbers, "mfu": utilization})
      if config.panel_every and step % config.panel_every == 0:
        monitor.panels(step, "train", batch, _local(output.colors), model_config)
      if step % config.eval_every == 0 or step == config.num_steps:
        result, batch, colors = _evaluate(config, inputs.evaluation, mesh, eval_step, state, bad_files)
        monitor.log(step, "val", result)
        monitor.panels(step, "val", batch, colors, model_config)
        monitor.curves()
        better = result["miou"] > best
        stopping.add(better)
        if better:
          best = result["miou"]
          checkpoints.save_best(state)
        # An evaluation is not part of the next rate.
        meter.rate()
        feed.waited()
      if step % config.checkpoint_every == 0 or last or stopping.now():
        progress = {"epoch": inputs.training.epoch, "best_miou": best, "since_best": stopping.since_best}
        checkpoints.save(state, progress)
      if last and step < config.num_steps:
        monitor.say(interruption.describe(step))
        break
    if stopping.now():
      monitor.say(f"stopped early: no better mIoU than {best:.3f} in {stopping.since_best} evaluations")
    if nothing_left:
      result, _, _ = _evaluate(config, inputs.evaluation, mesh, eval_step, state, bad_files)
      interruption.asked()
  interruption.leave()
  return result


# ------------------------------------------------------------------------------------------------------------ pieces


def _changed_since(workdir: str | os.PathLike, config: ConfigDict) -> list[str]:
  """The keys that differ from those of the run in this folder, if there is one.

  Raises:
    InputError: what the run learns differs; its scores could not be compared.
  """
  path = Path(workdir) / "config.json"
  if not path.is_file() or not any((Path(workdir) / "checkpoints").glob("*")):
    return []
  try:
    stored = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(
      f"{path}: found no JSON ({error}), expected the run's configuration; move it away to go on without comparing"
    ) from error
  if not isinstance(stored, dict):
    raise InputError(f"{path}: found {type(stored).__name__}, expected the run's configuration")
  before, now = _BEFORE | _flat(stored), _flat(json.loads(config.to_json()))
  if isinstance(before.get("model.remat"), bool):
    before["model.remat"] = "full" if before["model.remat"] else "none"
  changed = [key for key, value in now.items() if key in before and before[key] != value]
  for key in _FIXED:
    if key in changed:
      raise InputError(
        f"config.{key}: found {now[key]}, expected {before[key]} as the run in {workdir} has; "
        "take another --workdir for another task or another optimizer"
      )
  return changed


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in values.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def _architecture(config: ConfigDict) -> SegGPTConfig:
  """That of the weights to start from, or of the named variant, with what the configuration changes."""
  model = config.model
  if model.init_from:
    if not Path(model.init_from).exists() and not weights.has_weights(model.init_from):
      raise InputError(
        f"config.model.init_from: {model.init_from} not found; convert the released weights with "
        f"`python convert_torch_weights.py seggpt_vit_large.pth {model.init_from}`, take packaged ones "
        f"({', '.join(packaged.names())}), or set it to '' for a random start"
      )
    architecture = weights.load_config(model.init_from)
  elif model.variant in VARIANTS:
    architecture = VARIANTS[model.variant]
  else:
    raise InputError(f"config.model.variant: found {model.variant!r}, expected one of {', '.join(VARIANTS)}")
  changes = {name: tuple(model[name]) for name in ("image_mean", "image_std") if model[name]}
  if model.square:
    if model.square % architecture.patch_size:
      raise InputError(
        f"config.model.square: found {model.square}, expected a multiple of the patch size {architecture.patch_size}"
      )
    changes["canvas_size"] = (2 * model.square, model.square)
  return dataclasses.replace(architecture, drop_path_rate=model.drop_path_rate, **changes)


def _initial_params(
  config: ConfigDict, model_config: SegGPTConfig, where: dict[str, NamedSharding], stored: dict[str, np.ndarray] | None
) -> parameters.Params:
  """Random parameters or those of `init_from`, which `stored` holds if they are read already; float32, placed."""
  if not config.model.init_from:
    return jax.jit(lambda: parameters.split(SegGPT(model_config, rngs=nnx.Rngs(config.seed)))[1], out_shardings=where)()
  source = weights.load_config(config.model.init_from)
  stored = weights.load_params(config.model.init_from, source) if stored is None else stored
  params = parameters.resize_canvas(stored, source, model_config.canvas_size)
  return {name: _place(value, where[name]) for name, value in params.items()}


def _training_batches(config: ConfigDict, pairs: pipeline.TrainingPairs, start: int) -> Iterator[pipeline.Batch]:
  return pipeline.training_batches(
    pairs,
    batch_size=config.batch_size // jax.process_count(),
    seed=config.seed,
    num_threads=config.data.num_threads if config.data.num_threads >= 0 else min(os.cpu_count() or 1, 16),
    num_workers=config.data.num_workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    start=start,
  )


def _evaluate(
  config: ConfigDict,
  pairs: pipeline.EvaluationPairs,
  mesh: Mesh,
  eval_step: Callable[..., StepOutput],
  state: TrainState,
  bad_files: SharedBadFiles,
) -> tuple[dict[str, float], pipeline.Batch, np.ndarray]:
  """Loss, mIoU and IoU of each class on the fixed validation pairs; the first batch and its colors for a panel."""
  batches = pipeline.evaluation_batches(
    pairs,
    # No more at once than in training.
    batch_size=config.batch_size // (config.accumulate * jax.process_count()),
    num_pairs=config.eval_pairs,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  confusion, losses, counts = np.zeros((config.data.num_classes,) * 2, np.int64), [], []
  for index, batch in enumerate(batches):
    output = eval_step(state.averaged, sharding.put_batch(mesh, {key: batch[key] for key in pipeline.DEVICE_KEYS}))
    bad_files.add("val", batch["bad"])
    confusion += np.asarray(output.confusion)
    losses.append(float(output.loss))
    # The pixels that the batch's loss is the mean over.
    counts.append(int(np.asarray(output.confusion).sum()))
    if index == 0:
      shown = batch, _local(output.colors)
  bad_files.settle()
  loss = float(np.average(losses, weights=counts)) if any(counts) else float("nan")
  result = {"loss": loss, "miou": float(mean_iou(confusion))}
  result |= {f"iou_{index}": float(value) for index, value in enumerate(iou_from_confusion(confusion))}
  return result, *shown


def _dtype(config: ConfigDict) -> jnp.dtype:
  return parameters.default_dtype() if config.model.dtype == "auto" else jnp.dtype(config.model.dtype)


def _place(value: np.ndarray, where: NamedSharding) -> jax.Array:
  """A host array as float32 on its devices, of which each process fills its own."""
  return jax.make_array_from_callback(value.shape, where, lambda index: value[index].astype(np.float32))


def _local(array: jax.Array) -> np.ndarray:
  """This process's part of an array that is split along the batch."""
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def _names(inputs: Inputs, samples: np.ndarray) -> str:
  """The queries of a batch by name, as far as there is room."""
  if "train" not in inputs.sources:
    return "tasks that were drawn"
  queries = list(dict.fromkeys(inputs.sources["train"].name(int(index)) for index in samples[:, 1]))
  share = f" (the share of process {jax.process_index()})" if jax.process_count() > 1 else ""
  return ", ".join(queries[:8]) + (f" and {len(queries) - 8} more" if len(queries) > 8 else "") + share


def _write_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
  if jax.process_index() == 0:
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_whole(Path(workdir) / "config.json", lambda file: file.write(text.encode()))


def _describe(config: ConfigDict, model_config: SegGPTConfig, mesh: Mesh) -> str:
  height, width = model_config.canvas_size
  shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return (
    f"canvas {height} x {width}, {config.data.num_classes} classes, {_dtype(config).name} on "
    f"{jax.device_count()} x {jax.devices()[0].device_kind} ({shape})"
  )
