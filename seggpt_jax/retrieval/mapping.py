"""Chooses the prompts of every query among labeled images, and writes them as mapping files.

In: queries and labeled images. Out: for `seggpt infer`, queries with the best prompts that together show every class;
for `seggpt retrieve`, a JSON file {query file: [prompt files, best first]} and, if asked for, a second one with
negative prompts, which show nothing that the query shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float
from tqdm import tqdm

from seggpt_jax.data.groups import group_names
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.files import cache_folder, expand, writing
from seggpt_jax.formats.images import decode_image, read_bytes
from seggpt_jax.formats.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.formats.layouts import Item
from seggpt_jax.inference import outputs, tiling
from seggpt_jax.inference.queries import PromptFiles, Query, files_of, list_queries
from seggpt_jax.model import parameters, weights
from seggpt_jax.retrieval.labeled_images import Facts, digest, held_classes, list_prompts
from seggpt_jax.retrieval.prompt_index import PromptIndex, best_of
from seggpt_jax.written import check_outputs

_AHEAD = 16  # queries that are read before they are needed
DEFAULT_CACHE = "~/.cache/seggpt_jax"


class Conditions(NamedTuple):
  """The keys of queries and prompts; a key is a class or a group.

  A prompt is positive for a query if the two have a key in common. It is negative if it has keys, but none in common.
  """

  queries: Bool[np.ndarray, "queries keys"]  # whether each query has each key
  prompts: Bool[np.ndarray, "prompts keys"]  # whether each prompt has each key
  names: list[str]  # the keys of each query in words, for errors


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
    raise InputError(f"--groups: found {spec!r}, expected prefix:SEP, csv:FILE, classes or class")
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

  Raises:
    InputError: a query has no label, or the label cannot be read or holds no class.
  """
  _check_truths(queries, "--groups=class")
  found = read_ahead(lambda query: held_classes(read_labels(query.truth, labels)), queries)
  holds = np.stack([future.result() for _, future in found])
  for query, held in zip(queries, holds, strict=True):
    if not held.any():
      raise InputError(f"{query.truth}: found no class in it, expected one to choose prompts by (--groups=class)")
  return holds


def by_class(holds: Bool[np.ndarray, "queries classes"], facts: Facts) -> Conditions:
  """Returns conditions by class: positive prompts share a class with the query, negative ones none."""
  return Conditions(holds, facts.holds, [f"classes {'+'.join(map(str, np.flatnonzero(held)))}" for held in holds])


def _check_truths(queries: Sequence[Query], flag: str) -> None:
  for query in queries:
    if query.truth is None:
      raise InputError(f"{query.image}: found no label for it, expected labels/{query.name}.* next to images/ ({flag})")


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
  top_k: int = 1,
  groups: str | None = None,
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
    top_k: largest number of prompts for each query.
    groups: positive prompts come from the query's group: "prefix:SEP", "csv:FILE", "classes", or share a "class".
    negative_output: JSON file for the negative prompts; needs `groups`.
    cache: folder where features of labeled images are kept; None to keep none.

  Raises:
    InputError: a file is missing or cannot be read, or a query has no candidate.
  """
  queries = list_queries(dataset_dir, apart=(prompt_img_dir, prompt_label_dir))
  prompts = list_prompts(prompt_img_dir, prompt_label_dir)
  # Problems with the queries are reported before the labeled images are encoded, which can take minutes.
  holds = classes_of(queries, labels) if groups == "class" else None
  conditions = by_group(queries, prompts, groups, labels) if groups and holds is None else None
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
  conditions = conditions if holds is None else by_class(holds, facts)
  mappings = choose(
    queries, prompts, facts, top_k, index=index, conditions=conditions, negatives=negative_output is not None
  )
  for path, mapping in zip(written, mappings, strict=False):
    outputs.write_json(path, mapping)
  print(f"written: {', '.join(map(str, written))}")


def choose(
  queries: Sequence[Query],
  prompts: Sequence[PromptFiles],
  facts: Facts,
  top_k: int = 1,
  *,
  index: PromptIndex | None = None,
  conditions: Conditions | None = None,
  negatives: bool = False,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Chooses the prompts of every query.

  A query that is among the labeled images, as the same file or as a copy, never prompts itself. Labeled images without
  any class are never chosen. Scores are held for one batch of queries at a time.

  Args:
    queries: images to choose prompts for.
    prompts: labeled images to choose from.
    facts: contents of the labeled images.
    top_k: largest number of prompts for each query.
    index: index of the labeled images, which gives their scores; without it prompts are drawn at random.
    conditions: which prompts are positive and negative for which query; without it all are positive.
    negatives: whether negative prompts are chosen too, those with the highest scores; needs `conditions`.

  Returns:
    Two mappings {query file: [prompt files, best first]}, of positive and of negative prompts.

  Raises:
    InputError: a query cannot be read or has no candidate.
  """
  shows = facts.holds.any(axis=1)

  def pick(query: Query, candidates: np.ndarray, scores: np.ndarray | None, wanted: str) -> list[str]:
    if not candidates.any():
      raise InputError(f"{query.image}: found no labeled image that can be {wanted}, expected at least one")
    if scores is None:  # the draw of a query is independent of other queries
      scores = np.random.default_rng(zlib.crc32(query.name.encode(errors="surrogatepass"))).random(len(prompts))
    return [prompts[place].written for place in best_of(scores, candidates, top_k)]

  positive: dict[str, list[str]] = {}
  negative: dict[str, list[str]] = {}
  for number, (query, free, scores) in enumerate(_scored(queries, prompts, facts, index)):
    key, others = query.written, shows & free
    if conditions is None:
      positive[key] = pick(query, others, scores, "its prompt")
      continue
    related = conditions.prompts[:, conditions.queries[number]].any(axis=1)
    unrelated, name = conditions.prompts.any(axis=1) & ~related, conditions.names[number]
    positive[key] = pick(query, others & related, scores, f"its prompt: one of its {name}")
    if negatives:
      negative[key] = pick(query, others & unrelated, scores, f"its negative prompt: one not of its {name}")
  return positive, negative


