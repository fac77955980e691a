"""One predictor that many callers share: images with prompts in, a future of each prediction out.

The predictor lives in one thread. Images of several callers that have the same options and as many prompts go through
the network in one batch. Nothing here knows about HTTP.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.limits import BusyError, count_canvases
from seggpt_jax.app.prompt_sets import PromptSet
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import PreparedPrompt


class NotReadyError(RuntimeError):
  """The engine is still loading, could not load, or is closed."""


@dataclasses.dataclass
class Counts:
  """Totals since the start, written by the engine's thread."""

  images: int = 0  # images that were segmented
  batches: int = 0  # groups of images that were handed to the predictor together
  shared: int = 0  # images that were in a group with others
  errors: int = 0  # images that could not be segmented
  abandoned: int = 0  # images whose callers stopped waiting before their turn
  seconds: float = 0.0  # time that the predictor worked


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
  """An image that waits for the network."""

  image: np.ndarray
  prompts: PromptSet
  options: InferenceOptions
  canvases: int
  future: Future[Prediction]

  def fits(self, other: _Job) -> bool:
    """Returns whether two jobs can go through the network in one batch."""
    return self.options == other.options and len(self.prompts) == len(other.prompts)


class Engine:
  """Loads a predictor in a thread of its own and segments images there.

  Examples:
    >>> engine = Engine(lambda: predictor)
    >>> images, prompt = [np.asarray(Image.open("query.jpg"))], engine.started.result().prepare_prompt(*prompts[0])
    >>> (future,) = engine.submit(images, PromptSet([prompt]), InferenceOptions())
    >>> future.result().labels.shape
    (64, 64)
    >>> engine.close()

  Args:
    load: function that returns the predictor; called in the engine's thread.
    options: options that most images will have; programs for them are compiled before the engine is ready.
    warm_prompts: numbers of prompts that programs are compiled for.
    queue: images that may wait.
    gather_seconds: how long an image waits for others to fill its batch.

  Attributes:
    started: future of the predictor. It holds the error if loading failed.
    counts: totals since the start.
  """

  def __init__(
    self,
    load: Callable[[], Predictor],
    *,
    options: InferenceOptions | None = None,
    warm_prompts: Sequence[int] = (),
    queue: int = 64,
    gather_seconds: float | int = 0.004,
  ):
    self._load, self._options, self._warm_prompts = load, options or InferenceOptions(), tuple(warm_prompts)
    self._capacity, self._gather_seconds = queue, gather_seconds
    self._waiting: collections.deque[_Job] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self.started: Future[Predictor] = Future()
    self.counts = Counts()
    self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
    self._thread.start()

  @property
  def queue_length(self) -> int:
    """Number of images that wait."""
    return len(self._waiting)

  @property
  def state(self) -> str:
    """One of "loading", "ready", "failed" and "closed"."""
    if self._closed:
      return "closed"
    if not self.started.done():
      return "loading"
    return "ready" if self.started.exception() is None else "failed"

  @property
  def predictor(self) -> Predictor:
    """The predictor.

    Raises:
      NotReadyError: it is not loaded.
    """
    if not self.started.done():
      raise NotReadyError("the network is loading")
    if self.started.exception() is not None:
      raise NotReadyError("the network could not be loaded")
    return self.started.result()

  def submit(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], prompts: PromptSet, options: InferenceOptions
  ) -> list[Future[Prediction]]:
    """Queues images, all of them or none.

    Args:
      images: the images.
      prompts: their prompts; none with a learned prompt.
      options: how the network is shown an image.

    Returns:
      The future of each prediction. Cancel it to give up an image whose turn has not come.

    Raises:
      BusyError: too many images wait already.
      NotReadyError: the engine is still loading, or is closed.
      InputError: there are no prompts, and the predictor has no learned one.
    """
    predictor = self.predictor
    if not len(prompts) and predictor.needs_prompts:
      raise InputError("prompts: found none, expected the name of a stored set, or images with their label maps")
    jobs = [
      _Job(
        image, prompts, options, count_canvases(options, image.shape[:2], len(prompts), predictor.tile_size), Future()
      )
      for image in images
    ]
    with self._changed:
      self.check_room(len(jobs))
      self._waiting.extend(jobs)
      self._changed.notify()
    return [job.future for job in jobs]

  def check_room(self, count: int = 1) -> None:
    """Raises the error that `submit` would raise for a number of images at this moment.

    Raises:
      BusyError: too many images wait already.
      NotReadyError: the engine is still loading, or is closed.
    """
    if self._closed:
      raise NotReadyError("the service is shutting down")
    if self.predictor and len(self._waiting) + count > self._capacity:
      raise BusyError(f"the service is busy: {len(self._waiting)} images wait for the network")

  def close(self) -> None:
    """Takes no more images, waits for the images already taken, and ends the thread."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _work(self) -> None:
    """Loads, and segments until the engine is closed and no image waits."""
    try:
      predictor = self._load()
      self._warm_up(predictor)
    except Exception as error:
      self.started.set_exception(error)
      return
    self.started.set_result(predictor)
    while jobs := self._next_batch(predictor.max_canvases):
      began = time.perf_counter()
      self._segment(predictor, jobs)
      self.counts.seconds += time.perf_counter() - began

  def _warm_up(self, predictor: Predictor) -> None:
    """Compiles the programs of every size of batch, for the options and numbers of prompts that are expected."""
    image = np.zeros((*predictor.tile_size, 3), np.uint8)
    prompt = PreparedPrompt(image, np.eye(*predictor.tile_size, dtype=np.uint8))
    for count in self._warm_prompts if predictor.needs_prompts else (0,):
      prompts, images = [prompt] * count, 1
      canvases = count_canvases(self._options, predictor.tile_size, count, predictor.tile_size)
      while not self._closed and (images == 1 or images * canvases <= predictor.max_canvases):
        collections.deque(predictor.predict_many([(image, prompts)] * images, self._options), maxlen=0)
        images *= 2

  def _next_batch(self, max_canvases: int) -> list[_Job]:
    """Waits for images and returns the images that fit the first one, up to a batch; none once the engine is closed."""
    with self._changed:
      self._changed.wait_for(lambda: self._waiting or self._closed)
      if not self._waiting:
        return []
      first = self._waiting[0]
      self._changed.wait_for(
        lambda: self._closed or sum(job.canvases for job in self._waiting if job.fits(first)) >= max_canvases,
        self._gather_seconds,
      )
      taken, kept, canvases = [], [], 0
      for job in self._waiting:
        fits = job is first or (job.fits(first) and canvases + job.canvases <= max_canvases)
        canvases += job.canvases * fits
        (taken if fits else kept).append(job)
      self._waiting = collections.deque(kept)
      return taken

  def _segment(self, predictor: Predictor, jobs: Sequence[_Job]) -> None:
    """Segments the images that somebody still waits for, and counts them."""
    wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
    self.counts.abandoned += len(jobs) - len(wanted)
    if wanted:
      self.counts.batches += 1
      self.counts.shared += len(wanted) if len(wanted) > 1 else 0
      self._predict(predictor, wanted)

  def _predict(self, predictor: Predictor, jobs: Sequence[_Job]) -> None:
    """Segments images together. If that fails, each is tried alone, so that an error stays with its caller."""
    options = jobs[0].options
    try:
      queries = [(job.image, job.prompts.for_options(predictor, options)) for job in jobs]
      for job, prediction in zip(jobs, predictor.predict_many(queries, options), strict=True):
        self.counts.images += 1
        job.future.set_result(prediction)
    except Exception as error:
      for job in [job for job in jobs if not job.future.done()]:
        if len(jobs) > 1:
          self._predict(predictor, [job])
        else:
          self.counts.errors += 1
          job.future.set_exception(error)
