"""Learning from the labels of a session: `seggpt train` as a process of its own, watched through its run directory.

In: a session's labeled images. Out: a training run, its progress for the page, and the arguments to load it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from seggpt_jax.app.bundles import write_dataset
from seggpt_jax.app.project_files import LEARNED, run_numbers
from seggpt_jax.app.sessions import Session
from seggpt_jax.child_processes import start_command
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import parse_json
from seggpt_jax.palette import IGNORE
from seggpt_jax.training.monitor import read_lines

MOST_STEPS = 5000
_LEAST_EXAMPLES = 2
_VAL_SHARE = 0.2
_LEAST_FOR_VAL = 5  # with fewer examples all of them train, and validation repeats them
_PATIENCE = 10.0  # seconds that a run gets to end by itself when the server ends


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The start of a run: weights and config.

  Attributes:
    model_path: weights to start from.
    config: packaged config, or config file.
    keys: further keys of the config, as key=value.
    adapts: whether the run learns an adapter for the weights rather than weights.
  """

  model_path: str
  config: str = "head"
  keys: tuple[str, ...] = ("eval_pairs=16",)
  adapts: bool = False


class Learning:
  """One training run.

  Args:
    session: its labeled images are the data.
    recipe: what the run starts from.
    steps: number of steps.

  Raises:
    InputError: there are too few labeled images, or the number of steps is out of range.
  """

  def __init__(self, session: Session, recipe: Recipe, steps: Any):
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
      raise InputError(f"steps: found {steps!r}, expected an integer from 1 to {MOST_STEPS}")
    if len(session.examples) < _LEAST_EXAMPLES:
      raise InputError(f"learning: found {len(session.examples)} examples, expected at least {_LEAST_EXAMPLES}")
    self.recipe, self.steps = recipe, steps
    self.name = str(1 + max(map(int, run_numbers(session.folder)), default=0))
    self._folder = session.folder / LEARNED / self.name
    val_share = _VAL_SHARE if len(session.examples) >= _LEAST_FOR_VAL else 0.0
    self.examples = write_dataset(session, self._folder / "data", val_share, training=True)
    self._stopped = False
    self._log = open(self._folder / "log.txt", "wb")  # noqa: SIM115 - closed with the process
    keys = [f"data.path={self._folder / 'data'}", f"data.num_classes={len(session.classes) + 1}", f"num_steps={steps}"]
    keys += [
      f"model.init_from={recipe.model_path}",
      f"eval_every={max(steps // 4, 1)}",
    ]
    keys += [f"checkpoint_every={max(steps // 4, 1)}", f"log_every={max(min(steps // 20, 10), 1)}"]
    keys += [f"data.ignore=({IGNORE},)"]
    keys += [] if val_share else ["data.val_split=train"]
    keys += recipe.keys
    line = ["train", "--config", recipe.config, "--workdir", str(self.run), *(f"--config.{key}" for key in keys)]
    self._process = start_command(line, stdout=self._log, stderr=self._log, start_new_session=True)

  @property
  def run(self) -> Path:
    """The run directory."""
    return self._folder / "run"

  @property
  def state(self) -> str:
    """Returns "running", "stopping", "stopped", "done" or "failed"."""
    status = self._process.poll()
    if status is None:
      return "stopping" if self._stopped else "running"
    return ("stopped" if self._stopped else "done") if status == 0 else "failed"

  @property
  def has_weights(self) -> bool:
    """True once the run has ended with weights to use."""
    return self.state in ("done", "stopped") and any(self.run.glob("checkpoints/*"))

  def stop(self) -> None:
    """Asks the run to end after its current step and to keep what it has learned."""
    self._stopped = True
    if self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)

  def close(self) -> None:
    """Ends the run, at once if it does not end by itself."""
    self.stop()
    try:
      self._process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, signal.SIGKILL)
      self._process.wait()
    self._process.stdin.close()
    self._log.close()

  def panel(self) -> Path | None:
    """Returns the newest picture of pairs with their predictions, if there is one."""
    return max((self.run / "panels").glob("*.png"), key=lambda path: (path.stat().st_mtime, path.name), default=None)

  def as_json(self) -> dict[str, Any]:
    """Returns the progress for the page: the numbers logged so far, and the minutes that are left."""
    logged = _read_log(self.run / "metrics.jsonl")
    train = [entry for entry in logged if entry["split"] == "train"]
    step, state = (train[-1]["step"] if train else 0), self.state
    seconds = self._step_seconds(train[-1]) if train else None
    return {
      "state": state,
      "step": step,
      "steps": self.steps,
      "examples": self.examples,
      "curve": [[entry["step"], entry.get("loss")] for entry in train],
      "scores": [[entry["step"], entry.get("miou")] for entry in logged if entry["split"] != "train"],
      "minutes": round((self.steps - step) * seconds / 60, 2) if seconds and state == "running" else None,
      "step_seconds": seconds,
      "panel": None if (panel := self.panel()) is None else panel.stem,
      "error": self._failure() if state == "failed" else "",
    }

  def _step_seconds(self, entry: dict[str, Any]) -> float | None:
    """Returns how long a step takes at the rate of a logged entry; None if it has none."""
    path, rate = self.run / "config.json", entry.get("pairs_per_second")
    return round(parse_json(path.read_bytes())["batch_size"] / rate, 4) if rate and path.is_file() else None

  def _failure(self) -> str:
    """Returns the last line that the process printed, without paths of this machine."""
    lines = (self._folder / "log.txt").read_text("utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "no message")
    return (
      one_line(last.removeprefix("error: ")).replace(f"{self._folder}{os.sep}", "").replace(str(self._folder), "")[:300]
    )


def learned_runs(folder: Path) -> dict[str, Path]:
  """Returns the directories of the training runs of a project that have weights, by their numbers."""
  runs = {name: folder / LEARNED / name / "run" for name in run_numbers(folder)}
  return {name: run for name, run in runs.items() if any(run.glob("checkpoints/*"))}


def _read_log(path: Path) -> list[dict[str, Any]]:
  """Returns the entries of a run's metrics.jsonl, without a last line that is still being written."""
  return [entry for _, entry in read_lines(path)] if path.is_file() else []
