"""The classes in each sample of a source, and groups of samples that belong together, such as images of one patient.

In: label files, or rules about names. Out: a table of classes, which can be kept in a file; a group for each sample;
and a split that keeps groups whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError, one_line, warn_once
from seggpt_jax.files import expand, plain_name, write_whole
from seggpt_jax.formats.folders import read_csv
from seggpt_jax.formats.labels import classes_in

SPECS = (
  "prefix:SEP (the name up to the last SEP), folder (the folder in the name), field:KEY (a field of the record), "
  "csv:FILE (columns name,group), classes (the set of classes in the sample)"
)
_THREADS = os.cpu_count() or 1


def _sample_classes(source: Source, index: int) -> tuple[int, ...]:
  """Returns the foreground classes in one sample. The label is read if the source does not know them."""
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
      if _sample_classes(source, place * step % count):
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
  results = read_ahead(lambda i: _sample_classes(source, i), range(count), threads=_THREADS, ahead=16 * _THREADS)
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


def group_names(source: Source, spec: str) -> list[str]:
  """Returns the name of each sample's group.

  Args:
    source: the samples.
    spec: rule for the group of the sample `street/p7_0001`:
      "": one group for all samples, with the name "".
      "prefix:_": `p7`, the file name up to the last separator, or all of it if it has none.
      "folder": `street`, the part before the file name.
      "field:KEY": `source.field(index, KEY)`.
      "csv:FILE": the entry of a CSV file with a header and the columns name and group.
      "classes": the foreground classes in the sample, such as "1+3". Labels are read if the source does not know them.

  Returns:
    One name for each sample. Equal names are the same object.

  Raises:
    InputError: the rule has another form, or gives no group for a sample.
  """
  kind, _, argument = spec.partition(":")
  if spec == "":
    return [""] * len(source)
  with_argument, alone = ("prefix", "field", "csv"), ("folder", "classes")
  if not (kind in with_argument and argument) and spec not in alone:
    raise InputError(f"groups: found {spec!r}, expected one of {SPECS}")
  # Equal names become one object: a million samples in 100 groups then need 100 strings.
  if kind == "classes":
    return [sys.intern("+".join(map(str, np.flatnonzero(held)))) for held in scan_classes(source)]
  if kind == "csv":
    return list(map(sys.intern, _listed(source, argument)))
  group_of: dict[str, Callable[[int], str]] = {
    "prefix": lambda i: source.name(i).rpartition("/")[2].rsplit(argument, 1)[0],
    "folder": lambda i: source.name(i).rpartition("/")[0],
    "field": lambda i: source.field(i, argument),
  }
  return [sys.intern(group_of[kind](i)) for i in range(len(source))]


def _listed(source: Source, path: str) -> list[str]:
  group_of: dict[str, str] = {}
  for where, name, group in read_csv(path, "name", "group"):
    name = plain_name(name or "")
    if not name or group is None:
      raise InputError(f"{where}: found {name!r} without a group, expected name,group")
    if group_of.setdefault(name, group) != group:
      raise InputError(f"{path}: found {name!r} in groups {group_of[name]!r} and {group!r}, expected one")
  names = [source.name(i) for i in range(len(source))]
  missing = [name for name in names if name not in group_of]
  if missing:
    raise InputError(
      f"{path}: found no line for {missing[0]!r} and {len(missing) - 1} more, expected one for each sample"
    )
  return [group_of[name] for name in names]


def divide(groups: Sequence[str], share: float, seed: int) -> Bool[np.ndarray, "n"]:
  """Chooses whole groups at random so that their samples come as close as possible to a share of all samples.

  Args:
    groups: group of each sample.
    share: share of the samples to choose, between 0 and 1.
    seed: seed of the choice; the same groups, share and seed give the same choice.

  Returns:
    Mask of the samples in chosen groups. At least one group is chosen, and at least one is not.

  Raises:
    InputError: the share is not between 0 and 1, or there are fewer than two groups.
  """
  if not 0 < share < 1:
    raise InputError(f"val_share: found {share:g}, expected more than 0 and less than 1")
  names, group_of, sizes = np.unique(np.array(groups, str), return_inverse=True, return_counts=True)
  if len(names) < 2:
    raise InputError(
      f"groups: found {'one group' if len(names) else 'no sample'}, expected at least two to divide; name samples' "
      f"groups with one of {SPECS}"
    )
  order = np.random.default_rng(seed).permutation(len(names))
  unit = math.gcd(*sizes.tolist())
  sizes = sizes // unit
  total, samples = int(sizes.sum()), len(groups)
  target = min(max(round(share * samples), 1), samples - 1) / unit
  nearest = min(max(math.floor(target + 0.5), 1), total - 1)
  # Subset sum: `reached` marks the sums that can be reached and `last` the group added last. The loop ends early once
  # the nearest possible sum is reached.
  last = np.full(total + 1, -1)
  reached = np.zeros(total + 1, bool)
  reached[0] = True
  for group in order:
    if reached[nearest]:
      break
    more = np.zeros_like(reached)
    more[sizes[group] :] = reached[: -sizes[group]]
    more &= ~reached
    last[more] = group
    reached |= more
  sums = np.flatnonzero(reached[1:-1]) + 1
  left = int(sums[np.argmin(np.abs(sums - target))])
  chosen = np.zeros(len(names), bool)
  while left:
    chosen[last[left]] = True
    left -= int(sizes[last[left]])
  return chosen[group_of]
