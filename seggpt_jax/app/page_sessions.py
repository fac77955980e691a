"""All sessions of the page, the networks that answer them, and their training runs.

In: sessions by their secret ids. Out: what belongs to a session, and to no other. Everything temporary lies in one
folder, which is deleted when the page ends, and by the next start after a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import secrets
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.app.answering import Answering, Network
from seggpt_jax.app.engine import Engine, NotReadyError
from seggpt_jax.app.http import log_failure
from seggpt_jax.app.learning import Learning, Recipe
from seggpt_jax.app.limits import BusyError, count_canvases
from seggpt_jax.app.sessions import Session, UnknownError
from seggpt_jax.app.settings import SessionLimits
from seggpt_jax.errors import InputError
from seggpt_jax.files import exclusive, remove_leftovers_of
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import trained_options

_SEND_AWAY = 600.0  # seconds without a request after which a session makes room for a new one
# Passes forward that a training step takes for each of its images: three times as many, at fewer pixels in the packaged
# configs.
_TRAINING_COST = 2.0
_BATCH = 8  # images of a training step in the packaged configs


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
  """Gives a folder that is deleted at the end; those of killed servers are deleted now."""
  marker = Path(tempfile.gettempdir()) / "seggpt_app"
  remove_leftovers_of(marker)
  folder = marker.with_name(f".{marker.name}.seggpt-{uuid.uuid4().hex}")
  folder.mkdir(mode=0o700)
  try:
    with exclusive(folder):
      yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class _Work:
  """A session with what runs for it."""

  session: Session
  learning: Learning | None = None
  runs: int = 0
  learned: Network | None = None
  adopted: Learning | None = None  # the run that `learned` comes from


class PageSessions:
  """Opens, finds and ends sessions.

  Args:
    network: the network that the page starts with.
    recipe: what training starts from.
    folder: folder for everything temporary.
    limits: limits of each session, and of their number.
    load: loads the result of a training run.
    plain: loads the network without its adapter, when somebody chooses it; None if it has none.
    learned_classes: names of the classes of the learned prompt that the network starts with; none without one.
  """

  def __init__(
    self,
    network: Network,
    recipe: Recipe,
    folder: Path,
    limits: SessionLimits | None = None,
    load: Callable[[Learning], Network] | None = None,
    plain: Callable[[], Network] | None = None,
    learned_classes: Sequence[str] = (),
  ):
    self._network, self._recipe, self._folder = network, recipe, folder
    self.limits, self._load = limits or SessionLimits(), load or load_learned
    self._load_plain, self._plain, self._learned_classes = plain, None, learned_classes
    self._lock, self._works = threading.RLock(), dict[str, _Work]()
    self._secret, self._opened = secrets.token_bytes(32), set[str]()
    self.answering = Answering(self._tick, self.network_of)

  def new_key(self) -> str:
    """Returns an id, of 128 random bits, with which one session may be opened. Nothing is kept for it until then."""
    key = secrets.token_urlsafe(16)
    return f"{key}.{self._sign(key)}"

  def _sign(self, key: str) -> str:
    return hmac.new(self._secret, key.encode(), "sha256").hexdigest()[:32]

  def is_new(self, key: str | None) -> bool:
    """Returns whether an id is from `new_key` and no session was opened with it."""
    name, _, signature = (key or "").partition(".")
    ours = hmac.compare_digest(signature.encode(), self._sign(name).encode())
    return ours and key not in self._opened

  def open(self, key: str | None = None) -> tuple[str, Session]:
    """Opens a session and returns its id.

    Args:
      key: an id from `new_key`; None makes one.

    Raises:
      BusyError: there are as many sessions as allowed, and all are in use or hold labels of their owners.
    """
    with self._lock:
      self.make_room()
      key = key or self.new_key()
      self._opened.add(key)
      self._works[key] = _Work(Session(self._folder / secrets.token_hex(8), self.limits, self._learned_classes))
      return key, self._works[key].session

  def make_room(self) -> None:
    """Ends the session that was idle longest if there are as many as allowed; never one with labels of its owner.

    Raises:
      BusyError: all are in use or hold labels.
    """
    with self._lock:
      if len(self._works) < self.limits.sessions:
        return
      ends = [key for key, work in self._works.items() if not work.session.has_work]
      oldest = min(ends, key=lambda key: self._works[key].session.used, default=None)
      if oldest is None or time.monotonic() - self._works[oldest].session.used < _SEND_AWAY:
        raise BusyError(f"the page is busy: {len(self._works)} people use it; try again later")
      self.end(oldest)

  def find(self, key: str | None) -> Session | None:
    """Returns a session and notes that it is in use; None if no session has this id."""
    work = self._works.get(key or "")
    if work is None:
      return None
    work.session.used = time.monotonic()
    return work.session

  def end(self, key: str) -> None:
    """Ends a session: its training run, its network and its files."""
    with self._lock:
      work = self._works.pop(key)
    self._close(work)

  def clear(self, session: Session, keep: bool = False) -> None:
    """Deletes all images of a session.

    Args:
      session: the session.
      keep: whether the names of the classes, the settings and what was learned stay; otherwise the session is as new.
    """
    work = self._work_of(session)
    if not keep and work.learning is not None:
      work.learning.close()
    with self._lock:
      session.clear(keep)
      if not keep:
        self._close_network(work)
        work.learning = work.learned = work.adopted = None
        for folder in session.folder.glob("learning_*"):
          shutil.rmtree(folder, ignore_errors=True)

  def _close(self, work: _Work) -> None:
    if work.learning is not None:
      work.learning.close()
    self._close_network(work)
    work.session.close()

  def _close_network(self, work: _Work) -> None:
    if work.learned is not None:
      threading.Thread(target=work.learned.engine.close, daemon=True).start()

  def close(self) -> None:
    """Ends everything."""
    self.answering.close()
    for key in list(self._works):
      self.end(key)
    if self._plain is not None:
      self._plain.engine.close()

  def _tick(self) -> list[Session]:
    """Ends idle sessions, takes over what training runs have learned, and returns the open sessions."""
    now = time.monotonic()
    for key, work in list(self._works.items()):
      if now - work.session.used <= self.limits.idle_seconds:
        self._adopt(work)
      elif self._works.pop(key, None) is not None:
        # A training run may take seconds to end, and others wait for their answers.
        threading.Thread(target=self._close, args=(work,)).start()
    return [work.session for work in list(self._works.values())]

  # ------------------------------------------------------------------------------------------------------- networks

  def _work_of(self, session: Session) -> _Work:
    for work in list(self._works.values()):
      if work.session is session:
        return work
    raise UnknownError("session: it has ended; reload the page")

  def network_of(self, session: Session) -> Network:
    """Returns the network that answers a session.

    Raises:
      NotReadyError: it is loading.
    """
    if session.settings.network == "start":
      return self._network
    if session.settings.network == "plain" and self._load_plain is not None:
      self._plain = self._plain or self._load_plain()
      return self._plain
    learned = self._work_of(session).learned
    if learned is None:
      raise NotReadyError("the network that learned is not there")
    return learned

  def _adopt(self, work: _Work) -> None:
    """Loads what a training run that has just ended has learned, and lets it answer."""
    learning, learned = work.learning, work.learned
    if learned is not None and learned.engine.started.done() and learned.engine.started.exception() is not None:
      log_failure("a training run cannot be used", learned.engine.started.exception())
      work.learned = None
      work.session.set_settings({"network": "start"})
    if learning is None or work.adopted is learning or not learning.has_weights:
      return
    with self._lock:
      if work.learning is not learning:  # it was dropped at this moment
        return
      work.adopted = learning
      try:
        before, work.learned = work.learned, self._load(learning)
      except InputError as error:
        log_failure("a training run cannot be used", error)
        return
    if before is not None:
      threading.Thread(target=before.engine.close, daemon=True).start()
    if work.session.settings.network == "learned":
      work.session.ask_again()
    else:
      work.session.set_settings({"network": "learned"})

  def choose(self, session: Session, settings: dict[str, Any]) -> None:
    """Changes the settings of a session.

    Raises:
      InputError: a value is wrong, nothing has been learned yet, or there is no adapter to leave out.
    """
    if settings.get("network") == "plain" and self._load_plain is None:
      raise InputError("network: found plain, expected start: the page has started without an adapter")
    if settings.get("network") == "learned" and self._work_of(session).learned is None:
      raise InputError("network: found learned, expected start: nothing has been learned in this session yet")
    session.set_settings(settings)

  # ------------------------------------------------------------------------------------------------------- learning

  def learn(self, session: Session, steps: Any, again: bool = False) -> None:
    """Starts a training run on the labeled images of a session.

    Args:
      session: the session.
      steps: number of steps.
      again: whether to start from what the session's last run has learned.

    Raises:
      BusyError: a training run of this session or of another is in progress.
      InputError: there are too few examples, or nothing has been learned yet.
    """
    with self._lock:
      work = self._work_of(session)
      running = [
        each for each in self._works.values() if each.learning and each.learning.state in ("running", "stopping")
      ]
      if running:
        whose = "this page" if work in running else "another person"
        raise BusyError(f"training: in use by {whose}; wait until that run has ended")
      recipe = self._recipe
      if again:
        if work.adopted is None or recipe.adapts:
          raise InputError("again: found no weights learned in this session, expected some to start from")
        recipe = dataclasses.replace(recipe, model_path=str(work.adopted.run))
      if work.learning is not None:
        work.learning.close()
      work.runs += 1
      work.learning = Learning(session, recipe, steps, work.runs)

  def learning(self, session: Session) -> Learning:
    """Returns the last training run of a session.

    Raises:
      UnknownError: there was none.
    """
    learning = self._work_of(session).learning
    if learning is None:
      raise UnknownError("learning: no training run was started in this session")
    return learning

  def as_json(self, session: Session, since: int = 0) -> dict[str, Any]:
    """Returns the state of a session for the page, with its rate and its training run."""
    work, state = self._work_of(session), session.as_json(since)
    rate = self.answering.rate(session)
    left = state["progress"]["total"] - state["progress"]["answered"]
    state["progress"] |= {"rate": round(rate, 3), "seconds": round(left / rate, 1) if rate else None}
    state["learning"] = None if work.learning is None else work.learning.as_json()
    state["learned"], state["plain"] = work.learned is not None, self._load_plain is not None
    state["ready"] = self._network.engine.started.done()
    measured = (state["learning"] or {}).get("step_seconds")
    state["step_seconds"] = measured or self._step_seconds(session, rate)
    return state

  def _step_seconds(self, session: Session, rate: float) -> float | None:
    """Returns about how long a training step will take, from the rate of answers; None if that is unknown."""
    examples = session.chosen()
    if not rate or (session.needs_examples and not examples):
      return None
    tile = self._network.engine.predictor.tile_size
    try:
      options = session.options(self._network.options, tile)
    except UnknownError:  # an example was taken back at this moment
      return None
    passes = count_canvases(options, tile, len(examples), tile)
    return round(_TRAINING_COST * _BATCH / (rate * passes), 3)


def load_learned(learning: Learning) -> Network:
  """Returns the network that a training run has learned, loading in its own thread."""
  path, run = learning.recipe.model_path, str(learning.run)
  options = trained_options(run)
  if learning.recipe.adapts:
    return Network(Engine(lambda: Predictor.from_checkpoint(path, adapter=run), options=options), options)
  return Network(Engine(lambda: Predictor.from_checkpoint(run), options=options), options)
