"""Writes and reads the checkpoints of a training run with Orbax, in the background; they appear only when complete.

RUN/checkpoints/STEP    params and config (a weights directory), optimizer state and scores; STEP is also the position
                        in the data
RUN/best/STEP           params and config of the best validation mIoU so far
RUN/damaged/STEP        checkpoints that could not be read, moved out of the way

Each STEP has the digests of its files, which are compared while it is read. They are written before it appears under
its name, and leave out two files that Orbax writes last, and that nothing is read from.

With a moving average of the parameters, `best` holds the averaged parameters, which are scored. A checkpoint holds the
raw parameters, and the average next to the optimizer state. A run with an adapter stores the adapter's parameters only,
with an item `adapter` that describes them instead of `config`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from seggpt_jax.errors import InputError, MachineError, one_line
from seggpt_jax.files import is_full, parse_json
from seggpt_jax.model import adapters, digests, parameters, weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.config import flatten
from seggpt_jax.training.step import TrainState

# A process that fails waits this long for checkpoints that it was writing with others, which may have ended.
_LAST_WRITE_SECONDS = 20.0
# Orbax writes times and a string to these at the end (0.12).
WRITTEN_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")


def _open_manager(folder: epath.Path, handlers: Mapping[str, type], **kept: Any) -> ocp.CheckpointManager:
  """Opens a folder of a run for items with these handlers; `kept` are options of Orbax about what to keep."""
  _drop_garbled_times(folder)
  # Both managers may write the same step at the same time. Without a prefix their barriers would have the same names,
  # and several processes would fail.
  barriers = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name)
  # Orbax calls this on the first process when arrays are written, before the folder of the step gets its name.
  sealing = ocp.AsyncOptions(post_finalization_callback=functools.partial(_seal_unfinished, Path(folder)))
  # Killed runs leave incomplete folders behind, which would fill the disk.
  options = {"enable_async_checkpointing": True, "async_options": sealing, "cleanup_tmp_directories": True}
  options = ocp.CheckpointManagerOptions(multiprocessing_options=barriers, **options, **kept)
  items = {item: handler() for item, handler in handlers.items()}
  return ocp.CheckpointManager(folder, options=options, item_handlers=items)


def _seal_unfinished(folder: Path) -> None:
  """Checks the step that is about to appear in a folder, and writes its digests."""
  (unfinished,) = folder.glob("*.orbax-checkpoint-tmp*")
  weights.check_readable(unfinished)
  digests.seal(unfinished, but=WRITTEN_LAST)


class Checkpoints:
  """Saves and restores the state of a run.

  Args:
    workdir: run directory.
    config: architecture, stored with every checkpoint.
    keep: number of newest steps to keep.
    keep_every: steps that are multiples of this are kept for good; 0 keeps none.
    adapter: description of the adapter by `adapter_files.describe_adapter`; None without an adapter.

  Attributes:
    warnings: lines for the person who started the run.
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
    # Weights are described by their network, an adapter also by its own form.
    self._label, description = ("config", config.to_dict()) if adapter is None else ("adapter", adapter)
    self._description = json.loads(json.dumps(description))  # as a file returns it
    handlers = {"params": ocp.PyTreeCheckpointHandler, self._label: ocp.JsonCheckpointHandler}
    more = {"optimizer": ocp.PyTreeCheckpointHandler, "progress": ocp.JsonCheckpointHandler}
    self.warnings: list[str] = []
    kept = [policies.LatestN(keep), *([policies.EveryNSteps(keep_every)] if keep_every else [])]
    policy = policies.AnyPreservationPolicy(kept)
    self._steps = _open_manager(self._root / "checkpoints", handlers | more, preservation_policy=policy)
    self._best = _open_manager(self._root / "best", handlers, max_to_keep=1)

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, or None."""
    return self._steps.latest_step()

  def start_fresh(self) -> None:
    """Deletes best weights that a run without any checkpoint has left; new ones might never beat their score."""
    for step in self._best.all_steps():
      self._best.delete(step)

  def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint in the background. An error is raised by the next call or by `close`."""
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
    """Starts writing the weights of this step as the best; the former best is deleted when they are complete."""
    step = int(state.step)
    if not self._best.save(step, args=ocp.args.Composite(**self._weights(state.averaged))):
      raise RuntimeError(f"{self._best.directory}: step {step} was not kept, found {self._best.all_steps()} there")

  def _weights(self, params: parameters.Params) -> dict[str, Any]:
    """Returns the two items that store parameters: the arrays and their description."""
    kept = self._kept(params)
    return {"params": ocp.args.PyTreeSave(kept), self._label: ocp.args.JsonSave(self._description)}

  def _kept(self, params: parameters.Params) -> parameters.Params:
    """Returns all parameters, or only those of the adapter if there is one."""
    return {n: p for n, p in params.items() if self._label == "config" or adapters.is_adapter_name(n)}

  def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint that is not damaged, on any number of devices.

    Damaged checkpoints after it are moved to RUN/damaged, with a line in `warnings`. Best weights of later steps are
    deleted, since the run will reach those steps again.

    Returns:
      The state on its devices, and the progress stored with it. With an adapter the state lacks the parameters of the
      network. The progress lacks "best_miou" if the best weights are gone.

    Raises:
      InputError: the checkpoint belongs to another architecture, or all are damaged; nothing has been moved.
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
        "choose another --workdir to start over"
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
    """Returns the state and progress of one step, or the damage found on this or on another process."""
    directory = self._steps.directory / str(step)
    weights.ignore_late_reads()
    try:
      with digests.verifying(Path(directory)):
        found = self._read_here(directory, abstract_state)
    except jax.errors.JaxRuntimeError:
      raise  # the devices failed, for example for lack of memory, not the files
    except Exception as error:
      # Files that are missing, truncated or garbled raise all kinds of errors, from Orbax even a bare Exception. It is
      # safe to catch them all: nothing is moved unless another checkpoint can be read.
      found = one_line(error)[:200] or type(error).__name__
    # Each process reads other parts, without a manager, which would make the processes wait for one that has failed.
    damaged_here = isinstance(found, str)
    if np.any(multihost_utils.process_allgather(np.array(damaged_here))):
      return found if damaged_here else "a part that another process reads is damaged"
    self._refuse_another_model(directory, found[2])
    if not digests.is_sealed(Path(directory)):
      self.warnings.append(f"{directory} has no {digests.FILE}, so damage to its files cannot be noticed")
    return found[:2]

  def _read_here(
    self, directory: epath.Path, abstract_state: TrainState
  ) -> tuple[TrainState | None, dict[str, Any], dict[str, Any]]:
    """Returns state (None for another network), progress, and the description of the weights, on this process."""
    for item in ("params", "optimizer", "progress"):
      if not (directory / item).exists():
        raise FileNotFoundError(f"found no {item} in it")
    label = next((item for item in (self._label, "config", "adapter") if (directory / item).exists()), None)
    if label is None:
      raise FileNotFoundError(f"found no {self._label} in it")
    stored = _read_description(directory / label / "metadata", self._description)
    progress = ocp.JsonCheckpointHandler().restore(directory / "progress", args=ocp.args.JsonRestore())
    best = progress.get("best_miou") if isinstance(progress, dict) else None
    if not isinstance(best, int | float) or math.isnan(best):
      raise ValueError("found no best mIoU in progress")
    if not isinstance(progress.get("since_best", 0), int):
      raise ValueError("found no number of evaluations since the best one in progress")
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
    """Raises an InputError unless the stored description is the one of this run."""
    if stored != self._description:
      theirs, ours = flatten(stored), flatten(self._description)
      key = next((key for key in ours if theirs.get(key) != ours[key]), "its description")
      if key == "fingerprint" and key in theirs:
        raise InputError(
          f"config.model.init_from: found weights other than {theirs.get('base')}, as it was when the adapter in "
          f"{directory} was trained for it"
        )
      raise InputError(
        f"{directory}: checkpoint of another model: {key} is {theirs.get(key)}, expected {ours.get(key)} by the "
        "config; resume with the config of that run or choose another --workdir"
      )

  def _move_away(self, damaged: Mapping[int, str], whole: int) -> None:
    """Moves damaged steps to RUN/damaged, so that the run can write these steps again."""
    folder = self._root / "damaged"
    for step, reason in damaged.items():
      names = itertools.chain([str(step)], (f"{step}_{again}" for again in itertools.count(2)))
      place = next(folder / name for name in names if not (folder / name).exists())
      # Every process must have chosen the name before the first one uses it.
      multihost_utils.sync_global_devices(f"damaged {step}")
      if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (self._steps.directory / str(step)).rename(place)
      self.warnings.append(
        f"warning: checkpoint {self._steps.directory / str(step)} is damaged ({reason}), moved to {place}; "
        f"resuming from {self._steps.directory / str(whole)}"
      )
    multihost_utils.sync_global_devices("damaged moved")
    self._steps.reload()

  def describe_newest(self) -> str:
    """Waits for the checkpoint being written and returns the newest one in words."""
    for manager in (self._steps, self._best):
      manager.wait_until_finished()
    return self._describe_whole()

  def _describe_whole(self) -> str:
    """Returns the newest complete checkpoint in words."""
    steps = [int(path.name) for path in self._steps.directory.iterdir() if path.name.isdigit()]
    if not steps:
      return "there is no checkpoint yet"
    return f"the newest whole checkpoint is {self._steps.directory / str(max(steps))}"

  @contextlib.contextmanager
  def explain_full_disk(self) -> Iterator[None]:
    """Turns any error that a full disk causes inside the context into one line.

    Raises:
      MachineError: the disk is full.
    """
    try:
      yield
    except Exception as error:
      if not is_full(error):
        raise
      newest = self._describe_whole()
      raise MachineError(
        f"{self._root}: the disk is full, {newest}; make room and rerun the same command to resume"
      ) from error

  def close(self) -> None:
    """Waits until all checkpoints are on disk.

    Raises:
      Exception: one could not be written.
    """
    with contextlib.closing(self._steps):
      self._best.close()

  def abandon(self) -> None:
    """Waits for checkpoints for a limited time; for a failed process that cannot join the others, which continue."""

    def wait(manager: ocp.CheckpointManager) -> None:
      with contextlib.suppress(Exception):  # the process already ends with another error
        manager.wait_until_finished()

    waiting = [threading.Thread(target=wait, args=(each,), daemon=True) for each in (self._steps, self._best)]
    for thread in waiting:
      thread.start()
    for thread in waiting:
      thread.join(_LAST_WRITE_SECONDS / len(waiting))


