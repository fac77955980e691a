"""Profiles a few steps of a run, for TensorBoard or Perfetto."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

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
    self._directory, self._say = Path(directory), say
    self._begin = start + _WARM_UP + 1
    self._end = self._begin + steps
    self._running, self._done = False, steps == 0

  def before_step(self, step: int) -> None:
    """Starts the profile before its first step; to be called before each step."""
    if step == self._begin < self._end:
      options = jax.profiler.ProfileOptions()
      # Steps do not wait for Python's calls, and tracing those crashes now and then while threads come and go.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._directory, profiler_options=options)
      self._running = self._done = True
      self._say(f"profiling steps {self._begin} to {self._end - 1}")

  def after_step(self, step: int, output: Any) -> None:
    """Ends the profile after its last step; to be called after each step was dispatched.

    Args:
      step: number of the step.
      output: arrays that the step returned; the last step of the profile is waited for.
    """
    if self._running and step == self._end - 1:
      jax.block_until_ready(output)
      self.close()

  def close(self) -> None:
    """Ends a profile that is still running, or says that there was none."""
    if not self._done:
      self._say(f"nothing was profiled: the run ended before step {self._begin}")
      self._done = True
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      self._say(f"profile: tensorboard --logdir {self._directory}, or open its .trace.json.gz at ui.perfetto.dev")
