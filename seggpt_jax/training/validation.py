"""Validates a run on its fixed validation pairs and remembers the best score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from seggpt_jax.data import pipeline
from seggpt_jax.metrics.iou import iou_from_confusion, mean_iou
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.parameters import Params
from seggpt_jax.training import sharding
from seggpt_jax.training.monitor import SharedBadFiles, draw_panels
from seggpt_jax.training.step import StepOutput


class Validation(NamedTuple):
  """The outcome of one evaluation."""

  scores: dict[str, float]  # loss, mIoU and IoU of each class
  missing: tuple[int, ...]  # classes that the labels show and of which not one pixel was predicted
  panel: UInt8[np.ndarray, "height width 3"]  # picture of a few predictions


@dataclasses.dataclass(frozen=True)
class Validator:
  """Scores parameters on the validation pairs, which are the same each time."""

  config: ConfigDict  # configuration of the run
  pairs: pipeline.EvaluationPairs  # validation pairs
  model_config: SegGPTConfig  # architecture of the network
  mesh: Mesh  # devices that share a batch
  eval_step: Callable[..., StepOutput]  # compiled evaluation step of `step.make_eval_step`
  bad_files: SharedBadFiles  # collects the files that cannot be read

  def __call__(self, params: Params) -> Validation:
    """Returns the outcome of an evaluation of parameters."""
    config = self.config
    batches = pipeline.evaluation_batches(
      self.pairs,
      # A micro-batch at a time, as in training: a whole batch may not fit in memory.
      batch_size=config.batch_size // (config.accumulate * jax.process_count()),
      num_pairs=config.eval_pairs,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    confusion, losses, counts = np.zeros((config.data.num_classes,) * 2, np.int64), [], []
    for index, batch in enumerate(batches):
      placed = sharding.put_pairs(self.mesh, batch)
      output = self.eval_step(params, placed)
      self.bad_files.add("val", batch["bad"])
      confusion += np.asarray(output.confusion)
      losses.append(float(output.loss))
      # The loss of a batch is the mean over this many pixels.
      counts.append(int(np.asarray(output.confusion).sum()))
      if index == 0:
        panel = draw_panels(batch, local_shards(output.colors), self.model_config)
    self.bad_files.settle()
    loss = float(np.average(losses, weights=counts)) if any(counts) else float("nan")
    result = {"loss": loss, "miou": float(mean_iou(confusion))}
    result |= {f"iou_{index}": float(value) for index, value in enumerate(iou_from_confusion(confusion))}
    missing = np.flatnonzero((confusion.sum(axis=1) > 0) & (confusion.sum(axis=0) == 0))
    return Validation(result, tuple(missing.tolist()), panel)


def describe_missing(missing: Sequence[int], config: ConfigDict) -> str:
  """Returns one line on classes that are never predicted, with the likely cause and the key to change."""
  names = ", ".join(map(str, missing))
  if not (config.loss.cross_entropy or config.loss.dice):
    advice = (
      "smooth L1 answers background where a class is less than half likely; if this stays so, set "
      "loss.cross_entropy=1 and loss.dice=0.5"
    )
  elif not config.data.zoom:
    advice = "its objects may be smaller than a patch after the resize; if this stays so, set data.zoom=-1"
  else:
    advice = "it may need more steps (num_steps), or a larger share of the loss (loss.foreground)"
  return f"not one pixel of class {names} was predicted: {advice}"


@dataclasses.dataclass
class BestScore:
  """Remembers the best validation mIoU of a run and ends a run that no longer improves."""

  patience: int  # evaluations without a better mIoU after which the run ends; 0 never ends it
  miou: float = -1.0  # best mIoU so far, 0..1; -1 without one
  since_best: int = 0  # evaluations since the best one

  @classmethod
  def resumed(cls, config: ConfigDict, progress: Mapping[str, Any]) -> BestScore:
    """Returns the best score of a run, from its configuration and what a checkpoint stores."""
    return cls(config.stop_after, progress.get("best_miou", -1.0), progress.get("since_best", 0))

  def update(self, miou: float) -> bool:
    """Records the mIoU of an evaluation and returns whether it is the best so far."""
    better = miou > self.miou
    self.miou = miou if better else self.miou
    self.since_best = 0 if better else self.since_best + 1
    return better

  def should_stop(self) -> bool:
    """Returns whether the run has not improved for too long."""
    return 0 < self.patience <= self.since_best

  def explain_stop(self, say: Callable[[str], None]) -> None:
    """Prints why the run ends early, if it does."""
    if self.should_stop():
      say(f"stopped early: no better mIoU than {self.miou:.3f} in {self.since_best} evaluations")

  def to_progress(self) -> dict[str, Any]:
    """Returns what a checkpoint stores."""
    return {"best_miou": self.miou, "since_best": self.since_best}


def local_shards(array: jax.Array) -> np.ndarray:
  """Returns the part of an array split along the batch that is stored on this process's devices."""
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])
