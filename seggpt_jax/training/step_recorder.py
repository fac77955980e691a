"""Collects the numbers of training steps and stops the run at a number that is not finite; profiles a few steps."""

from __future__ import annotations

import collections
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seggpt_jax.errors import InputError
from seggpt_jax.metrics.iou import mean_iou
from seggpt_jax.training.step import StepOutput


class StepRecorder:
  """Reads the numbers of each step while the next step runs, so that the device never waits for the host.

  Args:
    num_classes: N, background included.
    describe_samples: takes the `samples` of a batch and returns their names, for the error message.
    describe_checkpoint: returns which checkpoint the run can resume from, for the error message.
  """

  def __init__(
    self, num_classes: int, describe_samples: Callable[[np.ndarray], str], describe_checkpoint: Callable[[], str]
  ):
    self._describe_samples, self._describe_checkpoint = describe_samples, describe_checkpoint
    self._pending: collections.deque[tuple[int, StepOutput, np.ndarray]] = collections.deque()
    self._losses, self._norms = list[float](), list[float]()
    self._confusion = np.zeros((num_classes, num_classes), np.int64)
    self._steps, self._since = 0, time.perf_counter()

  def add(self, step: int, output: StepOutput, samples: np.ndarray) -> None:
    """Records a step that was dispatched.

    Args:
      step: number of the step.
      output: output of the step, on the device.
      samples: indices of prompt and query of each canvas of its batch, [B, 2].
    """
    self._pending.append((step, output, samples))
    self._steps += 1

  def flush(self, keep_pending: int) -> None:
    """Waits for the numbers of all steps but the newest `keep_pending`, and checks them.

    Raises:
      InputError: a loss or gradient is not finite; names the step, the samples and the checkpoint to resume from.
    """
    while len(self._pending) > keep_pending:
      step, output, samples = self._pending.popleft()
      loss, norm = float(output.loss), float(output.gradient_norm)
      if not (math.isfinite(loss) and math.isfinite(norm)):
        raise InputError(
          f"step {step}: found loss {loss} and gradient norm {norm} on {self._describe_samples(samples)}, expected "
          f"finite numbers; lower config.optim.peak, set config.optim.clip_norm or look at these samples; "
          f"{self._describe_checkpoint()}"
        )
      self._losses.append(loss)
      self._norms.append(norm)
      self._confusion += np.asarray(output.confusion)

  def summary(self) -> dict[str, float]:
    """Returns the means over the steps since the last call: loss, mIoU on hidden pixels, gradient norm."""
    numbers = {"loss": float(np.mean(self._losses)), "miou": float(mean_iou(self._confusion))}
    numbers["gradient_norm"] = float(np.mean(self._norms))
    self._losses.clear()
    self._norms.clear()
    self._confusion[:] = 0
    return numbers

  def steps_per_second(self) -> float:
    """Returns the number of steps per second since the last call."""
    now = time.perf_counter()
    rate = self._steps / max(now - self._since, 1e-9)
    self._steps, self._since = 0, now
    return rate


def peak_memory() -> float:
  """Returns the most memory in GB that the first device has held, or this process where the device does not report."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 1e9
  # Kilobytes, except on macOS, which reports bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# Compilation and the first batches would hide what a usual step does.
_WARM_UP = 5


class StepProfiler:
  """Profiles some steps of a run.

  Args:
    directory: folder for the profile.
    start: steps done before this start of the run.
    steps: number of steps to profile, after a few to warm up; 0 profiles none.
    say: prints a line; called when the profile begins and when it is written.
  """

  def __init__(self, directory: str | os.PathLike, start: int, steps: int, say: Callable[[str], None]):
    self._directory, self._say, self._running = Path(directory), say, False
    self._steps = range(start + _WARM_UP + 1, start + _WARM_UP + 1 + steps)  # those to profile; empty when it is done

  def before_step(self, step: int) -> None:
    """Starts the profile before its first step; to be called before each step."""
    if self._steps and step == self._steps[0]:
      options = jax.profiler.ProfileOptions()
      # Steps do not wait for Python's calls, and tracing those crashes now and then while threads come and go.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._directory, profiler_options=options)
      self._running = True
      self._say(f"profiling steps {self._steps[0]} to {self._steps[-1]}")

  def after_step(self, step: int, output: Any) -> None:
    """Ends the profile after its last step; to be called after each step was dispatched.

    Args:
      step: number of the step.
      output: arrays that the step returned; the last step of the profile is waited for.
    """
    if self._running and step == self._steps[-1]:
      jax.block_until_ready(output)
      self.close()

  def close(self) -> None:
    """Ends a profile that is still running, or says that there was none."""
    if self._running:
      jax.profiler.stop_trace()
      self._say(f"profile: tensorboard --logdir {self._directory}, or open its .trace.json.gz at ui.perfetto.dev")
    elif self._steps:
      self._say(f"nothing was profiled: the run ended before step {self._steps[0]}")
    self._steps, self._running = range(0), False
