"""The input pipeline: sources in, batches of uint8 out. Grain shards, shuffles, batches and prefetches.

The samples and the random numbers of the i-th pair depend on (seed, i) alone, not on threads or worker processes.
Training can therefore resume in the middle of an epoch: it skips the batches that earlier steps used.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

import grain
import numpy as np

from seggpt_jax.data.pairing import Draw, Pairing
from seggpt_jax.data.sources import Sample, Source
from seggpt_jax.data.transforms import EvaluationPair, Pair, TrainingPair, keep_class
from seggpt_jax.errors import InputError

# Grain's traceback filter adds a paragraph of its own to every error (seen in grain 0.2.18).
grain.config.update("py_traceback_filtering", "off")

# Practically endless. Grain's own endless repetition overflows with a batch size of 1.
_ENDLESS = 2**40
# Pairs to draw until one has only good files. If all of these are bad, something else is wrong.
_TRIES = 8

BadFilePolicy = Literal["error", "skip"]


class Batch(TypedDict):
  """The canvases of B pairs with K prompts each; the canvases of one pair are consecutive.

  The device gets `images` uint8 [B*K, 2S, S, 3], `labels` uint8 [B*K, 2S, S], `palette` uint8 [B*K, N, 3], `patch_mask`
  bool [B*K, rows, cols], and `valid` bool [B*K], which is False for canvases that only fill up the last batch.

  The host keeps `samples` int32 [B*K, 2], the indices of prompt and query of each canvas, and `bad` int32 [B, 8], the
  indices of samples that were skipped because their files cannot be read, -1 for none. Both are -1 for pairs without
  files.
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray
  valid: np.ndarray
  samples: np.ndarray
  bad: np.ndarray


PairingRule = Callable[[int, np.random.Generator], Draw]

DEVICE_KEYS = ("images", "labels", "palette", "patch_mask", "valid")


@runtime_checkable
class TrainingPairs(Protocol):
  """Makes training pairs.

  Attributes:
    epoch: number of pairs in an epoch, after which they repeat in another order; None if they never repeat.
  """

  epoch: int | None

  def __call__(self, index: int, generator: np.random.Generator) -> Pair: ...


@runtime_checkable
class EvaluationPairs(Protocol):
  """A fixed sequence of pairs."""

  def __len__(self) -> int: ...

  def __call__(self, index: int) -> Pair: ...


def _read_or_skip(
  prompt_source: Source,
  source: Source,
  pairing: PairingRule,
  bad_files: BadFilePolicy,
  index: int,
  generator: np.random.Generator,
) -> tuple[list[Sample], Sample, dict[str, np.ndarray]]:
  """Returns prompts, query, and the entries `samples` and `bad` of the batch.

  Classes are removed from the labels as the draw demands. With "skip", a pair with a bad file is replaced by another
  random pair.
  """
  bad = np.full(_TRIES, -1, np.int32)
  for attempt in range(_TRIES):
    draw, samples = pairing(index, generator), []
    wanted = [*((prompt_source, prompt) for prompt in draw.prompts), (source, draw.query)]
    try:
      for origin, place in wanted:
        samples.append(keep_class(origin[place], draw.target_class))
    except InputError as error:
      origin, place = wanted[len(samples)]
      bad[attempt] = place if origin is source else -1
      if bad_files == "error":
        raise
      if attempt == _TRIES - 1:
        raise InputError(f"{error} ({_TRIES} bad samples in a row, expected most of them to be good)") from error
      index = int(generator.integers(len(source)))
      continue
    *prompts, query = samples
    if draw.negative and draw.target_class is None:
      query = keep_class(query, 0)
    pairs = np.array([(prompt, draw.query) for prompt in draw.prompts], np.int32)
    return prompts, query, {"samples": pairs, "bad": bad[None]}
  raise AssertionError("every attempt ends in a pair or an error")


