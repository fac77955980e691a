"""The project of the page: its session, the networks that answer it, and its training runs.

In: the folder of the project, and the network that the page starts with. Out: the state for the page.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.app.answering import Answering, Network
from seggpt_jax.app.engine import Engine, NotReadyError
from seggpt_jax.app.http import log_failure
from seggpt_jax.app.learning import Learning, Recipe, learned_runs
from seggpt_jax.app.limits import BusyError, count_canvases
from seggpt_jax.app.pictures import UnknownError
from seggpt_jax.app.sessions import Session
from seggpt_jax.app.settings import SessionLimits
from seggpt_jax.errors import InputError
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import trained_options
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.weights import find_adapter

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
    self.answering = Answering(self._tick, self.network_of)

  def _is_there(self, name: str) -> bool:
    """Returns whether the settings can name a network."""
    return name == "start" or (self._load_plain is not None if name == "plain" else name in self.learned)

  @property
  def learned(self) -> dict[str, Path]:
    """The directories of training runs that have weights for the classes, by number, the newest last."""
    running = self._learning.name if self._learning and not self._learning.has_weights else ""
    runs, first = learned_runs(self.session.folder), self.session.learned_from
    return {name: run for name, run in runs.items() if name != running and int(name) >= first}

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

  def _tick(self) -> list[Session]:
    """Lets a training run that has just ended answer, and returns the session."""
    with self._lock:
      learning = self._learning
      if learning is not None and self._adopted is not learning and learning.has_weights:
        self._adopted = learning
        self.session.set_settings({"network": learning.name})
      chosen = self._chosen
      if chosen is not None and chosen[1].engine.started.done() and (error := chosen[1].engine.started.exception()):
        self._give_up(error)
    return [self.session]

  def _give_up(self, error: BaseException) -> None:
    log_failure("a network cannot be used", error)
    self._chosen = None
    self.session.set_settings({"network": "start"})

  # ------------------------------------------------------------------------------------------------------- networks

  def network_of(self, session: Session) -> Network:
    """Returns the network that answers.

    Raises:
      NotReadyError: it is loading.
    """
    name = session.settings.network
    with self._lock:
      before = self._chosen
      if name != "start" and (before is None or before[0] != name):
        try:
          self._chosen = name, self._load(name)
        except (InputError, LookupError) as error:
          self._give_up(error)
          raise NotReadyError("the network cannot be used") from error
        if before is not None:
          threading.Thread(target=before[1].engine.close, daemon=True).start()
      return self._network if name == "start" or self._chosen is None else self._chosen[1]

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
    rate = self.answering.rate(self.session)
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
