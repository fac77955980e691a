"""Groups of samples that belong together, such as the images of one patient, and a split that keeps groups whole."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from seggpt_jax.data.class_index import scan_classes
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError
from seggpt_jax.files import plain_name
from seggpt_jax.formats.images import read_text

SPECS = (
  "prefix:SEP (the name up to the last SEP), folder (the folder in the name), field:KEY (a field of the record), "
  "csv:FILE (columns name,group), classes (the set of classes in the sample)"
)


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
  if kind == "classes":
    return _interned(_class_sets(source))
  if kind == "csv":
    return _interned(_listed(source, argument))
  group_of: dict[str, Callable[[int], str]] = {
    "prefix": lambda i: _prefix(source.name(i), argument),
    "folder": lambda i: source.name(i).rpartition("/")[0],
    "field": lambda i: source.field(i, argument),
  }
  return _interned(group_of[kind](i) for i in range(len(source)))


def _interned(names) -> list[str]:
  """Returns the names with equal strings as one object: a million samples in 100 groups then need 100 strings."""
  known: dict[str, str] = {}
  return [known.setdefault(name, name) for name in names]


def _prefix(name: str, separator: str) -> str:
  name = name.rpartition("/")[2]
  head, found, _ = name.rpartition(separator)
  return head if found else name


def _listed(source: Source, path: str) -> list[str]:
  try:
    rows = csv.DictReader(read_text(path).splitlines())
    columns = rows.fieldnames or []
    if not {"name", "group"} <= set(columns):
      raise InputError(f"{path}: found columns {', '.join(columns)}, expected name and group")
    group_of: dict[str, str] = {}
    for row in rows:
      name, group = plain_name(row["name"] or ""), row["group"]
      if not name or group is None:
        raise InputError(f"{path}: line {rows.line_num}: found {name!r} without a group, expected name,group")
      if group_of.setdefault(name, group) != group:
        raise InputError(f"{path}: found {name!r} in groups {group_of[name]!r} and {group!r}, expected one")
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read as CSV: {error}") from error
  names = [source.name(i) for i in range(len(source))]
  missing = [name for name in names if name not in group_of]
  if missing:
    raise InputError(
      f"{path}: found no line for {missing[0]!r} and {len(missing) - 1} more, expected one for each sample"
    )
  return [group_of[name] for name in names]


def _class_sets(source: Source) -> list[str]:
  return ["+".join(map(str, np.flatnonzero(held))) for held in scan_classes(source)]


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
