"""The choice of prompts: index of a query in, indices of its prompts out. Memory is O(N); there is no list of pairs.

Pairing needs no pixels, only the group of each sample (`groups.group_names`) and its classes
(`class_index.scan_classes`). In a positive pair the prompts share the query's group, one of its classes, both, or
neither. In a negative pair the prompts show a class that the query lacks, and the correct answer is all background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from seggpt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PairingOptions:
  """Options for the choice of prompts.

  Attributes:
    same_group: share of the positive pairs, 0 to 1, whose prompts come from the query's group.
    same_class: share of the positive pairs, 0 to 1, whose prompts have one of the query's classes, which is drawn
      uniformly. If the query has no class, they have any class, so that the prompt still asks for something.
      `same_group` may apply to the same pair.
    negative: share of negative pairs, 0 to 1, among queries that lack a class which other samples have.
    num_prompts: number of prompts K of each query, all different if there are enough samples.
    every_class: True chooses the prompts of positive pairs for one class after the other, so that enough of them show
      every class; `same_class` is not used.
  """

  same_group: float = 1.0
  same_class: float = 0.0
  negative: float = 0.0
  num_prompts: int = 1
  every_class: bool = False

  @property
  def needs_classes(self) -> bool:
    """True if the classes of each sample must be known."""
    return bool(self.same_class or self.negative or self.every_class)


class Draw(NamedTuple):
  """A query with its prompts.

  Attributes:
    query: index of the query.
    prompts: indices of the K prompts.
    negative: True if the query has none of the classes that the prompts show.
    target_class: for a negative pair, the only class to keep in the labels; None keeps all classes of the prompts.
  """

  query: int
  prompts: tuple[int, ...]
  negative: bool = False
  target_class: int | None = None


class _SamplesByKey:
  """Samples sorted by an integer key, in two arrays."""

  def __init__(self, keys: Integer[np.ndarray, "n"], samples: Integer[np.ndarray, "n"]):
    order = np.lexsort((samples, keys))
    self._keys, self.samples = keys[order], samples[order].astype(np.int32)

  def between(self, first: int, last: int) -> Integer[np.ndarray, "m"]:
    """Returns a view of the samples with keys first..last, ordered by key, then by sample."""
    return self.samples[np.searchsorted(self._keys, first) : np.searchsorted(self._keys, last, side="right")]


class Pairing:
  """Draws prompts for queries.

  Args:
    num_samples: number of samples, at least 2.
    options: options for the choice of prompts.
    groups: group of each sample; None puts all samples into one group.
    classes: table that is True where a sample has a class; column 0, the background, is not used. None if not known.
    groups_are_classes: True if each group has one class of its own, under any number in the labels, as in folders
      PRODUCT/DEFECT.

  Raises:
    InputError: there are too few samples, or no sample has a class and the options need one.
  """

  def __init__(
    self,
    num_samples: int,
    options: PairingOptions,
    groups: Sequence[str] | None = None,
    classes: Bool[np.ndarray, "samples classes"] | None = None,
    groups_are_classes: bool = False,
  ):
    if num_samples < 2:
      raise InputError(f"found {num_samples} labeled images, expected at least 2 to make a pair")
    self.options, self.num_samples = options, num_samples
    self._group = np.zeros(num_samples, np.int64)
    if groups is not None:
      self._group = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    self._num_groups = int(self._group.max()) + 1
    everyone = np.arange(num_samples)
    self._by_group = _SamplesByKey(self._group, everyone)
    self._groups_are_classes = groups_are_classes
    if groups_are_classes:
      sample, class_index = everyone, self._group
    elif classes is not None:
      sample, class_index = np.nonzero(classes[:, 1:])
      class_index = class_index + 1
    elif options.needs_classes:
      raise ValueError("classes: found None, expected the classes of the samples for these options")
    else:
      sample, class_index = everyone[:0], everyone[:0]
    self._known_classes = np.unique(class_index)
    if options.needs_classes and not len(self._known_classes):
      raise InputError("found no sample with any class but the background, expected some to pair by class")
    # The same (sample, class) pairs in two orders: classes by sample, and samples by class and group.
    self._class_index, self._starts = class_index.astype(np.int32), np.searchsorted(sample, np.arange(num_samples + 1))
    self._by_class = _SamplesByKey(class_index * self._num_groups + self._group[sample], sample)

  def __call__(self, index: int, generator: np.random.Generator) -> Draw:
    """Draws the i-th pair.

    Args:
      index: index of the query.
      generator: source of all random numbers.
    """
    query = index
    if generator.random() < self.options.negative:
      absent = np.setdiff1d(self._known_classes, self._classes_of(query), assume_unique=True)
      if len(absent):
        target = int(generator.choice(absent))
        prompts = self._choose(generator, self._of_class(target), query)
        return Draw(query, prompts, negative=True, target_class=None if self._groups_are_classes else target)
    return Draw(query, self._positive(query, generator))

  def _positive(self, query: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Draws prompts of the same class and group; if no image has both, of the class, then of the group, then any."""
    same_class, same_group = generator.random(2) < (self.options.same_class, self.options.same_group)
    if self.options.every_class:
      return self._of_every_class(query, bool(same_group), generator)
    classes, group = self._classes_of(query), int(self._group[query])
    candidates = []
    if same_class and len(self._known_classes):
      chosen = int(generator.choice(classes if len(classes) else self._known_classes))
      if same_group:
        candidates.append(self._of_class(chosen, group))
      candidates.append(self._of_class(chosen))
    if same_group:
      candidates.append(self._by_group.between(group, group))
    candidates.append(self._by_group.samples)
    # The query may be a candidate, so one prompt needs two candidates.
    enough = next((found for found in candidates if len(found) > 1), self._by_group.samples)
    return self._choose(generator, enough, query)

  def _of_every_class(self, query: int, same_group: bool, generator: np.random.Generator) -> tuple[int, ...]:
    """Draws prompts for one class after the other, in random order.

    The order must not depend on the query: the network would learn to read from it what the query shows.
    """
    order = generator.permutation(self._known_classes).tolist()
    prompts: list[int] = []
    for place in range(self.options.num_prompts):
      chosen = order[place % len(order)]
      found = self._of_class(chosen, int(self._group[query])) if same_group else self._of_class(chosen)
      found = found if len(found) > 1 or (len(found) and found[0] != query) else self._of_class(chosen)
      prompts.append(self._pick(found, query, prompts, generator))
    return tuple(prompts)

  def _pick(
    self, found: Integer[np.ndarray, "m"], query: int, taken: Sequence[int], generator: np.random.Generator
  ) -> int:
    """Draws a sample that is neither the query nor taken; a taken one, and at last the query, if nothing else is found.

    A few random tries find one at once unless there are few, without a look at all samples of a class.
    """
    tries = found[generator.integers(len(found), size=8)].tolist()
    free = next((index for index in tries if index != query and index not in taken), None)
    if free is not None:
      return free
    others = found[found != query] if len(found) <= 8 + len(taken) else np.array(tries)
    fresh = np.setdiff1d(others, taken)
    return int(generator.choice(fresh if len(fresh) else others if len(others) else found))

  def _classes_of(self, index: int) -> Integer[np.ndarray, "m"]:
    return self._class_index[self._starts[index] : self._starts[index + 1]]

  def _of_class(self, class_index: int, group: int | None = None) -> Integer[np.ndarray, "m"]:
    """Returns the samples that have a class, in one group or in all groups."""
    first, last = (0, self._num_groups - 1) if group is None else (group, group)
    return self._by_class.between(class_index * self._num_groups + first, class_index * self._num_groups + last)

  def _choose(
    self, generator: np.random.Generator, candidates: Integer[np.ndarray, "m"], query: int
  ) -> tuple[int, ...]:
    """Draws K of the candidates except the query, all different if there are enough."""
    others = np.delete(candidates, np.flatnonzero(candidates == query))
    count = self.options.num_prompts
    return tuple(generator.choice(others, count, replace=count > len(others)).tolist())

  def describe(self) -> str:
    """Returns one line that tells the user which pairs the samples allow."""
    parts = [f"{self.num_samples} samples"]
    if self._num_groups > 1:
      alone = int((np.bincount(self._group) == 1).sum())
      single = f" ({alone} with a single sample, whose prompts come from other groups)" if alone else ""
      parts.append(f"{self._num_groups} groups{single}")
    if self.options.needs_classes:
      able = int((np.diff(self._starts) < len(self._known_classes)).sum())
      parts.append("each group is a class" if self._groups_are_classes else f"{len(self._known_classes)} classes")
      if self.options.negative:
        parts.append(f"{able} samples that can be the query of a negative pair")
    return ", ".join(parts)


