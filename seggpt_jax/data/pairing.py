"""Which samples prompt which. Indices in, indices out: O(N) memory, no list of pairs is ever held.

What is known of the samples without their pixels is a group for each (`groups.group_names`) and the classes that each
holds (`class_index.scan_classes`). A pair is positive, with a prompt of the query's group, of one of its classes, of
both or of neither; or negative: the prompt shows a class that the query has not, and the answer is background.
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
  """How prompts are chosen.

  Attributes:
    same_group: share of the positive pairs whose prompts are of the query's group.
    same_class: share of the positive pairs whose prompts hold a class that the query holds, drawn uniformly from its
      classes. Both conditions can meet in one pair.
    negative: share of negative pairs, among the queries that lack a class which others hold.
    balanced: draw a class uniformly, then a query that holds it, instead of each sample once an epoch.
    num_prompts: K, different ones as far as there are enough.
  """

  same_group: float = 1.0
  same_class: float = 0.0
  negative: float = 0.0
  balanced: bool = False
  num_prompts: int = 1

  @property
  def needs_classes(self) -> bool:
    """Whether it has to be known which classes the samples hold."""
    return bool(self.same_class or self.negative or self.balanced)


class Draw(NamedTuple):
  """A query with its prompts.

  Attributes:
    query: index of the sample.
    prompts: indices of K samples.
    negative: the query has nothing of what is asked for.
    asked: for a negative pair, the one class of the prompts that is asked for; None is all they show.
  """

  query: int
  prompts: tuple[int, ...]
  negative: bool = False
  asked: int | None = None


class _Members:
  """Samples by an integer key, as two sorted arrays."""

  def __init__(self, keys: Integer[np.ndarray, "n"], samples: Integer[np.ndarray, "n"]):
    order = np.lexsort((samples, keys))
    self._keys, self.samples = keys[order], samples[order].astype(np.int32)

  def between(self, first: int, last: int) -> Integer[np.ndarray, "m"]:
    """A view of the samples with keys first..last, in order of key and sample."""
    return self.samples[np.searchsorted(self._keys, first) : np.searchsorted(self._keys, last, side="right")]


class Pairing:
  """Draws prompts for queries.

  Args:
    num_samples: at least 2.
    options: how.
    groups: the group of each sample; None makes one of all.
    classes: which classes each sample holds, the background's column included but not used; None if not known.
    groups_are_classes: the groups are what there is to ask for, one thing in each, whatever the labels call it; as in
      folders PRODUCT/DEFECT.

  Raises:
    InputError: too few samples, or the options ask for what is not there.
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
    self.options = options
    self._num_samples = num_samples
    self._group = np.zeros(num_samples, np.int64)
    if groups is not None:
      self._group = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    self._num_groups = int(self._group.max()) + 1
    everyone = np.arange(num_samples)
    self._by_group = _Members(self._group, everyone)
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
    # Two orders of the same pairs: the classes of a sample, and the samples of a class, group by group.
    self._class_index, self._starts = class_index.astype(np.int32), np.searchsorted(sample, np.arange(num_samples + 1))
    self._by_class = _Members(class_index * self._num_groups + self._group[sample], sample)

  @property
  def num_samples(self) -> int:
    return self._num_samples

  def __call__(self, index: int, generator: np.random.Generator) -> Draw:
    """The pair for the i-th place.

    Args:
      index: the query, unless the options are balanced.
      generator: source of randomness.
    """
    query = index
    if self.options.balanced:
      query = int(generator.choice(self._of_class(int(generator.choice(self._known_classes)))))
    if generator.random() < self.options.negative:
      absent = np.setdiff1d(self._known_classes, self._classes_of(query), assume_unique=True)
      if len(absent):
        asked = int(generator.choice(absent))
        prompts = self._choose(generator, self._of_class(asked), query)
        return Draw(query, prompts, negative=True, asked=None if self._groups_are_classes else asked)
    return Draw(query, self._positive(query, generator))

  def _positive(self, query: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Prompts under both conditions, else under the one on classes, else on groups, else any."""
    same_class, same_group = generator.random(2) < (self.options.same_class, self.options.same_group)
    classes, group = self._classes_of(query), int(self._group[query])
    candidates = []
    if same_class and len(classes):
      chosen = int(generator.choice(classes))
      if same_group:
        candidates.append(self._of_class(chosen, group))
      candidates.append(self._of_class(chosen))
    if same_group:
      candidates.append(self._by_group.between(group, group))
    candidates.append(self._by_group.samples)
    # The query may be among them, so two are needed for one prompt.
    enough = next((found for found in candidates if len(found) > 1), self._by_group.samples)
    return self._choose(generator, enough, query)

  def _classes_of(self, index: int) -> Integer[np.ndarray, "m"]:
    return self._class_index[self._starts[index] : self._starts[index + 1]]

  def _of_class(self, class_index: int, group: int | None = None) -> Integer[np.ndarray, "m"]:
    """The samples that hold a class, of one group or all."""
    first, last = (0, self._num_groups - 1) if group is None else (group, group)
    return self._by_class.between(class_index * self._num_groups + first, class_index * self._num_groups + last)

  def _choose(
    self, generator: np.random.Generator, candidates: Integer[np.ndarray, "m"], query: int
  ) -> tuple[int, ...]:
    """K of the candidates but the query, different ones if there are enough."""
    # One class in one group is sorted by sample, several groups are not: the query is looked for where it can be.
    place = np.flatnonzero(candidates == query)
    others = len(candidates) - len(place)
    count = self.options.num_prompts
    chosen = (
      generator.choice(others, count, replace=False) if count <= others else generator.integers(others, size=count)
    )
    if len(place):
      chosen = chosen + (chosen >= place[0])
    return tuple(int(candidates[i]) for i in chosen)

  def describe(self) -> str:
    """One line on what the samples allow, for the person who set the options."""
    parts = [f"{self._num_samples} samples"]
    if self._num_groups > 1:
      alone = int((np.bincount(self._group) == 1).sum())
      parts.append(f"{self._num_groups} groups" + (f" ({alone} of one sample, prompted from others)" if alone else ""))
    if self.options.needs_classes:
      able = int((np.diff(self._starts) < len(self._known_classes)).sum())
      parts.append(f"{len(self._known_classes)} {'groups' if self._groups_are_classes else 'classes'} to ask for")
      if self.options.negative:
        parts.append(f"{able} samples that can be the query of a negative pair")
    return ", ".join(parts)
