"""Chooses prompts that together show every class, for queries of which nobody knows what they show.

In: queries and labeled images. Out: the same queries with prompts: one for each class in turn, the most similar ones
first, as many as the cells of the network's prompts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
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
  for query, (own, scores) in zip(
    queries, tqdm(scored(queries, index), "choose", len(queries), unit="query"), strict=True
  ):
    free = (digests != own) & (paths != os.path.realpath(query.image))
    others = facts.holds & free[:, None]
    chosen = in_turn(np.where(others.any(axis=0), others, facts.holds), spread if scores is None else scores, count)
    found.append(dataclasses.replace(query, prompts=tuple(prompts[place] for place in chosen)))
  return found


def in_turn(holds: Bool[np.ndarray, "n classes"], scores: Float[np.ndarray, "n"], count: int) -> list[int]:
  """Chooses images of one class after the other, each time the best one that is not chosen yet.

  Args:
    holds: whether each image shows each class.
    scores: score of each image, larger is better.
    count: number of images to choose.

  Returns:
    Indices of images; an image is chosen again only when all of its class are chosen.
  """
  order = np.argsort(-scores, kind="stable")
  ranked = {index: order[holds[order, index]].tolist() for index in np.flatnonzero(holds.any(axis=0)).tolist()}
  chosen: list[int] = []
  while ranked and len(chosen) < count:
    for images in list(ranked.values())[: count - len(chosen)]:
      times = [chosen.count(image) for image in images]
      chosen.append(images[times.index(min(times))])
  return chosen
