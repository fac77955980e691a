"""Answers the images of a session in one thread.

In: a session that has examples, or whose network has learned a prompt. Out: the answers, each stored in the session
when it is ready.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.engine import Engine, NotReadyError
from seggpt_jax.app.http import log_failure
from seggpt_jax.app.limits import BusyError
from seggpt_jax.app.pictures import LABEL_MAPS, UnknownError
from seggpt_jax.app.prompt_sets import PromptSet
from seggpt_jax.app.sessions import Session
from seggpt_jax.compilation import default_device
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import PreparedPrompt, load_prompt
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.retrieval.features import Encoder
from seggpt_jax.retrieval.prompt_index import TAP, PromptIndex

Scores = Callable[[UInt8[np.ndarray, "_ _ 3"]], dict[str, float]]  # scores of the examples for an image, by their keys
_IN_FLIGHT = 8  # images that wait for the network: enough for its batches, and few to give up
_KEPT = 32  # examples of a round, and choices of them, that stay in memory
_TICK = 0.25  # seconds between two looks for work when nothing has called


class Similarity:
  """Compares images with the encoder of a network, which is compiled in a thread of its own.

  Args:
    predictor: the network.
  """

  def __init__(self, predictor: Predictor):
    self._predictor, self._thread = predictor, ThreadPoolExecutor(1, "similarity")
    self._thread.submit(lambda: self._encoder)

  @functools.cached_property
  def _encoder(self) -> Encoder:
    # One image at a time, as the first answer must not wait for a batch.
    encoder = Encoder(self._predictor.model, min(TAP, len(self._predictor.config.feature_taps)), batch_size=1)
    encoder(np.zeros((1, *encoder.size, 3), np.uint8))
    return encoder

  def compare_with(self, examples: Mapping[str, PromptFiles], cache: Path) -> Future[Scores]:
    """Returns the future of a function that scores examples for an image. Only new examples are encoded.

    Args:
      examples: image and label files of the examples, by their keys.
      cache: folder in which the features of examples are kept.
    """

    def build() -> Scores:
      index = PromptIndex.build(self._encoder, list(examples.values()), LABEL_MAPS, cache=cache, progress=False)
      return lambda image: dict(zip(examples, next(index.score_many([image])).tolist(), strict=True))

    return self._thread.submit(build)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network in its thread."""

  engine: Engine  # owns the predictor
  options: InferenceOptions  # options that fit the network

  @functools.cached_property
  def similarity(self) -> Similarity:
    """The comparison of images, for the choice of examples; it is compiled when it is first wanted."""
    return Similarity(self.engine.predictor)


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


class _Request(NamedTuple):
  key: str
  round: int
  used: tuple[str, ...]
  future: Future[Prediction]


class _Examples:
  """The examples of one round, from which each image gets its own; `call` is called when they can be compared."""

  def __init__(self, session: Session, network: Network, options: InferenceOptions, call: Callable[[], None]):
    self.round, self._session = session.round, session
    self._predictor, self._options = network.engine.predictor, options
    self._same, self._scores = tuple(session.chosen()), None
    if session.chooses_alike:
      self._scores = network.similarity.compare_with(session.candidates(), session.scratch / "features")
      self._scores.add_done_callback(lambda _: call())
    self.load = functools.lru_cache(_KEPT)(self._load)
    self.prompts = functools.lru_cache(_KEPT)(self._prompts)

  def keys_for(self, image: UInt8[np.ndarray, "_ _ 3"]) -> tuple[str, ...]:
    """Returns the keys of the examples of an image; raises NotReadyError while the examples are being encoded."""
    if self._scores is None:
      return self._same
    if not self._scores.done():
      raise NotReadyError("the examples are being encoded")
    return tuple(self._session.chosen(self._scores.result()(image)))

  def _load(self, key: str) -> PreparedPrompt:
    prompt = load_prompt((self._session.pixels(key), self._session.label(key)), f"example {key}")
    # Images with other examples share it, at the size of the network, where that gives the same answers bit for bit.
    return PromptSet([prompt]).for_options(self._predictor, self._options)[0]

  def _prompts(self, keys: tuple[str, ...]) -> PromptSet:
    return PromptSet([self.load(key) for key in keys])


class Answering:
  """Sends the images of a session to its network and stores what comes back.

  Args:
    session: the session.
    network: function that returns the network that answers the session at this moment; it may raise `NotReadyError`.

  Attributes:
    rate: how many images are answered in a second.
  """

  def __init__(self, session: Session, network: Callable[[], Network]):
    self._session, self._network, self.rate = session, network, Rate()
    self._flying: list[_Request] = []
    self._examples: _Examples | None = None
    self._called, self._closed = threading.Event(), False
    self._thread = threading.Thread(target=self._work, name="answering", daemon=True)
    self._thread.start()

  def call(self) -> None:
    """Says that there may be work."""
    self._called.set()

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
      while not self._closed and len(self._flying) < _IN_FLIGHT and self._send():
        self._collect()
    for request in self._flying:
      request.future.cancel()

  def _send(self) -> bool:
    """Sends one more image; returns whether there was one."""
    session = self._session
    try:
      network = self._network()
      session.answer_by_examples(network.engine.predictor.needs_prompts)
    except (NotReadyError, LookupError):
      return False  # tried again at the next tick, unless the session has ended
    round_ = session.round
    flying = {request.key for request in self._flying if request.round == round_}
    key = next((key for key in session.waiting() if key not in flying), None)
    if key is None:
      if session.needs_examples and session.settings.choice == "alike" and len(session.examples) > 1 and not flying:
        _ = network.similarity  # compiles before there are so many examples that it is needed
      return False
    if flying and session.chooses_alike and default_device().platform == "cpu":
      return False  # comparing the next image would take the cores that answer this one
    try:
      options = session.options(network.options, network.engine.predictor.tile_size)
      image = session.pixels(key)
      if self._examples is None or self._examples.round != session.round:
        self._examples = _Examples(session, network, options, self.call)
      used = self._examples.keys_for(image)
      (future,) = network.engine.submit([image], self._examples.prompts(used), options)
    except (BusyError, NotReadyError):
      return False
    except Exception as error:
      self._note_failure(key, round_, error)
      return True
    self._flying.append(_Request(key, round_, used, future))
    future.add_done_callback(lambda _: self._called.set())
    return True

  def _collect(self) -> None:
    """Stores the answers that are there, and gives up answers that nobody wants any more."""
    for request in [each for each in self._flying if each.future.done()]:
      self._flying.remove(request)
      if not request.future.cancelled():
        try:
          self._session.put_answer(request.key, request.round, request.future.result(), request.used)
          self.rate.add()
        except OSError:
          pass  # the session has ended, and its folder is gone
        except Exception as error:
          self._note_failure(request.key, request.round, error)
    for request in self._flying:
      if request.round != self._session.round:
        request.future.cancel()

  def _note_failure(self, key: str, round_: int, error: Exception) -> None:
    if not isinstance(error, InputError | UnknownError | OSError):
      log_failure("an image could not be answered", error)
      error = f"the network failed: {type(error).__name__}"
    self._session.put_error(key, round_, str(error))
