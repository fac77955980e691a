"""The grain dataset: shard, shuffle, pair, transform, batch, prefetch. Sources in, batches of uint8 out.

Samples and randomness of the i-th pair depend on (seed, i) alone; threads and worker processes change nothing. The
training iterator's position can be saved and set, so that a run goes on in the middle of an epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

import grain
import numpy as np

from seggpt_jax.data.pairing import Draw, Pairing
from seggpt_jax.data.sources import Sample, Source
from seggpt_jax.data.transforms import EvaluationPair, Pair, TrainingPair, ask
from seggpt_jax.data.worker import follow_parent
from seggpt_jax.errors import InputError

# Grain's filter writes a paragraph of its own into the message of an error.
grain.config.update("py_traceback_filtering", "off")

# As good as endless; grain's own endless repetition overflows with a batch size of 1.
_ENDLESS = 2**40
# Pairs drawn in place of one with a bad file, before it is thought that something else is wrong.
_TRIES = 8

BadFiles = Literal["error", "skip"]
BAD_FILES = ("error", "skip")


class Batch(TypedDict):
  """The canvases of B pairs, those of one pair in a row. What the device gets:

  `images` uint8 [B*K, 2S, S, 3], `labels` uint8 [B*K, 2S, S], `palette` uint8 [B*K, N, 3], `patch_mask` bool
  [B*K, rows, cols], and `valid` bool [B*K]: False for what only fills up the last batch.

  What stays on the host: `samples` int32 [B*K, 2], the prompt and the query of each canvas, and `bad` int32 [B, 8], the
  samples whose files could not be read and were passed over, -1 for none; both are -1 for pairs that have no files.
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray
  valid: np.ndarray
  samples: np.ndarray
  bad: np.ndarray


DEVICE_KEYS = ("images", "labels", "palette", "patch_mask", "valid")


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


class _BadSampleError(Exception):
  """A sample's file is bad."""

  def __init__(self, index: int, error: InputError):
    super().__init__(str(error))
    self.index, self.error = index, error


def _read(source: Source, draw: Draw) -> tuple[list[Sample], Sample]:
  """Prompts and query, with what is not asked for taken out of their labels.

  Raises:
    _BadSampleError: a file is bad.
  """
  samples = []
  for index in (*draw.prompts, draw.query):
    try:
      samples.append(ask(source[index], draw.asked))
    except InputError as error:
      raise _BadSampleError(index, error) from error
  *prompts, query = samples
  if draw.negative and draw.asked is None:
    query = ask(query, 0)
  return prompts, query


def _read_or_skip(
  source: Source, pairing: Pairing, bad_files: BadFiles, index: int, generator: np.random.Generator
) -> tuple[list[Sample], Sample, dict[str, np.ndarray]]:
  """Prompts, query, and what a batch tells the host about them.

  With "skip", another pair is drawn at random in place of one with a bad file.

  Raises:
    InputError: a file is bad and not to be skipped, or all tries met bad files.
  """
  bad = np.full(_TRIES, -1, np.int32)
  for attempt in range(_TRIES):
    draw = pairing(index, generator)
    try:
      prompts, query = _read(source, draw)
    except _BadSampleError as found:
      bad[attempt] = found.index
      if bad_files == "error":
        raise found.error from found
      if attempt == _TRIES - 1:
        raise InputError(f"{found.error} ({_TRIES} bad samples in a row, expected most of them to be good)") from found
      index = int(generator.integers(len(source)))
      continue
    samples = np.array([(prompt, draw.query) for prompt in draw.prompts], np.int32)
    return prompts, query, {"samples": samples, "bad": bad[None]}
  raise AssertionError("every attempt ends in a pair or an error")


@dataclasses.dataclass(frozen=True)
class SourceTrainingPairs:
  """Pairs of a source's samples; each sample is the query once an epoch, unless the pairing is balanced.

  Attributes:
    source: the samples.
    pairing: draws their prompts.
    transform: varies and stacks them.
    bad_files: "error" stops at a bad file, "skip" draws another pair in its place, which the batch tells.
  """

  source: Source
  pairing: Pairing
  transform: TrainingPair
  bad_files: BadFiles = "error"

  @property
  def epoch(self) -> int:
    return len(self.source)

  def __call__(self, index: int, generator: np.random.Generator) -> Pair:
    prompts, query, told = _read_or_skip(self.source, self.pairing, self.bad_files, index, generator)
    return {**self.transform(prompts, query, generator), **told}


@dataclasses.dataclass(frozen=True)
class SourceEvaluationPairs:
  """Sample i as the query, with prompts drawn by a generator seeded by i. Attributes as in `SourceTrainingPairs`."""

  source: Source
  pairing: Pairing
  transform: EvaluationPair
  bad_files: BadFiles = "error"

  def __len__(self) -> int:
    return len(self.source)

  def __call__(self, index: int) -> Pair:
    generator = np.random.default_rng(index)
    prompts, query, told = _read_or_skip(self.source, self.pairing, self.bad_files, index, generator)
    return {**self.transform(prompts, query), **told}


def _complete(pair: Pair, valid: bool = True) -> Pair:
  """Adds what a batch has beyond the pair."""
  count = len(pair["images"])
  unknown = {"samples": np.full((count, 2), -1, np.int32), "bad": np.full((1, _TRIES), -1, np.int32)}
  return {**unknown, **pair, "valid": np.full(count, valid)}


def _concatenate(pairs: Sequence[Pair]) -> Batch:
  return {key: np.concatenate([pair[key] for pair in pairs]) for key in pairs[0]}


def training_batches(
  pairs: TrainingPairs,
  *,
  batch_size: int,
  seed: int,
  num_threads: int,
  num_workers: int,
  process_index: int = 0,
  process_count: int = 1,
  start: int = 0,
) -> Iterator[Batch]:
  """Endless batches of training pairs; the i-th is the same whatever reads it.

  Args:
    pairs: makes the i-th pair; where it has epochs, each of them goes through all its pairs in an order of its own.
    batch_size: pairs in a batch of this process.
    seed: of order, pairing and augmentation.
    num_threads: threads reading and transforming ahead in each process.
    num_workers: worker processes; 0 reads in this one, which is best for small images and few cores.
    process_index: which share of the pairs this process reads.
    process_count: number of shares.
    start: batches that are left out, as they were taken before.

  Returns:
    An iterator.
  """
  if pairs.epoch is None:
    order = grain.MapDataset.range(_ENDLESS).seed(seed)
  else:
    order = grain.MapDataset.range(pairs.epoch).seed(seed).shuffle().repeat(_ENDLESS // pairs.epoch)
  dataset = order.random_map(pairs).map(_complete)
  # Batched by index, before threads and workers divide the work: each of them makes whole batches, so that it does not
  # matter how many there are.
  batches = dataset.batch(batch_size, batch_fn=_concatenate)
  # Each process takes consecutive pairs of a step, so that all together are in the same order whatever their number.
  batches = batches[start * process_count + process_index :: process_count]
  iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
  if num_workers:
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=follow_parent)
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
    yield _concatenate(
      [
        _complete(pairs(int(chosen[min(slot, count - 1)])), valid=bool(slot < count))
        for slot in slots[start : start + batch_size]
      ]
    )
