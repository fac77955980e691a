"""Decides which labeled images are positive and which are negative prompts of a query, by groups or by classes.

In: queries and labeled images, with their names or labels. Out: `Conditions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from seggpt_jax.data.groups import group_names
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.formats.layouts import Item
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.retrieval.labeled_images import Facts, held_classes


class Conditions(NamedTuple):
  """The keys of queries and prompts; a key is a class or a group.

  A prompt is positive for a query if the two have a key in common. It is negative if it has keys, but none in common.

  Attributes:
    queries: whether each query has each key.
    prompts: whether each prompt has each key.
    names: the keys of each query in words, for errors.
  """

  queries: Bool[np.ndarray, "queries keys"]
  prompts: Bool[np.ndarray, "prompts keys"]
  names: list[str]


def by_group(queries: Sequence[Query], prompts: Sequence[PromptFiles], spec: str, labels: LabelFormat) -> Conditions:
  """Returns conditions by group: positive prompts are in the query's group.

  Args:
    queries: images to choose prompts for.
    prompts: labeled images to choose from.
    spec: "prefix:SEP", "csv:FILE" or "classes", see `groups.group_names`.
    labels: format of the label files, for "classes".

  Raises:
    InputError: the specification has another form, an image has no group, or no labeled image is in a query's group.
  """
  if spec.partition(":")[0] not in ("prefix", "csv", "classes"):
    raise InputError(f"--groups: found {spec!r}, expected prefix:SEP, csv:FILE or classes")
  if spec == "classes":
    _check_truths(queries, "--groups=classes")
  query_items = [Item(query.name, str(query.image), str(query.truth or "")) for query in queries]
  prompt_items = [Item(prompt.name or prompt.image.stem, str(prompt.image), str(prompt.labels)) for prompt in prompts]
  query_groups, prompt_groups = (
    list(group_names(FileSource(items, IGNORE, labels), spec)) for items in (query_items, prompt_items)
  )
  known = set(prompt_groups)
  for query, name in zip(queries, query_groups, strict=True):
    if name not in known:
      raise InputError(f"{query.image}: found no labeled image of its group {name!r}, expected at least one")
  keys = np.unique(prompt_groups)
  query_keys, prompt_keys = (np.array(groups)[:, None] == keys for groups in (query_groups, prompt_groups))
  return Conditions(query_keys, prompt_keys, [f"group {name!r}" for name in query_groups])


def classes_of(queries: Sequence[Query], labels: LabelFormat) -> Bool[np.ndarray, "queries classes"]:
  """Returns whether each query's label holds each class.

  Args:
    queries: images with labels.
    labels: format of the label files.

  Raises:
    InputError: a query has no label, or the label cannot be read or holds no class.
  """
  _check_truths(queries, "--by-class")
  found = read_ahead(lambda query: held_classes(read_labels(query.truth, labels)), queries)
  holds = np.stack([future.result() for _, future in found])
  for query, held in zip(queries, holds, strict=True):
    if not held.any():
      raise InputError(f"{query.truth}: found no class in it, expected one to choose prompts by (--by-class)")
  return holds


def by_class(holds: Bool[np.ndarray, "queries classes"], facts: Facts) -> Conditions:
  """Returns conditions by class: positive prompts share a class with the query, negative ones none.

  Args:
    holds: classes of the queries, from `classes_of`.
    facts: contents of the labeled images.
  """
  return Conditions(holds, facts.holds, [f"classes {'+'.join(map(str, np.flatnonzero(held)))}" for held in holds])


def _check_truths(queries: Sequence[Query], flag: str) -> None:
  for query in queries:
    if query.truth is None:
      raise InputError(f"{query.image}: found no label for it, expected labels/{query.name}.* next to images/ ({flag})")
