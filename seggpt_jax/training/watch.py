"""What the steps of a run have shown since the last line in its log; a number that is not finite ends the run."""

from __future__ import annotations

import collections
import math
import resource
import sys
from collections.abc import Callable

import jax
import numpy as np

from seggpt_jax.errors import InputError
from seggpt_jax.metrics.iou import mean_iou
from seggpt_jax.training.step import StepOutput


class Watch:
  """Collects what steps tell, reading each while the next one runs, so that the device never waits for the host.

  Args:
    num_classes: N, background included.
    names: of a batch's samples, for the one that spoils a run.
    fallback: where to go on from, likewise.
  """

  def __init__(self, num_classes: int, names: Callable[[np.ndarray], str], fallback: Callable[[], str]):
    self._names, self._fallback = names, fallback
    self._pending: collections.deque[tuple[int, StepOutput, np.ndarray]] = collections.deque()
    self._losses: list[float] = []
    self._norms: list[float] = []
    self._confusion = np.zeros((num_classes, num_classes), np.int64)

  def add(self, step: int, output: StepOutput, samples: np.ndarray) -> None:
    """Notes a step that was dispatched; `samples` are those of its batch, [B, 2]."""
    self._pending.append((step, output, samples))

  def settle(self, leave: int) -> None:
    """Reads the numbers of all steps but the newest few, and waits for them.

    Raises:
      InputError: a loss or gradient is not finite: names the step, the samples and where to go on.
    """
    while len(self._pending) > leave:
      step, output, samples = self._pending.popleft()
      loss, norm = float(output.loss), float(output.gradient_norm)
      if not (math.isfinite(loss) and math.isfinite(norm)):
        raise InputError(
          f"step {step}: found loss {loss} and gradient norm {norm} on {self._names(samples)}, expected finite "
          f"numbers; lower config.optim.peak, set config.optim.clip_norm or look at these samples; {self._fallback()}"
        )
      self._losses.append(loss)
      self._norms.append(norm)
      self._confusion += np.asarray(output.confusion)

  def summary(self) -> dict[str, float]:
    """Means over the steps since the last call: loss, mIoU on hidden pixels, gradient norm."""
    numbers = {
      "loss": float(np.mean(self._losses)),
      "miou": float(mean_iou(self._confusion)),
      "gradient_norm": float(np.mean(self._norms)),
    }
    self._losses.clear()
    self._norms.clear()
    self._confusion[:] = 0
    return numbers


def peak_memory() -> float:
  """The most memory in GB that the first device has held, or this process where the device does not tell."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 1e9
  # Kilobytes, but on macOS bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class EarlyStopping:
  """Ends a run whose validation no longer gets better.

  Args:
    patience: evaluations without a better mIoU until it does; 0 for never.
    since_best: evaluations since the best one, of an earlier start of the run.
  """

  def __init__(self, patience: int, since_best: int = 0):
    self._patience = patience
    self.since_best = since_best

  def add(self, better: bool) -> None:
    """Notes whether an evaluation was better than all before."""
    self.since_best = 0 if better else self.since_best + 1

  def now(self) -> bool:
    """Whether to stop."""
    return 0 < self._patience <= self.since_best
