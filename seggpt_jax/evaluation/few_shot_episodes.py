"""Draws the episodes of the few-shot benchmarks: a dataset's listing in, queries with their prompts out.

Episodes are drawn like in the published test code of HSNet (Min et al., 2021, arXiv 2104.01538), which others have
adopted: NumPy's legacy generator with one seed for each fold, one draw for each prompt, and a new draw if the prompt is
the query. Hence a query can have the same prompt twice. If the listing is in the published order, the episodes are the
published ones. All functions depend on their arguments only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seggpt_jax.errors import InputError


class Episode(NamedTuple):
  """A query and its prompts, as indices into the dataset, and the class that is asked for."""

  class_index: int
  query: int
  prompts: tuple[int, ...]


def in_turn(
  queries: Sequence[tuple[int, int]], pools: Mapping[int, Sequence[int]], count: int, shots: int, seed: int
) -> list[Episode]:
  """Returns episodes whose queries come in turn, starting over at the end, with prompts drawn at random.

  Args:
    queries: (sample, class) pairs in order.
    pools: samples of each class that prompts are drawn from, in order.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
  """
  generator = np.random.RandomState(seed)
  episodes = []
  for index in range(count):
    query, class_index = queries[index % len(queries)]
    episodes.append(Episode(class_index, query, _prompts(generator, pools[class_index], query, shots)))
  return episodes


def at_random(
  classes: Sequence[int], pools: Mapping[int, Sequence[int]], count: int, shots: int, seed: int
) -> list[Episode]:
  """Returns episodes whose class, query and prompts are all drawn at random.

  Args:
    classes: classes of the fold, in order.
    pools: samples of each class that queries and prompts are drawn from, in order.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
  """
  generator = np.random.RandomState(seed)
  episodes = []
  for _ in range(count):
    class_index = classes[_draw(generator, len(classes))]
    query = pools[class_index][_draw(generator, len(pools[class_index]))]
    episodes.append(Episode(class_index, query, _prompts(generator, pools[class_index], query, shots)))
  return episodes


def evenly_spread(episodes: Sequence[Episode], count: int | None) -> list[Episode]:
  """Returns a number of episodes, evenly spread over all of them; None for all."""
  if count is None or count >= len(episodes):
    return list(episodes)
  return [episodes[index * len(episodes) // count] for index in range(count)]


def check_pools(classes: Sequence[int], pools: Mapping[int, Sequence[int]], shots: int, names: Mapping[int, str]):
  """Checks that every class has enough samples for a query and its prompts.

  Raises:
    InputError: a class has too few; names the class.
  """
  for index in classes:
    if len(pools.get(index, ())) <= shots:
      raise InputError(
        f"class {names[index]}: found {len(pools.get(index, ()))} images of it, expected at least {shots + 1} for "
        f"--shots {shots}: a query and its prompts"
      )


def digest(episodes: Sequence[Episode], names: Sequence[str]) -> str:
  """Returns a short hash of the episodes, which tells runs with other episodes apart.

  Args:
    episodes: episodes of a fold.
    names: names of all samples of the dataset.
  """
  listing = hashlib.sha256()
  for episode in episodes:
    listing.update(f"{episode.class_index}\0{names[episode.query]}".encode())
    listing.update("".join(f"\0{names[prompt]}" for prompt in episode.prompts).encode() + b"\n")
  return listing.hexdigest()[:16]


def _prompts(generator: np.random.RandomState, pool: Sequence[int], query: int, shots: int) -> tuple[int, ...]:
  chosen: list[int] = []
  while len(chosen) < shots:
    prompt = pool[_draw(generator, len(pool))]
    if prompt != query:
      chosen.append(prompt)
  return tuple(chosen)


def _draw(generator: np.random.RandomState, count: int) -> int:
  # `replace=False` makes no difference for a single draw, but it takes other numbers from the generator, and the
  # published episodes are drawn with it.
  return int(generator.choice(count, 1, replace=False)[0])
