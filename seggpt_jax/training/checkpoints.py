"""Checkpoints of a training run, all through Orbax: written in the background, visible only when whole.

RUN/checkpoints/STEP    params and config (a weights directory), optimizer state, scores; STEP says where the data is
RUN/best/STEP           params and config of the best validation mIoU so far
RUN/damaged/STEP        checkpoints that could not be read, moved out of the way

Where an average of the parameters is kept, the params of best are the averaged ones that were scored; those of
checkpoints are the raw ones, and the average lies beside the optimizer state. Of a run with an adapter only the
adapter's params are kept, with an item `adapter` that describes it in the place of config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.model import adapters, parameters
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.step import TrainState

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


def _options(name: str, **kept: Any) -> ocp.CheckpointManagerOptions:
  """Those of one manager of a run."""
  # Two managers may write the same step at the same time; without a prefix many processes would wait for one another at
  # points of the same names, and fail.
  own_names = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)
  # Killed runs leave unfinished folders behind, which would fill the disk.
  return ocp.CheckpointManagerOptions(
    enable_async_checkpointing=True, cleanup_tmp_directories=True, multiprocessing_options=own_names, **kept
  )


class Checkpoints:
  """Saves and restores the state of a run.

  Args:
    workdir: the run's folder.
    config: the architecture, stored with every checkpoint.
    keep: how many of the newest steps to keep.
    keep_every: steps that are multiples of it are kept for good; 0 for none.
    adapter: of a run with one, what `adapter_files.describe_adapter` says of it.

  Attributes:
    lines: what the person who started the run should know about its checkpoints.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    config: SegGPTConfig,
    keep: int,
    keep_every: int = 0,
    adapter: Mapping[str, Any] | None = None,
  ):
    self._root = epath.Path(os.path.abspath(workdir))
    # Weights say what network they are of, an adapter also what it is.
    self._label, description = ("config", config.to_dict()) if adapter is None else ("adapter", adapter)
    self._description = json.loads(json.dumps(description))  # as it comes back from a file
    weights_handlers = {"params": ocp.PyTreeCheckpointHandler, self._label: ocp.JsonCheckpointHandler}
    self.lines: list[str] = []
    self._steps = ocp.CheckpointManager(
      self._root / "checkpoints",
      options=_options("checkpoints", preservation_policy=_Kept(keep, keep_every)),
      item_handlers={
        **{item: handler() for item, handler in weights_handlers.items()},
        "optimizer": ocp.PyTreeCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
      },
    )
    self._best = ocp.CheckpointManager(
      self._root / "best",
      options=_options("best", max_to_keep=1),
      item_handlers={item: handler() for item, handler in weights_handlers.items()},
    )

  def latest_step(self) -> int | None:
    """The newest checkpoint, or None."""
    return self._steps.latest_step()

  def begin(self) -> None:
    """To be called at the start of a run that has no checkpoint to restore.

    One that ended before its first checkpoint may have left best weights, which would stay whatever came after them.
    """
    for step in self._best.all_steps():
      self._best.delete(step)

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
        **self._weights(state.params),
        optimizer=ocp.args.PyTreeSave(_beside_params(state)),
        progress=ocp.args.JsonSave(dict(progress)),
      ),
    )

  def save_best(self, state: TrainState) -> None:
    """Starts writing the weights of this step as the best so far; the former best goes when they are whole."""
    step = int(state.step)
    if not self._best.save(step, args=ocp.args.Composite(**self._weights(state.averaged))):
      raise RuntimeError(f"{self._best.directory}: step {step} was not kept, found {self._best.all_steps()} there")

  def _weights(self, params: parameters.Params) -> dict[str, Any]:
    """The two items that are written of parameters."""
    kept = self._kept(params)
    return {"params": ocp.args.PyTreeSave(kept), self._label: ocp.args.JsonSave(self._description)}

  def _kept(self, params: parameters.Params) -> parameters.Params:
    """All parameters, or an adapter's alone."""
    return {n: p for n, p in params.items() if self._label == "config" or adapters.is_adapter_name(n)}

  def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint that can be read, on any number of devices.

    Newer ones are damaged: they are moved to RUN/damaged, and `lines` says so. Best weights of later steps are dropped:
    the run will come to them again.

    Args:
      abstract_state: shape, dtype and sharding of each leaf.

    Returns:
      The state on its devices, without the parameters that an adapter leaves as they are, and the progress saved with
      it; without its "best_miou" if those weights are gone.

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
      found = one_line(error)[:200] or type(error).__name__
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
  ) -> tuple[TrainState | None, dict[str, Any], dict[str, Any]]:
    """State (None if it is that of another network), progress, and what the weights are said to be."""
    for item in ("params", "optimizer", "progress"):  # and what the weights are, below
      if not (directory / item).exists():
        raise FileNotFoundError(f"found no {item} in it")
    label = next((item for item in (self._label, "config", "adapter") if (directory / item).exists()), None)
    if label is None:
      raise FileNotFoundError(f"found no {self._label} in it")
    stored = _read_description(directory / label / "metadata", self._description)
    progress = ocp.JsonCheckpointHandler().restore(directory / "progress", args=ocp.args.JsonRestore())
    if not isinstance(progress, dict) or "best_miou" not in progress:
      raise ValueError("found no best mIoU in progress")
    if stored != self._description:
      return None, progress, stored
    optimizer = _beside_params(abstract_state)
    params, optimizer = (
      ocp.PyTreeCheckpointHandler().restore(
        directory / item,
        args=ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)),
      )
      for item, tree in (("params", self._kept(abstract_state.params)), ("optimizer", optimizer))
    )
    state = TrainState(params=params, **{"ema": {}, **optimizer})
    return jax.block_until_ready(state), progress, stored

  def _refuse_another_model(self, directory: epath.Path, stored: Mapping[str, Any]) -> None:
    if stored != self._description:
      theirs, ours = _flat(stored), _flat(self._description)
      key = next((key for key in ours if theirs.get(key) != ours[key]), "its description")
      if key == "fingerprint" and key in theirs:
        raise InputError(
          f"config.model.init_from: found weights other than {theirs.get('base')}, as it was when the adapter in "
          f"{directory} was trained for it"
        )
      raise InputError(
        f"{directory}: checkpoint of another model: {key} is {theirs.get(key)}, expected {ours.get(key)} by the "
        "config; resume with the config of that run or take another --workdir"
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

  def describe_newest(self) -> str:
    """The newest checkpoint in words, to go on from, once what is being written is whole."""
    self._steps.wait_until_finished()
    return self._describe_whole()

  def _describe_whole(self) -> str:
    steps = [int(path.name) for path in self._steps.directory.iterdir() if path.name.isdigit()]
    return (
      f"the newest whole checkpoint is {self._steps.directory / str(max(steps))}"
      if steps
      else ("there is no checkpoint yet")
    )

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
      newest = self._describe_whole()
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


def _beside_params(state: TrainState) -> dict[str, Any]:
  """The item that holds the rest of a state; without an average where none is kept, as runs of old have it."""
  beside = {"step": state.step, "opt_state": state.opt_state}
  return beside | {"ema": state.ema} if state.ema else beside


def _read_description(path: epath.Path, ours: Mapping[str, Any]) -> dict[str, Any]:
  """What a checkpoint says its weights are. An adapter's base goes by its values: the path to it is always ours."""
  stored = json.loads(path.read_text())
  if not isinstance(stored, dict) or not all(isinstance(stored.get(key, {}), dict) for key in ("config", "adapter")):
    raise ValueError(f"found no description of weights in {path.parent.name}")
  # How often blocks are dropped in training is the run's affair, not the network's.
  network, our_network = stored.get("config", stored), ours.get("config", ours)
  if "drop_path_rate" in network:
    network["drop_path_rate"] = our_network["drop_path_rate"]
  same_base = "fingerprint" in ours and stored.get("fingerprint") == ours["fingerprint"]
  return {**stored, "base": ours["base"]} if same_base else stored


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
  """What an adapter is and of which network, side by side."""
  inner = {**description.get("config", {}), **description.get("adapter", {})}
  return {**inner, **{key: value for key, value in description.items() if not isinstance(value, dict)}}


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