class EvaluationPairing:
  """Chooses the prompts of validation queries: training samples that show the query's classes.

  The pool of prompts is the training samples followed by the queries themselves. A query serves as a prompt for
  another one only if no training sample shows any of the other's classes, as with class folders that are new in
  validation. Among equally good samples the choice is random.

  Args:
    classes: table that is True where a sample of the pool has a class; column 0, the background, is not used.
    num_training: number of training samples.
    groups: group of each sample of the pool, preferred among equally good samples; None for no groups.
    num_prompts: number of prompts K of each query. The first one shows as many of the query's classes as possible, the
      next ones as many as possible of the classes still missing.
    every_class: True asks for every class of the training samples, as inference does, which cannot know what a query
      shows.
  """

  def __init__(
    self,
    classes: Bool[np.ndarray, "samples classes"],
    num_training: int,
    groups: Sequence[str] | None = None,
    num_prompts: int = 1,
    every_class: bool = False,
  ):
    self._every = classes[:num_training, 1:].any(axis=0) if every_class else None
    self._classes, self._num_training, self._num_prompts = classes[:, 1:], num_training, num_prompts
    self._group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]

  def __call__(self, index: int, generator: np.random.Generator) -> Draw:
    """Chooses the prompts of the i-th query. Indices of prompts are those of the pool.

    Args:
      index: index of the query.
      generator: source of all random numbers.
    """
    query = self._num_training + index
    wanted = self._classes[query] if self._every is None else self._every
    if not wanted.any():
      wanted = np.ones_like(wanted)  # the answer is background, whichever class is asked for
    free = np.ones(len(self._classes), bool)
    free[query] = False
    missing, prompts = wanted, []
    for _ in range(self._num_prompts):
      chosen = self._choose(missing, query, free, generator)
      prompts.append(chosen)
      missing = missing & ~self._classes[chosen]
      missing = missing if missing.any() else wanted
      if free.sum() > 1:
        free[chosen] = False
    return Draw(index, tuple(prompts))

  def _choose(self, missing: np.ndarray, query: int, free: np.ndarray, generator: np.random.Generator) -> int:
    """Returns one of the best free samples: shows a class, is for training, is of the group, shows more classes."""
    shown = (self._classes & missing).sum(axis=1)
    rank = 2 * (shown > 0) + (np.arange(len(shown)) < self._num_training)
    rank = 2 * rank + (0 if self._group is None else self._group == self._group[query])
    rank = np.where(free, rank * (1 + len(missing)) + shown, -1)
    return int(generator.choice(np.flatnonzero(rank == rank.max())))
