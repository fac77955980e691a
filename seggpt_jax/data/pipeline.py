"""The grain dataset: shard, shuffle, pair, transform, batch, prefetch. Sources in, batches of uint8 out.

Sample and randomness of the i-th pair depend on (seed, i) alone; threads and worker processes change nothing. The
training iterator's position can be saved and set, so that a run goes on in the middle of an epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypedDict

import grain
import numpy as np

from seggpt_jax.data.pairing import random_prompt
from seggpt_jax.data.sources import Source
from seggpt_jax.data.transforms import EvaluationPair, Pair, TrainingPair
from seggpt_jax.errors import InputError


class Batch(TypedDict):
  """Stacked `Pair`s. `images` uint8 [B, 2S, S, 3], `labels` uint8 [B, 2S, S], `palette` uint8 [B, N, 3],
  `patch_mask` bool [B, rows, cols], and `valid` bool [B]: False for what only fills up the last batch.
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray
  valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class _PairUp:
  """Index of the query and a generator -> training pair."""

  source: Source
  transform: TrainingPair

  def __call__(self, query: int, generator: np.random.Generator) -> Pair:
    prompt = random_prompt(generator, query, len(self.source))
    return self.transform(self.source[prompt], self.source[query], generator)


def check_size(source: Source, what: str) -> None:
  """Raises InputError, naming what it is about, unless there are samples enough to pair."""
  if len(source) < 2:
    raise InputError(f"{what}: found {len(source)} labelled images, expected at least 2 to make a pair")


def training_batches(
  source: Source,
  transform: TrainingPair,
  *,
  batch_size: int,
  seed: int,
  num_threads: int,
  num_workers: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
  """Endless batches of training pairs; each epoch shows every sample once as a query, with a random prompt.

  Args:
    source: labelled images.
    transform: makes a pair of two samples.
    batch_size: pairs in a batch of this process.
    seed: of order, pairing and augmentation.
    num_threads: threads reading and transforming ahead in each process.
    num_workers: worker processes; 0 reads in this one, which is best for small images and few cores.
    process_index: which share of the pairs this process reads.
    process_count: number of shares.

  Returns:
    An iterator with `get_state` and `set_state`.

  Raises:
    InputError: fewer than two samples.
  """
  check_size(source, "training data")
  # As good as endless; grain's own endless repetition overflows with a batch size of 1.
  epochs = 2**40 // len(source)
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
  pairs = order.random_map(_PairUp(source, transform))
  pairs = pairs.map(lambda pair: {**pair, "valid": np.True_})
  # Batched by index, before threads and workers divide the work: each of them makes whole batches, so that it does not
  # matter how many there are.
  batches = pairs[process_index::process_count].batch(batch_size)
  dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
  if num_workers:
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
  return iter(dataset)


def evaluation_batches(
  source: Source,
  transform: EvaluationPair,
  *,
  batch_size: int,
  num_pairs: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """The same pairs every time: query i with a prompt drawn from a generator seeded by i.

  Args:
    source: labelled images.
    transform: makes a pair of two samples.
    batch_size: pairs in a batch of this process; the last one is filled up with pairs that are not `valid`.
    num_pairs: how many queries, spread evenly over the source; -1 takes all.
    process_index: which share of the pairs this process reads.
    process_count: number of shares; all shares give the same number of batches.

  Yields:
    Batches.

  Raises:
    InputError: fewer than two samples.
  """
  check_size(source, "validation data")
  count = len(source) if num_pairs < 0 else min(num_pairs, len(source))
  queries = np.linspace(0, len(source), count, endpoint=False).astype(int)
  global_batch = batch_size * process_count
  slots = np.arange(-(-count // global_batch) * global_batch)
  for start in range(process_index * batch_size, len(slots), global_batch):
    pairs = []
    for slot in slots[start : start + batch_size]:
      query = int(queries[min(slot, count - 1)])
      prompt = random_prompt(np.random.default_rng(query), query, len(source))
      pairs.append({**transform(source[prompt], source[query]), "valid": np.bool_(slot < count)})
    yield {key: np.stack([pair[key] for pair in pairs]) for key in pairs[0]}