def _drop_garbled_times(directory: epath.Path) -> None:
  """Deletes the file with the times of a step where it is garbled: Orbax 0.12 lists no step at all with such a file."""
  for step in ocp.path.step.standard_name_format().find_all(directory) if directory.exists() else ():
    try:
      step.commit_timestamp  # noqa: B018 - reads the file
    except Exception:  # Orbax passes on what the file's content causes, of any type
      (step.path / "_CHECKPOINT_METADATA").unlink(missing_ok=True)


def _beside_params(state: TrainState) -> dict[str, Any]:
  """Returns the item that holds all of a state but the parameters; an average only if there is one."""
  return {"step": state.step, "opt_state": state.opt_state} | ({"ema": state.ema} if state.ema else {})


def _read_description(path: epath.Path, ours: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the description of weights; our values where it may differ: drop path rate, path of base weights."""
  stored = parse_json(path.read_bytes())
  if not isinstance(stored, dict) or not all(isinstance(stored.get(key, {}), dict) for key in ("config", "adapter")):
    raise ValueError(f"found no description of weights in {path.parent.name}")
  network, our_network = stored.get("config", stored), ours.get("config", ours)
  if "drop_path_rate" in network:
    network["drop_path_rate"] = our_network["drop_path_rate"]
  same_base = "fingerprint" in ours and stored.get("fingerprint") == ours["fingerprint"]
  return {**stored, "base": ours["base"]} if same_base else stored
