"""The training run from top to bottom: a configuration and a run directory in, better weights out."""

from __future__ import annotations

import contextlib
import os

import jax
from ml_collections import ConfigDict

from seggpt_jax.compilation import compile_notice
from seggpt_jax.model.adapters import HEADS
from seggpt_jax.training.head import prepare_head
from seggpt_jax.training.monitor import draw_panels
from seggpt_jax.training.setup import Run, prepare
from seggpt_jax.training.shutdown import managed_shutdown
from seggpt_jax.training.step import TrainState
from seggpt_jax.training.step_recorder import peak_memory
from seggpt_jax.training.validation import describe_missing, local_shards


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, float]:
  """Trains, or resumes the run in this directory.

  Args:
    config: configuration, with the keys of `training.schema`.
    workdir: run directory for checkpoints, metrics and pictures.

  Returns:
    The last evaluation: loss, mIoU and the IoU of each class.

  Raises:
    InputError: something in the configuration or the data is wrong, or another run works in the directory.
    MachineError: the disk is full.
    SystemExit: with status 0, after SIGTERM and a checkpoint.
    KeyboardInterrupt: after Ctrl-C and a checkpoint.
  """
  with contextlib.ExitStack() as held:
    return _train((prepare_head if config.adapter.kind in HEADS else prepare)(config, workdir, held))


def _train(run: Run) -> dict[str, float]:
  """Takes the steps of a run that is ready, see `train`."""
  config, state, best, monitor = run.config, run.state, run.best, run.monitor
  key = jax.random.key(config.seed)  # each step derives its own
  finished = run.start >= config.num_steps or best.should_stop()
  result: dict[str, float] = {}
  with managed_shutdown(monitor, run.checkpoints, run.mesh) as interruption, contextlib.closing(run.profiler):
    if not finished:
      monitor.say(compile_notice("the training step", run.model_config.depth, training=True))
    for step in range(run.start + 1, config.num_steps + 1):
      if best.should_stop():
        break
      placed, batch = run.feed.next_batch()
      run.profiler.before_step(step)
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        state, output = run.train_step(state, placed, key)
      last = step == config.num_steps or interruption.stop_requested()
      if not last:
        run.feed.prefetch()
      run.bad_files.add("train", batch["bad"])
      run.recorder.add(step, output, batch["samples"])
      run.profiler.after_step(step, output)
      monitor.advance()
      # Each step's numbers are read while the next step runs, so that the device never waits for the host. Before
      # anything is written, they are all read, to be sure that they are finite.
      every = (config.log_every, config.eval_every, config.checkpoint_every)
      milestone = last or any(step % interval == 0 for interval in every)
      run.recorder.flush(keep_pending=0 if milestone else 1)
      if milestone:
        run.bad_files.settle()
      if step % config.log_every == 0:
        _log(run, step)
      if step % config.eval_every == 0 and output.colors is not None:
        monitor.picture(step, "train", draw_panels(batch, local_shards(output.colors), run.model_config))
      if step % config.eval_every == 0 or step == config.num_steps:
        result = _validate(run, step, state)
      if step % config.checkpoint_every == 0 or last or best.should_stop():
        run.checkpoints.save(state, run.progress)
      if last and step < config.num_steps:
        monitor.say(interruption.describe(step))
        break
    best.explain_stop(monitor.say)
    if finished:
      result = run.validate(state.averaged).scores
      interruption.stop_requested()
  interruption.exit_if_stopped()
  return result


def _log(run: Run, step: int) -> None:
  """Logs the numbers of the steps since the last line."""
  steps_per_second = run.recorder.steps_per_second()
  numbers = {
    **run.recorder.summary(),
    "lr": float(run.schedule(step - 1)),
    "pairs_per_second": run.config.batch_size * steps_per_second,
    "data_wait": run.feed.wait_share(),
    "memory_gb": peak_memory(),
  }
  run.monitor.log(step, "train", numbers)


def _validate(run: Run, step: int, state: TrainState) -> dict[str, float]:
  """Validates a state, logs the result and keeps the weights if they are the best so far."""
  result, missing, panel = run.validate(state.averaged)
  run.monitor.log(step, "val", result)
  if missing:
    run.monitor.say(f"step {step}: {describe_missing(missing, run.config)}")
  run.monitor.picture(step, "val", panel)
  run.monitor.curves()
  if run.best.update(result["miou"]):
    run.checkpoints.save_best(state)
  # The time of an evaluation does not count in the next rates.
  run.recorder.steps_per_second()
  run.feed.wait_share()
  return result
