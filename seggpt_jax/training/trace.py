"""A profile of a few steps, for TensorBoard or Perfetto."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Steps before the trace: compilation and the first batches are another matter.
_WARM_UP = 5


class StepTrace:
  """Traces some steps of a run.

  Args:
    directory: where the trace goes.
    done: steps that were done before this start of the run.
    steps: how many to trace, after a few to warm up; 0 traces none.
    say: is told when it begins and where it is.
  """

  def __init__(self, directory: str | os.PathLike, done: int, steps: int, say: Callable[[str], None]):
    self._directory, self._say = Path(directory), say
    self._begin = done + _WARM_UP + 1
    self._end = self._begin + steps
    self._running, self._done = False, steps == 0

  def before(self, step: int) -> None:
    """To be called before each step."""
    if step == self._begin < self._end:
      options = jax.profiler.ProfileOptions()
      # Python's calls are not what a step waits for, and hooking them crashes now and then while threads come and go.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._directory, profiler_options=options)
      self._running = self._done = True
      self._say(f"profiling steps {self._begin} to {self._end - 1}")

  def after(self, step: int, state: Any) -> None:
    """To be called after each step was dispatched.

    Args:
      step: the step.
      state: what it returned, which is waited for at the end of the trace.
    """
    if self._running and step == self._end - 1:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Ends a trace that a run ends in; says so if there was none."""
    if not self._done:
      self._say(f"nothing was profiled: the run ended before step {self._begin}")
      self._done = True
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      self._say(f"profile: tensorboard --logdir {self._directory}, or open its .trace.json.gz at ui.perfetto.dev")
