"""Answers the images of all sessions, one session after the other, in one thread.

In: sessions that have examples. Out: the answers, each stored in its session when it is ready.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from absl import logging

from seggpt_jax.app.engine import Engine, NotReadyError
from seggpt_jax.app.limits import BusyError
from seggpt_jax.app.prompt_sets import PromptSet
from seggpt_jax.app.sessions import Session
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.prompts import load_prompt

_IN_FLIGHT = 8  # images of all sessions that wait for the network: enough for its batches, and few to give up
_TICK = 0.25  # seconds between two looks for work when nothing has called


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network in its thread.

  Attributes:
    engine: owns the predictor.
    options: options that fit the network.
  """

  engine: Engine
  options: InferenceOptions


class Rate:
  """Measures how many images a second are answered, over the last few."""

  def __init__(self, last: int = 24):
    self._times: collections.deque[float] = collections.deque(maxlen=last)

  def add(self) -> None:
    """Notes that an image was answered. A pause starts the measurement over."""
    now = time.monotonic()
    if self._times and now - self._times[-1] > 15:
      self._times.clear()
    self._times.append(now)

  def per_second(self) -> float:
    """Returns the rate, or 0 while it is unknown."""
    if len(self._times) < 2 or self._times[-1] == self._times[0]:
      return 0.0
    return (len(self._times) - 1) / (self._times[-1] - self._times[0])


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
  session: Session
  key: str
  round: int
  future: Future[Prediction]


class Answering:
  """Sends images to the networks of their sessions and stores what comes back.

  Args:
    sessions: function that returns the open sessions.
    network_of: function that returns the network that answers a session; it may raise `NotReadyError`.
  """

  def __init__(self, sessions: Callable[[], Iterable[Session]], network_of: Callable[[Session], Network]):
    self._sessions, self._network_of = sessions, network_of
    self._flying: list[_Request] = []
    self._prompts: dict[str, tuple[int, PromptSet]] = {}  # by folder of the session: the round, and its prompts
    self._rates: dict[str, Rate] = collections.defaultdict(Rate)
    self._called, self._closed = threading.Event(), False
    self._thread = threading.Thread(target=self._work, name="answering", daemon=True)
    self._thread.start()

  def call(self) -> None:
    """Says that there may be work."""
    self._called.set()

  def rate(self, session: Session) -> float:
    """Returns how many images of a session were answered per second lately; 0 if unknown."""
    return self._rates[str(session.folder)].per_second()

  def close(self) -> None:
    """Gives up what waits and ends the thread."""
    self._closed = True
    self._called.set()
    self._thread.join()

  def _work(self) -> None:
    while not self._closed:
      self._called.wait(_TICK)
      self._called.clear()
      self._collect()
      # One image of each session in turn, so that a large one does not hold up the others.
      while not self._closed and self._send_round():
        self._collect()
    for request in self._flying:
      request.future.cancel()

  def _send_round(self) -> bool:
    """Sends one more image of each session; returns whether any was sent."""
    sent = False
    open_sessions = list(self._sessions())
    for gone in self._prompts.keys() - {str(each.folder) for each in open_sessions}:
      del self._prompts[gone]
      self._rates.pop(gone, None)
    for session in open_sessions:
      if len(self._flying) < _IN_FLIGHT:
        sent |= self._send(session)
    return sent

  def _send(self, session: Session) -> bool:
    flying = {request.key for request in self._flying if request.session is session and request.round == session.round}
    key = next((key for key in session.waiting() if key not in flying), None)
    if key is None:
      return False
    round_ = session.round
    try:
      network = self._network_of(session)
      options = session.options(network.options, network.engine.predictor.tile_size)
      (future,) = network.engine.submit([session.pixels(key)], self._prompts_of(session, round_), options)
    except (BusyError, NotReadyError):
      return False  # tried again at the next tick
    except (InputError, LookupError, OSError) as error:
      session.put_error(key, round_, str(error))
      return True
    self._flying.append(_Request(session, key, round_, future))
    future.add_done_callback(lambda _: self._called.set())
    return True

  def _prompts_of(self, session: Session, round_: int) -> PromptSet:
    name = str(session.folder)
    if name not in self._prompts or self._prompts[name][0] != round_:
      pairs = [(session.pixels(key), session.label(key)) for key in session.chosen()]
      self._prompts[name] = round_, PromptSet([load_prompt(pair, f"example {i + 1}") for i, pair in enumerate(pairs)])
    return self._prompts[name][1]

  def _collect(self) -> None:
    """Stores the answers that are there, and gives up those that nobody wants any more."""
    for request in list(self._flying):
      if not request.future.done():
        if request.round != request.session.round:
          request.future.cancel()
        continue
      self._flying.remove(request)
      if request.future.cancelled():
        continue
      with contextlib.suppress(OSError):  # the session has ended, and its folder is gone
        self._store(request)

  def _store(self, request: _Request) -> None:
    try:
      request.session.put_answer(request.key, request.round, request.future.result())
      self._rates[str(request.session.folder)].add()
    except InputError as error:
      request.session.put_error(request.key, request.round, str(error))
    except OSError:
      raise
    except Exception as error:
      logging.exception("an image could not be answered")
      request.session.put_error(request.key, request.round, f"the network failed: {type(error).__name__}")