@dataclasses.dataclass(frozen=True)
class SourceTrainingPairs:
  """Training pairs from a source. Each sample is the query once an epoch.

  Attributes:
    source: the samples.
    pairing: draws prompts for each query.
    transform: augments the samples and stacks them.
    bad_files: "error" raises at a bad file; "skip" draws another pair and lists the bad sample in `bad` of the batch.
  """

  source: Source
  pairing: Pairing
  transform: TrainingPair
  bad_files: BadFilePolicy = "error"

  @property
  def epoch(self) -> int:
    return len(self.source)

  def __call__(self, index: int, generator: np.random.Generator) -> Pair:
    prompts, query, indices = _read_or_skip(self.source, self.source, self.pairing, self.bad_files, index, generator)
    return {**self.transform(prompts, query, generator), **indices}


@dataclasses.dataclass(frozen=True)
class SourceEvaluationPairs:
  """Evaluation pairs from a source: sample i is the query, and a generator with seed i draws its prompts.

  With several windows for each query, the first windows of all queries come first, then the second ones.

  The other attributes are those of `SourceTrainingPairs`.

  Attributes:
    source: the queries.
    prompts: the samples that serve as prompts.
  """

  source: Source
  prompts: Source
  pairing: PairingRule
  transform: EvaluationPair
  bad_files: BadFilePolicy = "error"

  def __len__(self) -> int:
    return len(self.source) * self.transform.windows

  def __call__(self, index: int) -> Pair:
    window, index = divmod(index, len(self.source))
    generator = np.random.default_rng(index)
    prompts, query, indices = _read_or_skip(self.prompts, self.source, self.pairing, self.bad_files, index, generator)
    return {**self.transform(prompts, query, window), **indices}


def _complete(pair: Pair, valid: bool = True) -> Pair:
  """Adds the entries that a batch has and a pair lacks."""
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
  """Returns an endless iterator over batches of training pairs. The number of threads and workers does not change them.

  Args:
    pairs: makes the i-th pair. If it has epochs, each epoch uses all pairs once, in a different order.
    batch_size: number of pairs in a batch of this process.
    seed: seed of order, pairing and augmentation.
    num_threads: number of threads in each process that read and transform ahead.
    num_workers: number of worker processes; 0 reads in this process, which is best for small images and few cores.
    process_index: index of this training process, 0..process_count-1.
    process_count: number of training processes, which share the pairs of each step.
    start: number of batches to skip because earlier steps used them.
  """
  if pairs.epoch is None:
    order = grain.MapDataset.range(_ENDLESS).seed(seed)
  else:
    order = grain.MapDataset.range(pairs.epoch).seed(seed).shuffle().repeat(_ENDLESS // pairs.epoch)
  dataset = order.random_map(pairs).map(_complete)
  # Batching comes before threads and workers divide the work. Each of them then makes whole batches, so their number
  # does not change any batch.
  batches = dataset.batch(batch_size, batch_fn=_concatenate)
  # Each process takes consecutive pairs of a step, so that the number of processes does not change their order.
  batches = batches[start * process_count + process_index :: process_count]
  iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
  if num_workers:
    iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=follow_parent)
  return iter(iterable)


def evaluation_batches(
  pairs: EvaluationPairs, *, batch_size: int, num_pairs: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
  """Yields batches of evaluation pairs, the same ones every time.

  Args:
    pairs: makes the i-th pair.
    batch_size: number of pairs in a batch of this process. Repeated pairs, marked not `valid`, fill up the last batch.
    num_pairs: number of pairs to use, evenly spaced; -1 uses all.
    process_index: index of this process, 0..process_count-1.
    process_count: number of processes; all of them get the same number of batches.
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


def follow_parent(index: int, count: int) -> None:
  """Makes this worker ignore SIGINT and SIGTERM, and ends it when its parent ends.

  Ctrl-C and a scheduler's SIGTERM reach workers too, but the training process still needs them to finish a step. A
  killed training process cannot stop its workers, which would otherwise wait forever.

  Args:
    index: index of this worker, unused; grain passes it.
    count: number of workers, unused; grain passes it.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:

    def wait() -> None:
      parent.join()
      os._exit(1)

    threading.Thread(target=wait, name="follow_parent", daemon=True).start()
