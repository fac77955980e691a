"""Chooses the prompts of every query and writes them as mapping files.

In: a folder of queries and folders of labeled images. Out: a JSON file {query file: [prompt files, best first]} and, if
asked for, a second one with negative prompts, which show nothing that the query shows.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging
from tqdm import tqdm

from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.errors import InputError
from seggpt_jax.files import cache_folder, expand, writing
from seggpt_jax.formats.images import decode_image, read_bytes
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import outputs
from seggpt_jax.inference.queries import PromptFiles, Query, files_of, list_queries
from seggpt_jax.model import parameters, weights
from seggpt_jax.retrieval import ranking
from seggpt_jax.retrieval.conditions import Conditions, by_class, by_group, classes_of
from seggpt_jax.retrieval.labeled_images import Facts, digest, list_prompts
from seggpt_jax.retrieval.prompt_index import PromptIndex
from seggpt_jax.written import check_outputs

_AHEAD = 16  # queries that are read before they are needed
DEFAULT_CACHE = "~/.cache/seggpt_jax"


@dataclasses.dataclass(frozen=True)
class ChoiceOptions:
  """Options for choosing prompts among the candidates of a query.

  Attributes:
    top_k: maximum number of prompts per query.
    diversity: 0 to 1; see `ranking.most_relevant`.
    negatives: "hardest" for the negative prompts with the highest scores, "random", or None for no negative prompts.
    seed: seed of the random choices.
  """

  top_k: int = 1
  diversity: float | int = 0.0
  negatives: Literal["hardest", "random"] | None = None
  seed: int = 0


def default_cache() -> Path | None:
  """Returns the folder where features are kept by default; None, with a warning, where it cannot be written."""
  try:
    return cache_folder(DEFAULT_CACHE)
  except InputError as error:
    logging.warning("features of labeled images are not kept for the next run: %s", error)
    return None


def write_mappings(
  model_path: str | os.PathLike,
  dataset_dir: str | os.PathLike,
  prompt_img_dir: str | os.PathLike,
  prompt_label_dir: str | os.PathLike,
  output: str | os.PathLike,
  *,
  labels: LabelFormat,
  options: ChoiceOptions,
  groups: str | None = None,
  share_class: bool = False,
  negative_output: str | os.PathLike | None = None,
  cache: str | os.PathLike | None = DEFAULT_CACHE,
) -> None:
  """Chooses prompts for every image of a folder and writes the mapping files.

  Args:
    model_path: weights directory, training run or packaged name; the network that compares images.
    dataset_dir: folder of the queries, with images/ and optionally labels/, or a folder of images.
    prompt_img_dir: folder of the labeled images to choose from.
    prompt_label_dir: folder of their label maps.
    output: JSON file for the positive prompts.
    labels: format of the label files.
    options: how prompts are chosen. `options.negatives` must be set exactly if `negative_output` is.
    groups: positive prompts come from the query's group: "prefix:SEP", "csv:FILE" or "classes".
    share_class: whether positive prompts must share a class with the query's label; not together with `groups`.
    negative_output: JSON file for the negative prompts; needs `groups` or `share_class`.
    cache: folder where features of labeled images are kept; None to keep none.

  Raises:
    InputError: a file is missing or cannot be read, or a query has no candidate.
  """
  queries = list_queries(dataset_dir, apart=(prompt_img_dir, prompt_label_dir))
  prompts = list_prompts(prompt_img_dir, prompt_label_dir)
  # Problems with the queries are reported before the labeled images are encoded, which can take minutes.
  conditions = by_group(queries, prompts, groups, labels) if groups else None
  holds = classes_of(queries, labels) if share_class else None
  written = [Path(path) for path in (output, negative_output) if path]
  read = files_of([*queries, *(Query("", each.image, each.labels, ()) for each in prompts)])
  check_outputs(written, read, "--output")
  for path in written:
    with writing(path.parent):
      path.parent.mkdir(parents=True, exist_ok=True)
  model = weights.load_model(model_path, dtype=parameters.default_dtype())
  folder = default_cache() if cache == DEFAULT_CACHE else Path(expand(cache)) if cache else None
  index = PromptIndex.build(model, prompts, labels, cache=folder)
  facts = index.facts
  if empty := int((~facts.holds.any(axis=1)).sum()):
    print(f"{empty} of {len(prompts)} labeled images hold no class and cannot be prompts")
  if holds is not None:
    conditions = by_class(holds, facts)
  mappings = choose(queries, prompts, facts, options, index=index, conditions=conditions)
  for path, mapping in zip(written, mappings, strict=False):
    outputs.write_json(path, mapping)
  print(f"written: {', '.join(map(str, written))}")


def choose(
  queries: Sequence[Query],
  prompts: Sequence[PromptFiles],
  facts: Facts,
  options: ChoiceOptions,
  *,
  index: PromptIndex | None = None,
  conditions: Conditions | None = None,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Chooses the prompts of every query.

  A query that is among the labeled images, as the same file or as a copy, never prompts itself. Labeled images without
  any class are never chosen. Scores are held for one batch of queries at a time.

  Args:
    queries: images to choose prompts for.
    prompts: labeled images to choose from.
    facts: contents of the labeled images.
    options: how prompts are chosen.
    index: index of the labeled images, which gives their scores; without it prompts are drawn at random.
    conditions: which prompts are positive and negative for which query; without it all are positive.

  Returns:
    Two mappings {query file: [prompt files, best first]}, of positive and of negative prompts. The second is empty
    unless `options.negatives` is set.

  Raises:
    InputError: a query cannot be read or has no candidate.
  """
  shows, digests = facts.holds.any(axis=1), np.array(facts.digests)
  paths = np.array([os.path.realpath(prompt.image) for prompt in prompts])

  def pick(query: Query, candidates: np.ndarray, scores: np.ndarray | None, wanted: str) -> list[str]:
    if not candidates.any():
      raise InputError(f"{query.image}: found no labeled image that can be {wanted}, expected at least one")
    if scores is None:
      chosen = ranking.at_random(candidates, options.top_k, options.seed, query.name)
    else:
      chosen = ranking.most_relevant(scores, candidates, options.top_k, options.diversity, index.likeness_to)
    return [prompts[place].written for place in chosen]

  positive: dict[str, list[str]] = {}
  negative: dict[str, list[str]] = {}
  bar = tqdm(scored(queries, index), "choose", len(queries), unit="query")
  for number, (query, (own_digest, scores)) in enumerate(zip(queries, bar, strict=True)):
    key, others = query.written, shows & (digests != own_digest) & (paths != os.path.realpath(query.image))
    if conditions is None:
      positive[key] = pick(query, others, scores, "its prompt")
      continue
    related = conditions.prompts[:, conditions.queries[number]].any(axis=1)
    unrelated, name = conditions.prompts.any(axis=1) & ~related, conditions.names[number]
    positive[key] = pick(query, others & related, scores, f"its prompt: one of its {name}")
    if options.negatives:
      scores = None if options.negatives == "random" else scores
      negative[key] = pick(query, others & unrelated, scores, f"its negative prompt: one not of its {name}")
  return positive, negative


def scored(queries: Sequence[Query], index: PromptIndex | None) -> Iterator[tuple[str, np.ndarray | None]]:
  """Yields the digest of each query's file and, with an index, the scores of all prompts for it.

  Args:
    queries: images to segment.
    index: index of the labeled images; None yields no scores.

  Raises:
    InputError: a query cannot be read.
  """
  digests: collections.deque[str] = collections.deque()

  def read(query: Query) -> tuple[str, np.ndarray | None]:
    data = read_bytes(query.image)
    return digest(data), None if index is None else decode_image(data, str(query.image))

  found = (future.result() for _, future in read_ahead(read, queries, ahead=_AHEAD))
  if index is None:
    yield from found
    return

  def images() -> Iterator[np.ndarray]:
    for name, image in found:
      digests.append(name)
      yield image

  for scores in index.score_many(images()):
    yield digests.popleft(), scores
