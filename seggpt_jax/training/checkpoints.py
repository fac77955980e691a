"""Checkpoints of a training run, all through Orbax: written in the background, visible only when whole.

RUN/checkpoints/STEP    params and config (a weights directory), optimiser state, position in the data
RUN/best/STEP           params and config of the best validation mIoU so far
RUN/damaged/STEP        checkpoints that could not be read, moved out of the way
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from seggpt_jax.errors import InputError
from seggpt_jax.model import weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.step import TrainState

_ITEMS = ("params", "config", "optimizer", "progress")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# How long a process that fails waits for what it was writing together with others, which may be gone.
_LAST_WRITE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class _Kept:
  """Orbax's policy of what is kept: the newest steps, and for good each multiple of `every`, if that is not 0."""

  newest: int
  every: int

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    first = len(checkpoints) - self.newest
    return [
      index >= first or bool(self.every and checkpoint.step % self.every == 0)
      for index, checkpoint in enumerate(checkpoints)
    ]


class Checkpoints:
  """Saves and restores the state of a run.

  Args:
    workdir: the run's folder.
    config: the architecture, stored with every checkpoint.
    keep: how many of the newest steps to keep.
    keep_every: steps that are multiples of it are kept for good; 0 for none.

  Attributes:
    lines: what the person who started the run should know about its checkpoints.
  """

  def __init__(self, workdir: str | os.PathLike, config: SegGPTConfig, keep: int, keep_every: int = 0):
    self._root = epath.Path(os.path.abspath(workdir))
    self._config = config
    self.lines: list[str] = []
    # Killed runs leave unfinished folders behind, which would fill the disk.
    options = {"enable_async_checkpointing": True, "cleanup_tmp_directories": True}
    self._steps = ocp.CheckpointManager(
      self._root / "checkpoints",
      options=ocp.CheckpointManagerOptions(preservation_policy=_Kept(keep, keep_every), **options),
      item_handlers={
        "params": ocp.PyTreeCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "optimizer": ocp.PyTreeCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
      },
    )
    self._best = ocp.CheckpointManager(
      self._root / "best",
      options=ocp.CheckpointManagerOptions(max_to_keep=1, **options),
      item_handlers={"params": ocp.PyTreeCheckpointHandler(), "config": ocp.JsonCheckpointHandler()},
    )

  def latest_step(self) -> int | None:
    """The newest checkpoint, or None."""
    return self._steps.latest_step()

  def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint of this step; `progress` is whatever else the run has to remember, as JSON.

    What went wrong with the one before, which was written in the background, is raised here or by `close`.
    """
    step = int(state.step)
    if step == self._steps.latest_step():
      return
    self._steps.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(state.params),
        config=ocp.args.JsonSave(self._config.to_dict()),
        optimizer=ocp.args.PyTreeSave({"step": state.step, "opt_state": state.opt_state}),
        progress=ocp.args.JsonSave(dict(progress)),
      ),
    )

  def save_best(self, state: TrainState) -> None:
    """Starts writing the weights of this step as the best so far; the former best goes when they are whole."""
    self._best.save(
      int(state.step),
      args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(state.params), config=ocp.args.JsonSave(self._config.to_dict())
      ),
    )

  def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint that can be read, on any number of devices.

    Newer ones are damaged: they are moved to RUN/damaged, and `lines` says so. Best weights of later steps are dropped:
    the run will come to them again.

    Args:
      abstract_state: shape, dtype and sharding of each leaf.

    Returns:
      The state on its devices, and the progress saved with it; without its "best_miou" if those weights are gone.

    Raises:
      InputError: the checkpoint is of another architecture, or none can be read; nothing has been moved.
    """
    damaged: dict[int, str] = {}
    for step in sorted(self._steps.all_steps(), reverse=True):
      found = self._read(step, abstract_state)
      if not isinstance(found, str):
        break
      damaged[step] = found
    else:
      names = ", ".join(str(self._steps.directory / str(step)) for step in damaged)
      raise InputError(
        f"{names}: damaged, expected at least one whole checkpoint ({max(damaged)}: {damaged[max(damaged)]}); "
        "take another --workdir to begin anew"
      )
    if damaged:
      self._move_away(damaged, step)
    state, progress = found
    for later in [best for best in self._best.all_steps() if best > step]:
      self._best.delete(later)
    if not self._best.all_steps():
      progress.pop("best_miou", None)
    return state, progress

  def _read(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]] | str:
    """The state and progress of one step, or what is wrong with them on this or on another process."""
    directory = self._steps.directory / str(step)
    try:
      found = self._read_here(directory, abstract_state)
    except jax.errors.JaxRuntimeError:
      raise  # of the devices, such as their memory, not of the files
    except Exception as error:
      # Files that are missing, cut short or hold something else give errors of all kinds, from Orbax even a bare
      # Exception. Nothing is moved unless another checkpoint can be read, so no mistake costs anything.
      found = " ".join(str(error).split())[:200] or type(error).__name__
    # Each process reads other parts of the arrays. Orbax's handlers are used without their manager, which would make
    # the processes wait for one that has failed.
    if not isinstance(found, str) and _anywhere(False):
      return "a part that another process reads is damaged"
    if isinstance(found, str):
      _anywhere(True)
      return found
    self._refuse_another_model(directory, found[2])
    return found[:2]

  def _read_here(
    self, directory: epath.Path, abstract_state: TrainState
  ) -> tuple[TrainState | None, dict[str, Any], SegGPTConfig]:
    """State (None if it is that of another architecture), progress and architecture."""
    for item in _ITEMS:
      if not (directory / item).exists():
        raise FileNotFoundError(f"found no {item} in it")
    stored = weights.load_config(directory)
    progress = ocp.JsonCheckpointHandler().restore(directory / "progress", args=ocp.args.JsonRestore())
    if not isinstance(progress, dict) or "data" not in progress:
      raise ValueError("found no position in the data in progress")
    if stored != self._config:
      return None, progress, stored
    optimizer = {"step": abstract_state.step, "opt_state": abstract_state.opt_state}
    params, optimizer = (
      ocp.PyTreeCheckpointHandler().restore(
        directory / item,
        args=ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)),
      )
      for item, tree in (("params", abstract_state.params), ("optimizer", optimizer))
    )
    return jax.block_until_ready(TrainState(optimizer["step"], params, optimizer["opt_state"])), progress, stored

  def _refuse_another_model(self, directory: epath.Path, stored: SegGPTConfig) -> None:
    if stored != self._config:
      theirs, ours = stored.to_dict(), self._config.to_dict()
      key = next(key for key in ours if theirs[key] != ours[key])
      raise InputError(
        f"{directory}: checkpoint of another model: {key} is {theirs[key]}, expected {ours[key]} by the config; "
        "resume with the config of that run or take another --workdir"
      )

  def _move_away(self, damaged: Mapping[int, str], whole: int) -> None:
    """Steps that are damaged would be in the way when the run comes to them again."""
    folder = self._root / "damaged"
    for step, reason in damaged.items():
      place, again = folder / str(step), 1
      while place.exists():
        again += 1
        place = folder / f"{step}_{again}"
      # All processes have found the name before one of them takes it.
      _together(f"damaged {step}")
      if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (self._steps.directory / str(step)).rename(place)
      self.lines.append(
        f"warning: checkpoint {self._steps.directory / str(step)} is damaged ({reason}), moved to {place}; "
        f"going on from {self._steps.directory / str(whole)}"
      )
    _together("damaged moved")
    self._steps.reload()

  @contextlib.contextmanager
  def watching_disk(self) -> Iterator[None]:
    """Turns what is raised on a full disk, by whatever writes to the run's folder, into one line.

    Raises:
      InputError: the disk is full.
    """
    try:
      yield
    except Exception as error:
      if not _is_full(error):
        raise
      steps = [int(path.name) for path in self._steps.directory.iterdir() if path.name.isdigit()]
      newest = f"the newest whole checkpoint is {max(steps)}" if steps else "there is no whole checkpoint yet"
      raise InputError(f"{self._root}: the disk is full, {newest}; make room and run the same line to go on") from error

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      Exception: what went wrong with it.
    """
    with contextlib.ExitStack() as closing:
      closing.callback(self._steps.close)
      closing.callback(self._best.close)

  def abandon(self) -> None:
    """For a process that fails among others: gives what is being written a moment, and waits for nobody else."""

    def wait(manager: ocp.CheckpointManager) -> None:
      with contextlib.suppress(Exception):  # the process is ending on another error
        manager.wait_until_finished()

    waiting = [threading.Thread(target=wait, args=(each,), daemon=True) for each in (self._steps, self._best)]
    for thread in waiting:
      thread.start()
    for thread in waiting:
      thread.join(_LAST_WRITE_SECONDS / len(waiting))


def _anywhere(value: bool) -> bool:
  """Whether it holds on any process."""
  return bool(np.any(multihost_utils.process_allgather(np.array(value)))) if jax.process_count() > 1 else value


def _together(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _is_full(error: BaseException | None) -> bool:
  """Whether an error, or one that it came from, is that of a full disk or quota; TensorStore only says so in words."""
  seen = []  # an error that was raised again somewhere else can come from itself
  while error is not None and error not in seen:
    if getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL):
      return True
    seen.append(error)
    error = error.__cause__ or error.__context__
  return False
