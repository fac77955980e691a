"""Batches on their way to the devices: the next one is put there while the step before it runs."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax import Array

from seggpt_jax.data.pipeline import DEVICE_KEYS, Batch
from seggpt_jax.errors import InputError

DeviceBatch = Mapping[str, Array]


class Feed:
  """Takes batches from a pipeline and puts them on the devices ahead of time.

  Copies to a device are asynchronous, so `prepare` right after a step was dispatched costs the device nothing, and
  after a pause for numbers or pictures the next step can begin at once.

  Args:
    batches: the pipeline.
    put: places the arrays of a batch on the devices.
  """

  def __init__(self, batches: Iterator[Batch], put: Callable[[Mapping[str, Any]], DeviceBatch]):
    self._batches, self._put = batches, put
    self._ready: collections.deque[tuple[DeviceBatch, Batch]] = collections.deque()
    self._error: InputError | None = None
    self._waited, self._since = 0.0, time.perf_counter()

  def prepare(self) -> None:
    """Reads the next batch and starts its copy to the devices; what goes wrong with it is for `take` to tell."""
    started = time.perf_counter()
    try:
      batch = next(self._batches)
    except InputError as error:
      # The step before it has not been recorded yet.
      self._error = error
      return
    finally:
      self._waited += time.perf_counter() - started
    placed = self._put({key: batch[key] for key in DEVICE_KEYS})
    self._ready.append((placed, batch))

  def take(self) -> tuple[DeviceBatch, Batch]:
    """The next batch, on the devices and on the host.

    Raises:
      InputError: one of its files is bad.
    """
    if not self._ready and self._error is None:
      self.prepare()
    if not self._ready:
      raise self._error
    return self._ready.popleft()

  def waited(self) -> float:
    """The share of the time since the last call, 0..1, that the host stood waiting for batches.

    A device may have been at work meanwhile: only when the share nears 1 is it kept waiting too.
    """
    now = time.perf_counter()
    share = self._waited / max(now - self._since, 1e-9)
    self._waited, self._since = 0.0, now
    return share
