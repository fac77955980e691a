"""The classes in each sample of a source: label files in, one table out, which can be kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError, one_line, warn_once
from seggpt_jax.files import expand, write_whole
from seggpt_jax.formats.labels import classes_in

_THREADS = os.cpu_count() or 1


def sample_classes(source: Source, index: int) -> tuple[int, ...]:
  """Returns the foreground classes in one sample. The label is read if the source does not know them.

  Raises:
    InputError: the label cannot be read.
  """
  known = source.classes(index)
  return classes_in(source.label(index)) if known is None else known


def has_foreground(source: Source, skip: Callable[[InputError], None] | None = None) -> bool:
  """Returns True if any sample has a foreground class. The search stops at the first one.

  Args:
    source: the samples.
    skip: called with the error of each label that cannot be read; None raises the first one.

  Raises:
    InputError: a label cannot be read, and `skip` is None.
  """
  # Golden-ratio steps visit each sample once and soon cover the whole range. Empty images often come in long sequences.
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
  """Finds the foreground classes in every sample. All labels are read if the source does not know them.

  Args:
    source: the samples.
    cache: file that keeps the table. It is reused while the samples' names, the label format, the number of classes
      and the sizes and times of the label files stay the same. None keeps nothing.
    skip: called with the error of each label that cannot be read, whose sample then has no classes; None raises the
      first one.

  Returns:
    A table that is True where a sample has a class. Column 0, the background, is False.

  Raises:
    InputError: a label cannot be read and `skip` is None, or the cache cannot be written.
  """
  count = len(source)
  table = np.zeros((count, source.num_classes), bool)
  if source.classes(0) is not None:
    for index in range(count):
      table[index, list(source.classes(index))] = True
    return table
  names = hashlib.sha256()
  for index in range(count):
    try:
      stamp = source.label_stamp(index)
    except InputError:
      if skip is None:
        raise
      stamp = ""  # the label is gone: reading it fails as well, and passes it over
    names.update(f"{source.name(index)}\0{stamp}\0".encode(errors="surrogatepass"))
  made_of = f"{source.num_classes} {names.hexdigest()}"
  cache = None if cache is None else Path(expand(cache))
  if cache is not None and cache.exists():
    try:
      with np.load(cache) as stored:
        if str(stored["made_of"]) == made_of and stored["table"].shape == table.shape:
          return stored["table"]
    # A damaged archive raises all kinds of errors. The labels themselves are read instead.
    except Exception as error:
      warn_once(f"{cache}: cannot be read ({one_line(error)[:100]}), written again from the labels")
  results = read_ahead(lambda i: sample_classes(source, i), range(count), threads=_THREADS, ahead=16 * _THREADS)
  with contextlib.closing(results):
    for index, result in tqdm(results, desc="reading labels", unit="label", total=count, delay=2.0, leave=False):
      try:
        table[index, list(result.result())] = True
      except InputError as error:
        if skip is None:
          raise
        skip(error)
  if cache is not None:
    write_whole(cache, lambda file: np.savez_compressed(file, table=table, made_of=np.array(made_of)), replace=True)
  return table