def _scored(
  queries: Sequence[Query], prompts: Sequence[PromptFiles], facts: Facts, index: PromptIndex | None
) -> Iterator[tuple[Query, Bool[np.ndarray, "n"], np.ndarray | None]]:
  """Yields each query, the prompts that are other images, and, with an index, the scores of all prompts for it."""
  known, paths = np.array(facts.digests), np.array([os.path.realpath(prompt.image) for prompt in prompts])

  def read(query: Query) -> tuple[str, np.ndarray | None]:
    data = read_bytes(query.image)
    image = None if index is None else tiling.resize_image(decode_image(data, str(query.image)), index.encoder.size)
    return digest(data), image

  found, images = itertools.tee(future.result() for _, future in read_ahead(read, queries, ahead=_AHEAD))
  scores = itertools.repeat(None) if index is None else index.score_many(image for _, image in images)
  bar = tqdm(zip(queries, found, scores, strict=False), "choose", len(queries), unit="query", delay=1)
  for query, (own, _), each in bar:
    yield query, (known != own) & (paths != os.path.realpath(query.image)), each


def prompt_every_class(
  queries: Sequence[Query], prompts: Sequence[PromptFiles], facts: Facts, count: int, index: PromptIndex | None = None
) -> list[Query]:
  """Returns the queries with prompts that show every class.

  A query that is among the labeled images, as the same file or as a copy, prompts itself only for classes that no other
  image shows; such a query is not scored (see `inference.scores`).

  Args:
    queries: images to segment.
    prompts: labeled images to choose from.
    facts: contents of the labeled images.
    count: number of prompts of each query; if there are fewer classes, further prompts show them again.
    index: index that ranks them by similarity; without it, images all over the list serve all queries.

  Raises:
    InputError: no labeled image shows a class, or a query cannot be read.
  """
  if not facts.holds.any():
    raise InputError(f"{prompts[0].labels.parent}: found no class in {len(prompts)} label maps, expected some")
  # Golden-ratio steps: neighbors in the list, which are often alike, are far apart in this order.
  spread = -((np.arange(len(prompts)) * 0.618034) % 1.0)
  found = []
  for query, free, scores in _scored(queries, prompts, facts, index):
    others = facts.holds & free[:, None]
    scores = spread if scores is None else scores
    allowed = np.where(others.any(axis=0), others, facts.holds)
    chosen = in_turn(allowed, np.where(free, scores, scores.min() - 1), count)
    found.append(dataclasses.replace(query, prompts=tuple(prompts[place] for place in chosen)))
  return found


def in_turn(holds: Bool[np.ndarray, "n classes"], scores: Float[np.ndarray, "n"], count: int) -> list[int]:
  """Chooses the best images that together show every class, then the best that show again what was shown least.

  Args:
    holds: whether each image shows each class.
    scores: score of each image, larger is better.
    count: number of images to choose.

  Returns:
    Indices of images; an image is chosen again only when all of its class are chosen.
  """
  known = holds[:, holds.any(axis=0)]
  times, shown, chosen = np.zeros(len(holds), int), np.zeros(known.shape[1], int), list[int]()
  while len(shown) and len(chosen) < count:
    wanted = known & (shown == shown.min())
    fewest = np.where(wanted.any(axis=1), times, count).min()
    best = int(np.argmax(np.where(wanted.any(axis=1) & (times == fewest), scores, -np.inf)))
    times[best], shown = times[best] + 1, shown + known[best]
    chosen.append(best)
  return chosen


def warn_of_left_out(queries: Sequence[Query], prompts: Sequence[PromptFiles], facts: Facts) -> None:
  """Warns of classes that labeled images show and the prompts of some queries do not.

  Where each image shows one class, prompts like the query are expected to show that one alone.
  """
  place = {prompt: number for number, prompt in enumerate(prompts)}
  shown = np.stack([facts.holds[[place[each] for each in query.prompts]].any(axis=0) for query in queries])
  known = facts.holds.any(axis=0)
  some, one_each = int((known & ~shown).any(axis=1).sum()), facts.holds.sum(axis=1).max() == 1
  if some and not (one_each and shown.any(axis=0)[known].all()):
    never = ", ".join(map(str, np.flatnonzero(known & ~shown.any(axis=0)).tolist()))
    logging.warning(
      "the prompts of %d of %d images show only some of the %d classes%s; --top-k=%d shows all",
      *(some, len(queries), known.sum(), f", and none shows class {never}" if never else "", known.sum()),
    )
