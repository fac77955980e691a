"""Copies batches to the devices ahead of time: the next batch is copied while a step runs."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax import Array

from seggpt_jax.data.pipeline import DEVICE_KEYS, Batch
from seggpt_jax.errors import InputError

DeviceBatch = Mapping[str, Array]


class DeviceFeed:
  """Takes batches from a pipeline and puts them on the devices ahead of time.

  Copies to a device are asynchronous, so `prefetch` right after a step was dispatched costs the device nothing. After
  a pause for numbers or pictures the next step can begin at once.

  Args:
    batches: batches of the pipeline.
    put: copies the arrays of a batch to the devices.
  """

  def __init__(self, batches: Iterator[Batch], put: Callable[[Mapping[str, Any]], DeviceBatch]):
    self._batches, self._put = batches, put
    self._ready: collections.deque[tuple[DeviceBatch, Batch]] = collections.deque()
    self._error: InputError | None = None
    self._waited, self._since = 0.0, time.perf_counter()

  def prefetch(self) -> None:
    """Reads the next batch and starts copying it; an error in it is kept until `next_batch`."""
    started = time.perf_counter()
    try:
      batch = next(self._batches)
    except InputError as error:
      # The current step has yet to be recorded and saved, so the error has to wait.
      self._error = error
      return
    finally:
      self._waited += time.perf_counter() - started
    placed = self._put({key: batch[key] for key in DEVICE_KEYS})
    self._ready.append((placed, batch))

  def next_batch(self) -> tuple[DeviceBatch, Batch]:
    """Returns the next batch, on the devices and on the host.

    Raises:
      InputError: one of its files is bad.
    """
    if not self._ready and self._error is None:
      self.prefetch()
    if not self._ready:
      raise self._error
    return self._ready.popleft()

  def wait_share(self) -> float:
    """Returns the share of the time since the last call, 0..1, that the host has waited for batches.

    A device may have been busy meanwhile. It is kept waiting too only when the share comes close to 1.
    """
    now = time.perf_counter()
    share = self._waited / max(now - self._since, 1e-9)
    self._waited, self._since = 0.0, now
    return share
