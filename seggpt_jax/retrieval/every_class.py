"""Chooses prompts that together show every class, for queries of which nobody knows what they show.

In: queries and labeled images. Out: the same queries with prompts: the most similar ones that together show every
class, as many as asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Float
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.retrieval.labeled_images import Facts
from seggpt_jax.retrieval.mapping import scored
from seggpt_jax.retrieval.prompt_index import PromptIndex


def prompt_every_class(
  queries: Sequence[Query], prompts: Sequence[PromptFiles], facts: Facts, count: int, index: PromptIndex | None = None
) -> list[Query]:
  """Returns the queries with prompts that show every class.

  A query that is among the labeled images, as the same file or as a copy, prompts itself only for classes that no other
  image shows; such a query is not scored (see `inference.report`).

  Args:
    queries: images to segment.
    prompts: labeled images to choose from.
    facts: contents of the labeled images.
    count: number of prompts of each query; if there are fewer classes, further prompts show them again.
    index: index of the labeled images, which ranks them by similarity; without it, images all over the list are taken,
      the same for all queries.

  Raises:
    InputError: no labeled image shows a class, or a query cannot be read.
  """
  if not facts.holds.any():
    raise InputError(f"{prompts[0].labels.parent}: found no class in {len(prompts)} label maps, expected some")
  paths = np.array([os.path.realpath(prompt.image) for prompt in prompts])
  digests = np.array(facts.digests)
  # Golden-ratio steps: neighbors in the list, which are often alike, are far apart in this order.
  spread = -((np.arange(len(prompts)) * 0.618034) % 1.0)
  found = []
  bar = tqdm(scored(queries, index), "choose", len(queries), unit="query", delay=1)  # no bar for a second's work
  for query, (own, scores) in zip(queries, bar, strict=True):
    free = (digests != own) & (paths != os.path.realpath(query.image))
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
  """Warns of classes that labeled images show and the prompts of some queries do not."""
  place = {prompt: number for number, prompt in enumerate(prompts)}
  shown = np.stack([facts.holds[[place[each] for each in query.prompts]].any(axis=0) for query in queries])
  known = facts.holds.any(axis=0)
  if some := int((known & ~shown).any(axis=1).sum()):
    never = ", ".join(map(str, np.flatnonzero(known & ~shown.any(axis=0)).tolist()))
    logging.warning(
      "the prompts of %d of %d images show only some of the %d classes%s; --top-k=%d shows all, where images hold many",
      *(some, len(queries), known.sum(), f", and none shows class {never}" if never else "", known.sum()),
    )
