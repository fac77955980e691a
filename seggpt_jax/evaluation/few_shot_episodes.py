"""Which prompts serve which query in the few-shot benchmarks: a dataset's listing in, episodes out.

Drawn as the published code of HSNet (Min et al., 2021, arXiv 2104.01538) draws them when it tests, which the field has
taken over: NumPy's legacy generator with one seed for each fold, one draw for each prompt, drawn again when it is the
query. So a prompt may come twice among several, and the episodes of a listing are the published ones as long as the
listing is in the published order. Pure functions of their arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seggpt_jax.errors import InputError


class Episode(NamedTuple):
  """A query and its prompts, as places in the dataset, and the class that is asked for."""

  class_index: int
  query: int
  prompts: tuple[int, ...]


def in_turn(
  queries: Sequence[tuple[int, int]], pools: Mapping[int, Sequence[int]], count: int, shots: int, seed: int
) -> list[Episode]:
  """Every query in its turn, again from the first when they run out; prompts at random.

  Args:
    queries: (sample, class), in order.
    pools: of each class the samples that prompts are drawn from, in order.
    count: of episodes.
    shots: prompts of each.
    seed: of the draws.
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
  """A class, one of its samples as the query, and prompts, all at random.

  Args:
    classes: those of the fold, in order.
    pools: see `in_turn`.
    count: likewise.
    shots: likewise.
    seed: likewise.
  """
  generator = np.random.RandomState(seed)
  episodes = []
  for _ in range(count):
    class_index = classes[_draw(generator, len(classes))]
    query = pools[class_index][_draw(generator, len(pools[class_index]))]
    episodes.append(Episode(class_index, query, _prompts(generator, pools[class_index], query, shots)))
  return episodes


def spread(episodes: Sequence[Episode], count: int | None) -> list[Episode]:
  """So many of them, evenly spread, for a quick look; None takes all."""
  if count is None or count >= len(episodes):
    return list(episodes)
  return [episodes[index * len(episodes) // count] for index in range(count)]


def check_pools(classes: Sequence[int], pools: Mapping[int, Sequence[int]], shots: int, names: Mapping[int, str]):
  """Raises InputError, naming the class, where one has too few samples for a query and its prompts."""
  for index in classes:
    if len(pools.get(index, ())) <= shots:
      raise InputError(
        f"class {names[index]}: found {len(pools.get(index, ()))} images of it, expected at least {shots + 1} for "
        f"--shots {shots}: a query and its prompts"
      )


def digest(episodes: Sequence[Episode], names: Sequence[str]) -> str:
  """A short name for exactly these episodes of these samples, by which parts of one run know each other.

  Args:
    episodes: the episodes.
    names: of all samples.
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
  # Without replacement, though it is a single one: that takes other numbers from the generator than with, and the
  # published episodes are drawn so.
  return int(generator.choice(count, 1, replace=False)[0])
