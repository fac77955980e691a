"""The project of the page: its session, the networks that answer it, and its training runs.

In: the folder of the project, and the network that the page starts with. Out: the state for the page. A training run is
`seggpt train` as a process of its own, watched through its run directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.app.answering import Answering, Network
from seggpt_jax.app.bundles import write_dataset
from seggpt_jax.app.engine import Engine, NotReadyError
from seggpt_jax.app.http import log_failure
from seggpt_jax.app.limits import BusyError, count_canvases
from seggpt_jax.app.pictures import SessionLimits, UnknownError
from seggpt_jax.app.project_files import LEARNED, run_numbers
from seggpt_jax.app.sessions import Session
from seggpt_jax.child_processes import start_command
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import parse_json
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import trained_options
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.weights import find_adapter
from seggpt_jax.palette import IGNORE
from seggpt_jax.training.monitor import read_lines

MOST_STEPS = 5000
_LEAST_EXAMPLES = 2
_VAL_SHARE = 0.2
_LEAST_FOR_VAL = 5  # with fewer examples all of them train, and validation repeats them
_PATIENCE = 10.0  # seconds that a run gets to end by itself when the server ends


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The start of a run: weights and config."""

  model_path: str  # weights to start from
  config: str = "head"  # packaged config, or config file
  keys: tuple[str, ...] = ("eval_pairs=16",)  # further keys of the config, as key=value
  adapts: bool = False  # whether the run learns an adapter for the weights rather than weights


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
    every, log_every = max(steps // 4, 1), max(min(steps // 20, 10), 1)
    keys = [f"model.init_from={recipe.model_path}", f"data.path={self._folder / 'data'}", f"data.ignore=({IGNORE},)"]
    keys += [f"data.num_classes={len(session.classes) + 1}", *([] if val_share else ["data.val_split=train"])]
    keys += [f"num_steps={steps}", f"eval_every={every}", f"checkpoint_every={every}", f"log_every={log_every}"]
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
    logged = [entry for _, entry in read_lines(self.run / "metrics.jsonl")]
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
    last = one_line(last.removeprefix("error: "))
    return last.replace(f"{self._folder}{os.sep}", "").replace(str(self._folder), "")[:300]


# Passes forward that a training step takes for each of its images: three times as many, at fewer pixels in the packaged
# configs.
_TRAINING_COST = 2.0
_BATCH = 8  # images of a training step in the packaged configs


class Project:
  """A session with what runs for it.

  Args:
    network: the network that the page starts with.
    recipe: what training starts from.
    folder: folder of the project.
    limits: limits of the session.
    plain: loads the network without its adapter, when somebody chooses it; None if it has none.
    learned_classes: names of the classes of the learned prompt that the network starts with; none without one.
  """

  def __init__(
    self,
    network: Network,
    recipe: Recipe,
    folder: Path,
    limits: SessionLimits | None = None,
    plain: Callable[[], Network] | None = None,
    learned_classes: Sequence[str] = (),
  ):
    self._network, self._recipe, self._load_plain = network, recipe, plain
    self.limits, self._lock = limits or SessionLimits(), threading.RLock()
    self.session = Session(folder, self.limits, learned_classes)
    self._learning: Learning | None = None
    self._adopted: Learning | None = None  # the last run that was chosen by itself
    self._chosen: tuple[str, Network] | None = None  # a network other than the first, by its name in the settings
    if not self._is_there(self.session.settings.network):
      self.session.set_settings({"network": "start"})
    self.answering = Answering(self.session, self._network_now)

  def _is_there(self, name: str) -> bool:
    """Returns whether the settings can name a network."""
    return name == "start" or (self._load_plain is not None if name == "plain" else name in self.learned)

  @property
  def learned(self) -> dict[str, Path]:
    """The directories of training runs that have weights for the classes, by number, the newest last."""
    running = self._learning.name if self._learning and not self._learning.has_weights else ""
    names = [name for name in run_numbers(self.session.folder) if int(name) >= self.session.learned_from]
    runs = {name: self.session.folder / LEARNED / name / "run" for name in names if name != running}
    return {name: run for name, run in runs.items() if any(run.glob("checkpoints/*"))}

  def clear(self, keep: bool = False) -> None:
    """Deletes all images. A training run in progress ends.

    Args:
      keep: whether the names of the classes and the settings stay, and a run continues; what was learned always stays.
    """
    if not keep and self._learning is not None:
      self._learning.close()
    with self._lock:
      self.session.clear(keep)
      if not keep:
        self._learning = None

  def close(self) -> None:
    """Ends everything. The project stays."""
    self.answering.close()
    if self._learning is not None:
      self._learning.close()
    if self._chosen is not None:
      self._chosen[1].engine.close()
    self.session.close()

  def _network_now(self) -> Network:
    """Returns the network that answers, that of a run once it has ended. Raises NotReadyError while it loads."""
    with self._lock:
      learning = self._learning
      if learning is not None and self._adopted is not learning and learning.has_weights:
        self._adopted = learning
        self.session.set_settings({"network": learning.name})
      started = self._chosen[1].engine.started if self._chosen else None
      if started and started.done() and (error := started.exception()):
        self._give_up(error)
      name, before = self.session.settings.network, self._chosen
      if name != "start" and (before is None or before[0] != name):
        try:
          self._chosen = name, self._load(name)
        except (InputError, LookupError) as error:
          self._give_up(error)
          raise NotReadyError("the network cannot be used") from error
        if before is not None:
          threading.Thread(target=before[1].engine.close, daemon=True).start()
      return self._network if name == "start" or self._chosen is None else self._chosen[1]

  def _give_up(self, error: BaseException) -> None:
    log_failure("a network cannot be used", error)
    self._chosen = None
    self.session.set_settings({"network": "start"})

  # ------------------------------------------------------------------------------------------------------- networks

  def _load(self, name: str) -> Network:
    """Returns a network that loads in its own thread."""
    if name == "plain" and self._load_plain is not None:
      return self._load_plain()
    run = self.learned[name]
    path, adapter = (str(run), None) if find_adapter(run) is None else (load_adapter(run).base, str(run))
    options = trained_options(run)
    return Network(Engine(lambda: Predictor.from_checkpoint(path, adapter=adapter), options=options), options)

  def choose(self, settings: dict[str, Any]) -> None:
    """Changes the settings.

    Raises:
      InputError: a value is wrong, or there is no such network.
    """
    name = settings.get("network", "start")
    if isinstance(name, str) and not self._is_there(name):
      raise InputError(f"network: found {name[:80]}, expected one of start, {', '.join(self.learned) or 'no other'}")
    self.session.set_settings(settings)

  def remove_class(self, index: int, ignore: bool = False) -> None:
    """Removes a class. Networks that have learned its number stay on the disk, but answer no more.

    Args:
      index: the class.
      ignore: whether its pixels in labels are ignored; else they become background.

    Raises:
      BusyError: a training run is in progress.
      InputError: the class cannot be removed.
    """
    with self._lock:
      self._refuse_while_learning()
      self.session.remove_class(index, ignore)
      if not self._is_there(self.session.settings.network):
        self.session.set_settings({"network": "start"})

  def _refuse_while_learning(self) -> None:
    if self._learning and self._learning.state in ("running", "stopping"):
      raise BusyError("training: in use by this page; wait until that run has ended")

  # ------------------------------------------------------------------------------------------------------- learning

  def learn(self, steps: Any, again: bool = False) -> None:
    """Starts a training run on the labeled images.

    Args:
      steps: number of steps.
      again: whether to start from the newest run.

    Raises:
      BusyError: a training run is in progress.
      InputError: there are too few examples, or nothing has been learned yet.
    """
    with self._lock:
      self._refuse_while_learning()
      recipe, learned = self._recipe, self.learned
      if again:
        if not learned or recipe.adapts:
          raise InputError("again: found no weights learned in this project, expected some to start from")
        recipe = dataclasses.replace(recipe, model_path=str(list(learned.values())[-1]))
      if self._learning is not None:
        self._learning.close()
      self._learning = Learning(self.session, recipe, steps)

  @property
  def learning(self) -> Learning:
    """The last training run.

    Raises:
      UnknownError: there was none since the start.
    """
    if self._learning is None:
      raise UnknownError("learning: no training run was started since the start of the page")
    return self._learning

  def as_json(self, since: int = 0) -> dict[str, Any]:
    """Returns the state for the page, with its rate and its training run."""
    state = self.session.as_json(since)
    rate = self.answering.rate.per_second()
    left = state["progress"]["total"] - state["progress"]["answered"]
    state["progress"] |= {"rate": round(rate, 3), "seconds": round(left / rate, 1) if rate else None}
    state["learning"] = None if self._learning is None else self._learning.as_json()
    state["learned"], state["plain"] = list(self.learned), self._load_plain is not None
    state["ready"] = self._network.engine.started.done()
    measured = (state["learning"] or {}).get("step_seconds")
    state["step_seconds"] = measured or self._step_seconds(rate)
    return state

  def _step_seconds(self, rate: float) -> float | None:
    """Returns about how long a training step will take, from the rate of answers; None if that is unknown."""
    examples = self.session.chosen()
    if not rate or (self.session.needs_examples and not examples):
      return None
    tile = self._network.engine.predictor.tile_size
    try:
      options = self.session.options(self._network.options, tile)
    except UnknownError:  # an example was taken back at this moment
      return None
    passes = count_canvases(options, tile, len(examples), tile)
    return round(_TRAINING_COST * _BATCH / (rate * passes), 3)
