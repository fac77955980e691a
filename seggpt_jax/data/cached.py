"""A source that keeps decoded samples in memory, up to a number of bytes. The least recently used are dropped first."""

from __future__ import annotations

import collections
import threading

from seggpt_jax.data.sources import Sample, Source, WrappedSource


class CachedSource(WrappedSource):
  """Keeps decoded samples of another source. Implements `Source`; several threads may read it.

  Args:
    source: the samples.
    limit: largest number of bytes of images and labels to keep, in each process that reads.
  """

  def __init__(self, source: Source, limit: int):
    super().__init__(source)
    self._limit = limit
    self._start_empty()

  def _start_empty(self) -> None:
    self._samples: collections.OrderedDict[int, Sample] = collections.OrderedDict()
    self._held, self._lock = 0, threading.Lock()

  def __getitem__(self, index: int) -> Sample:
    with self._lock:
      if index in self._samples:
        self._samples.move_to_end(index)
        return self._samples[index]
    sample = self._source[index]
    # Read-only, because later readers get the same arrays.
    for array in (sample["image"], sample["label"]):
      array.flags.writeable = False
    with self._lock:
      if index not in self._samples:
        self._samples[index] = sample
        self._held += _size(sample)
      while self._held > self._limit:
        self._held -= _size(self._samples.popitem(last=False)[1])
    return sample

  def __getstate__(self) -> dict:
    """Returns the state for a worker process, which starts with an empty cache."""
    return {"_source": self._source, "_limit": self._limit}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._start_empty()


def _size(sample: Sample) -> int:
  return sample["image"].nbytes + sample["label"].nbytes
