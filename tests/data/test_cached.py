"""The cache: samples are decoded once, memory stays within the limit, and cached samples cannot change."""

import pickle
import threading

import numpy as np
import pytest

from seggpt_jax.data.sources import CachedSource, Source

SIZE = 10 * 10 * 4


class Counting:
  """A source whose sample i is filled with i, and which counts its reads."""

  num_classes = 3

  def __init__(self):
    self.reads = []

  def __len__(self):
    return 20

  def __getitem__(self, index):
    self.reads.append(index)
    return {
      "image": np.full((10, 10, 3), index, np.uint8),
      "label": np.full((10, 10), index % 3, np.uint8),
      "name": str(index),
    }

  def name(self, index):
    return str(index)

  def label(self, index):
    return self[index]["label"]

  def classes(self, index):
    return None

  def label_stamp(self, index):
    return ""

  def field(self, index, key):
    return key


def test_recent_samples_are_kept_within_the_limit():
  source = Counting()
  cached = CachedSource(source, 3 * SIZE)
  assert isinstance(cached, Source)
  for index in (0, 1, 2, 0, 3, 0, 1):
    assert (cached[index]["image"] == index).all()
  # Sample 0 was used again before sample 3 was read, so sample 1 was dropped.
  assert source.reads == [0, 1, 2, 3, 1]


def test_a_sample_larger_than_the_cache_is_read_each_time():
  source = Counting()
  cached = CachedSource(source, SIZE - 1)
  assert cached[4]["name"] == cached[4]["name"] == "4" and source.reads == [4, 4]


def test_cached_samples_cannot_be_changed():
  cached = CachedSource(Counting(), 3 * SIZE)
  with pytest.raises(ValueError, match="read-only"):
    cached[0]["image"][:] = 7


def test_threads_and_processes_may_share_it():
  cached = CachedSource(Counting(), 5 * SIZE)
  wrong = []

  def read(seed):
    for index in np.random.default_rng(seed).integers(20, size=500):
      if (cached[int(index)]["image"] != index).any():
        wrong.append(index)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  copy = pickle.loads(pickle.dumps(cached))
  assert copy[3]["name"] == "3" and len(copy) == 20
