"""Which labeled images are positive prompts of a query and which are negative: by groups or by classes of both.

In: queries, labeled images and what their names or labels say. Out: `Conditions`, a table for each of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from seggpt_jax.data.groups import group_names
from seggpt_jax.data.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.data.sources import FileSource, Item
from seggpt_jax.errors import InputError
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.retrieval.prompt_index import Facts, holds_in

_THREADS = 4


class Conditions(NamedTuple):
  """What a prompt has to have to be a positive or a negative one.

  Attributes:
    queries: which keys, classes or groups, each query has.
    prompts: likewise each prompt. It is positive if it has a key in common with the query, negative if it has keys and
      none in common.
    names: what the keys of each query are called, for errors.
  """

  queries: Bool[np.ndarray, "queries keys"]
  prompts: Bool[np.ndarray, "prompts keys"]
  names: list[str]


def by_group(queries: Sequence[Query], prompts: Sequence[PromptFiles], spec: str, labels: LabelFormat) -> Conditions:
  """Conditions by group: positive prompts are of the query's own group.

  Args:
    queries: the queries.
    prompts: the labeled images.
    spec: "prefix:SEP", "csv:FILE" or "classes", see `groups.group_names`.
    labels: how labels are read, for "classes".

  Raises:
    InputError: the specification is another one, or says nothing for an image, or a query's group has no prompt.
  """
  if spec.partition(":")[0] not in ("prefix", "csv", "classes"):
    raise InputError(f"--groups: found {spec!r}, expected prefix:SEP, csv:FILE or classes")
  if spec == "classes":
    _check_truths(queries, "--groups=classes")
  of_queries = [Item(query.name, str(query.image), str(query.truth or "")) for query in queries]
  of_prompts = [Item(prompt.image.stem, str(prompt.image), str(prompt.labels)) for prompt in prompts]
  names = [name for items in (of_queries, of_prompts) for name in group_names(FileSource(items, IGNORE, labels), spec)]
  known, group_of = np.unique(names, return_inverse=True)
  table = np.zeros((len(names), len(known)), bool)
  table[np.arange(len(names)), group_of] = True
  count = len(queries)
  there = set(names[count:])
  for query, name in zip(queries, names, strict=False):
    if name not in there:
      raise InputError(f"{query.image}: found no labeled image of its group {name!r}, expected at least one")
  return Conditions(table[:count], table[count:], [f"group {name!r}" for name in names[:count]])


def classes_of(queries: Sequence[Query], labels: LabelFormat) -> Bool[np.ndarray, "queries classes"]:
  """Which classes the queries' labels hold.

  Args:
    queries: the queries.
    labels: how labels are read.

  Raises:
    InputError: a query has no label, it cannot be read, or holds no class.
  """
  _check_truths(queries, "--by-class")
  with ThreadPoolExecutor(_THREADS) as pool:
    holds = np.stack(list(pool.map(lambda query: holds_in(read_labels(query.truth, labels)), queries)))
  for query, held in zip(queries, holds, strict=True):
    if not held.any():
      raise InputError(f"{query.truth}: found no class in it, expected one to choose prompts by (--by-class)")
  return holds


def by_class(holds: Bool[np.ndarray, "queries classes"], facts: Facts) -> Conditions:
  """Conditions by class: positive prompts share a class with the query, negative ones hold none of its classes.

  Args:
    holds: of the queries, see `classes_of`.
    facts: of the labeled images.
  """
  return Conditions(holds, facts.holds, [f"classes {'+'.join(map(str, np.flatnonzero(held)))}" for held in holds])


def _check_truths(queries: Sequence[Query], flag: str) -> None:
  for query in queries:
    if query.truth is None:
      raise InputError(f"{query.image}: found no label for it, expected labels/{query.name}.* beside images/ ({flag})")
