"""Which classes each sample of a source holds, found out once: label files in, one table out."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from seggpt_jax.data.labels import classes_in
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole

_THREADS = os.cpu_count() or 1
_BLOCK = 1024


def sample_classes(source: Source, index: int) -> tuple[int, ...]:
  """The classes of one sample but the background, from what the source knows or from its label.

  Raises:
    InputError: the label has to be read and cannot be.
  """
  known = source.classes(index)
  return classes_in(source.label(index)) if known is None else known


def has_foreground(source: Source, skip: Callable[[InputError], None] | None = None) -> bool:
  """Whether any sample holds a class; looks no further than the first one that does.

  Args:
    source: the samples.
    skip: is told of labels that cannot be read; without it they are raised.

  Raises:
    InputError: a label cannot be read.
  """
  # Golden-ratio steps visit each sample once and are soon everywhere: empty images often come in runs.
  count = len(source)
  step = next(s for s in range(max(round(count * 0.618), 1), 2 * count + 2) if np.gcd(s, count) == 1)
  for place in tqdm(range(count), desc="looking for foreground", unit="label", delay=2.0, leave=False):
    try:
      if sample_classes(source, place * step % count):
        return True
    except InputError as error:
      if skip is None:
        raise
      skip(error)
  return False


def scan_classes(
  source: Source, cache: str | os.PathLike | None = None, skip: Callable[[InputError], None] | None = None
) -> Bool[np.ndarray, "samples classes"]:
  """Which classes each sample holds; reads every label, unless the source knows.

  Args:
    source: the samples.
    cache: a file to keep the table in. It is used again as long as the samples' names and the number of classes are
      those it was made of; delete it after changing labels.
    skip: is told of labels that cannot be read, whose samples then hold nothing; without it they are raised.

  Returns:
    A table with the background's column, which stays False.

  Raises:
    InputError: a label cannot be read, or the cache cannot be written.
  """
  count = len(source)
  table = np.zeros((count, source.num_classes), bool)
  if source.classes(0) is not None:
    for index in range(count):
      table[index, list(source.classes(index))] = True
    return table
  names = hashlib.sha256()
  for index in range(count):
    names.update(source.name(index).encode() + b"\0")
  made_of = f"{source.num_classes} {names.hexdigest()}"
  if cache is not None and Path(cache).exists():
    with np.load(cache) as stored:
      if str(stored["made_of"]) == made_of:
        return stored["table"]

  def read(index: int) -> InputError | None:
    try:
      table[index, list(sample_classes(source, index))] = True
    except InputError as error:
      return error
    return None

  bar = tqdm(total=count, desc="reading labels", unit="label", delay=2.0, leave=False)
  with bar, concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    # A block at a time: a future weighs more than the result of its sample.
    for start in range(0, count, _BLOCK):
      for error in pool.map(read, range(start, min(start + _BLOCK, count))):
        bar.update()
        if error is None:
          continue
        if skip is None:
          raise error
        skip(error)
  if cache is not None:
    write_whole(Path(cache), lambda file: np.savez_compressed(file, table=table, made_of=np.array(made_of)))
  return table
