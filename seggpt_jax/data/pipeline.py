"""The grain dataset: shard, shuffle, pair, transform, batch, prefetch. Sources in, batches of uint8 out.

Sample and randomness of the i-th pair depend on (seed, i) alone; threads and worker processes change nothing. The
training iterator's position can be saved and set, so that a run goes on in the middle of an epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol, TypedDict, runtime_checkable

import grain
import numpy as np

from seggpt_jax.data.pairing import random_prompt
from seggpt_jax.data.sources import Source
from seggpt_jax.data.transforms import EvaluationPair, Pair, TrainingPair
from seggpt_jax.errors import InputError

# As good as endless; grain's own endless repetition overflows with a batch size of 1.
_ENDLESS = 2**40


class Batch(TypedDict):
  """Stacked `Pair`s. `images` uint8 [B, 2S, S, 3], `labels` uint8 [B, 2S, S], `palette` uint8 [B, N, 3],
  `patch_mask` bool [B, rows, cols], and `valid` bool [B]: False for what only fills up the last batch.
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray
  valid: np.ndarray


@runtime_checkable
class TrainingPairs(Protocol):
  """What training pairs are made from.

  Attributes:
    epoch: number of pairs after which they start again in another order; None if they never do.
  """

  epoch: int | None

  def __call__(self, index: int, generator: np.random.Generator) -> Pair: ...


@runtime_checkable
class EvaluationPairs(Protocol):
  """A fixed sequence of pairs."""

  def __len__(self) -> int: ...

  def __call__(self, index: int) -> Pair: ...


@dataclasses.dataclass(frozen=True)
class SourceTrainingPairs:
  """Each sample of a source once an epoch as the query, with a random prompt.

  Raises:
    InputError: fewer than two samples.
  """

  source: Source
  transform: TrainingPair

  def __post_init__(self):
    _check_size(self.source, "training data")

  @property
  def epoch(self) -> int:
    return len(self.source)

  def __call__(self, index: int, generator: np.random.Generator) -> Pair:
    prompt = random_prompt(generator, index, len(self.source))
    return self.transform(self.source[prompt], self.source[index], generator)


@dataclasses.dataclass(frozen=True)
class SourceEvaluationPairs:
  """Sample i as the query, with a prompt drawn from a generator seeded by i.

  Raises:
    InputError: fewer than two samples.
  """

  source: Source
  transform: EvaluationPair

  def __post_init__(self):
    _check_size(self.source, "validation data")

  def __len__(self) -> int:
    return len(self.source)

  def __call__(self, index: int) -> Pair:
    prompt = random_prompt(np.random.default_rng(index), index, len(self.source))
    return self.transform(self.source[prompt], self.source[index])


def _check_size(source: Source, what: str) -> None:
  """Raises InputError, naming what it is about, unless there are samples enough to pair."""
  if len(source) < 2:
    raise InputError(f"{what}: found {len(source)} labelled images, expected at least 2 to make a pair")


def training_batches(
  pairs: TrainingPairs,
  *,
  batch_size: int,
  seed: int,
  num_threads: int,
  num_workers: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
  """Endless batches of training pairs.

  Args:
    pairs: makes the i-th pair; where it has epochs, each of them goes through all its pairs in an order of its own.
    batch_size: pairs in a batch of this process.
    seed: of order, pairing and augmentation.
    num_threads: threads reading and transforming ahead in each process.
    num_workers: worker processes; 0 reads in this one, which is best for small images and few cores.
    process_index: which share of the pairs this process reads.
    process_count: number of shares.

  Returns:
    An iterator with `get_state` and `set_state`.
  """
  if pairs.epoch is None:
    order = grain.MapDataset.range(_ENDLESS).seed(seed)
  else:
    order = grain.MapDataset.range(pairs.epoch).seed(seed).shuffle().repeat(_ENDLESS // pairs.epoch)
  dataset = order.random_map(pairs).map(lambda pair: {**pair, "valid": np.True_})
  # Batched by index, before threads and workers divide the work: each of them makes whole batches, so that it does not
  # matter how many there are.
  batches = dataset[process_index::process_count].batch(batch_size)
  iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
  if num_workers:
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
  return iter(iterable)


def evaluation_batches(
  pairs: EvaluationPairs,
  *,
  batch_size: int,
  num_pairs: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """The same pairs every time.

  Args:
    pairs: makes the i-th pair.
    batch_size: pairs in a batch of this process; the last one is filled up with pairs that are not `valid`.
    num_pairs: how many, spread evenly; -1 takes all.
    process_index: which share of the pairs this process reads.
    process_count: number of shares; all shares give the same number of batches.

  Yields:
    Batches.
  """
  count = len(pairs) if num_pairs < 0 else min(num_pairs, len(pairs))
  chosen = np.linspace(0, len(pairs), count, endpoint=False).astype(int)
  global_batch = batch_size * process_count
  slots = np.arange(-(-count // global_batch) * global_batch)
  for start in range(process_index * batch_size, len(slots), global_batch):
    batch = [
      {**pairs(int(chosen[min(slot, count - 1)])), "valid": np.bool_(slot < count)}
      for slot in slots[start : start + batch_size]
    ]
    yield {key: np.stack([pair[key] for pair in batch]) for key in batch[0]}
