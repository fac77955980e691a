"""Checkpoints of a training run, all through Orbax: written in the background, visible only when whole.

RUN/checkpoints/STEP    params and config (a weights directory), optimiser state, position in the data
RUN/best/STEP           params and config of the best validation mIoU so far

Where an average of the parameters is kept, the params of best are the averaged ones that were scored; those of
checkpoints are the raw ones, and the average lies beside the optimiser state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from seggpt_jax.errors import InputError
from seggpt_jax.model import weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.step import TrainState


class Checkpoints:
  """Saves and restores the state of a run.

  Args:
    workdir: the run's folder.
    config: the architecture, stored with every checkpoint.
    keep: how many of the newest steps to keep.
  """

  def __init__(self, workdir: str | os.PathLike, config: SegGPTConfig, keep: int):
    root = epath.Path(os.path.abspath(workdir))
    self._config = config
    self._steps = ocp.CheckpointManager(
      root / "checkpoints",
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
      item_handlers={
        "params": ocp.PyTreeCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "optimizer": ocp.PyTreeCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
      },
    )
    self._best = ocp.CheckpointManager(
      root / "best",
      options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True),
      item_handlers={"params": ocp.PyTreeCheckpointHandler(), "config": ocp.JsonCheckpointHandler()},
    )

  def latest_step(self) -> int | None:
    """The newest whole checkpoint, or None."""
    return self._steps.latest_step()

  def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint of this step; `progress` is whatever else the run has to remember, as JSON."""
    step = int(state.step)
    if step == self._steps.latest_step():
      return
    self._steps.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(state.params),
        config=ocp.args.JsonSave(self._config.to_dict()),
        optimizer=ocp.args.PyTreeSave(_beside_params(state)),
        progress=ocp.args.JsonSave(dict(progress)),
      ),
    )

  def save_best(self, state: TrainState) -> None:
    """Starts writing the weights of this step as the best so far; the former best goes when they are whole."""
    self._best.save(
      int(state.step),
      args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(state.averaged), config=ocp.args.JsonSave(self._config.to_dict())
      ),
    )

  def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint, and drops best weights of later steps, which the run will come to again.

    Args:
      abstract_state: shape, dtype and sharding of each leaf.

    Returns:
      The state on its devices, and the progress saved with it; without its "best_miou" if those weights are gone.

    Raises:
      InputError: the checkpoint is of another architecture.
    """
    step = self._steps.latest_step()
    directory = self._steps.directory / str(step)
    for item in ("params", "config", "optimizer", "progress"):
      if not (directory / item).exists():
        raise InputError(
          f"{directory}: found no {item} in it, expected a whole checkpoint; remove it to go on before it"
        )
    stored = weights.load_config(directory)
    if stored != self._config:
      theirs, ours = stored.to_dict(), self._config.to_dict()
      key = next(key for key in ours if theirs[key] != ours[key])
      raise InputError(
        f"{directory}: checkpoint of another model: {key} is {theirs[key]}, expected {ours[key]} by the config; "
        "resume with the config of that run or take another --workdir"
      )

    def restore_args(tree: Any) -> Any:
      return ocp.checkpoint_utils.construct_restore_args(tree)

    optimizer = _beside_params(abstract_state)
    restored = self._steps.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.PyTreeRestore(abstract_state.params, restore_args=restore_args(abstract_state.params)),
        optimizer=ocp.args.PyTreeRestore(optimizer, restore_args=restore_args(optimizer)),
        progress=ocp.args.JsonRestore(),
      ),
    )
    for later in [best for best in self._best.all_steps() if best > step]:
      self._best.delete(later)
    state = TrainState(params=restored.params, **{"ema": {}, **restored.optimizer})
    progress = dict(restored.progress)
    if not self._best.all_steps():
      progress.pop("best_miou")
    return jax.block_until_ready(state), progress

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._steps.close()
    self._best.close()


def _beside_params(state: TrainState) -> dict[str, Any]:
  """The item that holds the rest of a state; without an average where none is kept, as runs of old have it."""
  beside = {"step": state.step, "opt_state": state.opt_state}
  return beside | {"ema": state.ema} if state.ema else beside
