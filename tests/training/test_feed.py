"""The device feed: a batch that is copied ahead must reach its own step."""

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from seggpt_jax.data.augment import Augmentation
from seggpt_jax.data.pairing import Pairing, PairingOptions
from seggpt_jax.data.pipeline import DEVICE_KEYS, SourceTrainingPairs, training_batches
from seggpt_jax.data.transforms import TrainingPair
from seggpt_jax.errors import InputError
from seggpt_jax.training.sharding import DeviceFeed


class Numbered:
  """A source whose sample i is filled with the value i; one sample may be bad."""

  num_classes = 2

  def __init__(self, bad=-1):
    self.bad = bad

  def __len__(self):
    return 12

  def __getitem__(self, index):
    if index == self.bad:
      raise InputError(f"{index}.png: cannot be read")
    return {"image": np.full((32, 32, 3), index, np.uint8), "label": self.label(index), "name": str(index)}

  def name(self, index):
    return str(index)

  def label(self, index):
    return np.ones((32, 32), np.uint8)

  def classes(self, index):
    return (1,)

  def label_stamp(self, index):
    return ""

  def field(self, index, key):
    return key


def batches(bad=-1, start=0):
  flags.FLAGS.mark_as_parsed()
  transform = TrainingPair((64, 32), 8, 2, "random", 0.75, 0.0, Augmentation())
  pairs = SourceTrainingPairs(Numbered(bad), Pairing(12, PairingOptions()), transform)
  return training_batches(pairs, batch_size=2, seed=3, num_threads=2, num_workers=0, start=start)


def put(batch):
  """Copies a batch to the devices; a CPU may share the host's memory, so the arrays are compared by value."""
  return {key: jnp.asarray(batch[key]) for key in DEVICE_KEYS}


def taken(feed, count, ahead):
  found = []
  for _ in range(count):
    placed, batch = feed.next_batch()
    found.append(batch["samples"].tolist())
    np.testing.assert_array_equal(placed["images"], batch["images"])
    if ahead:
      feed.prefetch()
  return found


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_come_in_their_order_prepared_or_not(ahead):
  expected = taken(DeviceFeed(batches(), put), 9, ahead=False)
  assert taken(DeviceFeed(batches(), put), 4, ahead) == expected[:4]
  assert taken(DeviceFeed(batches(start=4), put), 5, ahead) == expected[4:]


def test_a_bad_batch_ahead_is_told_when_it_is_its_turn():
  """The step before it has yet to be recorded."""
  feed = DeviceFeed(batches(bad=7), put)
  count = 0
  with pytest.raises(InputError, match=r"7.png: cannot be read"):
    for _ in range(7):
      feed.next_batch()
      count += 1
      feed.prefetch()
  good = DeviceFeed(batches(), put)
  assert count == next(i for i, samples in enumerate(taken(good, 7, ahead=False)) if 7 in np.array(samples))
