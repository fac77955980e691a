"""Draws the episodes of the few-shot benchmarks: a dataset's listing in, queries with their prompts out.

Episodes are drawn like in the published test code of HSNet (Min et al., 2021, arXiv 2104.01538), which others have
adopted: NumPy's legacy generator with one seed for each fold, one draw for each prompt, and a new draw if the prompt is
the query. Hence a query can have the same prompt twice. If the
listing is in the published order, the episodes are the published ones. All functions depend on their arguments only.
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


class Pools(NamedTuple):
  """The images that queries and prompts are drawn from.

  Attributes:
    images: images that show each class, in order.
  """

  images: Mapping[int, Sequence[int]]


def in_turn(queries: Sequence[tuple[int, int]], pools: Pools, count: int, shots: int, seed: int) -> list[Episode]:
  """Returns episodes whose queries come in turn, starting over at the end, with prompts drawn at random.

  Args:
    queries: (image, class) pairs in order.
    pools: images that prompts are drawn from.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
  """
  generator = np.random.RandomState(seed)
  episodes = []
  for index in range(count):
    query, class_index = queries[index % len(queries)]
    episodes.append(Episode(class_index, query, _prompts(generator, pools, class_index, query, shots)))
  return episodes


def at_random(classes: Sequence[int], pools: Pools, count: int, shots: int, seed: int) -> list[Episode]:
  """Returns episodes whose class, query and prompts are all drawn at random.

  Args:
    classes: classes of the fold, in order.
    pools: images that queries and prompts are drawn from.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
  """
  generator = np.random.RandomState(seed)
  return [_drawn(generator, pools, classes[_draw(generator, len(classes))], shots) for _ in range(count)]


def class_by_class(classes: Sequence[int], pools: Pools, count: int, shots: int, seed: int) -> list[Episode]:
  """Returns episodes whose classes come in turn, with query and prompts drawn at random.

  Args:
    classes: classes of the fold, in order.
    pools: images that queries and prompts are drawn from.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
  """
  generator = np.random.RandomState(seed)
  return [_drawn(generator, pools, classes[index % len(classes)], shots) for index in range(count)]


def evenly_spread(episodes: Sequence[Episode], count: int | None) -> list[Episode]:
  """Returns a number of episodes, evenly spread over all of them; None for all."""
  if count is None or count >= len(episodes):
    return list(episodes)
  return [episodes[index * len(episodes) // count] for index in range(count)]


def check_pools(classes: Sequence[int], pools: Pools, shots: int, names: Mapping[int, str]) -> None:
  """Checks that every class has enough images for a query and its prompts.

  Raises:
    InputError: a class has too few; names the class.
  """
  for index in classes:
    if (found := len(set(pools.images.get(index, ())))) <= shots:
      raise InputError(
        f"class {names[index]}: found {found} images of it, expected at least {shots + 1} for --shots {shots}: a query "
        "and its prompts"
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


def _drawn(generator: np.random.RandomState, pools: Pools, class_index: int, shots: int) -> Episode:
  images = pools.images[class_index]
  query = images[_draw(generator, len(images))]
  return Episode(class_index, query, _prompts(generator, pools, class_index, query, shots))


def _prompts(
  generator: np.random.RandomState, pools: Pools, class_index: int, query: int, shots: int
) -> tuple[int, ...]:
  images, chosen = pools.images[class_index], []
  while len(chosen) < shots:
    image = images[_draw(generator, len(images))]
    if image != query:
      chosen.append(image)
  return tuple(chosen)


def _draw(generator: np.random.RandomState, count: int) -> int:
  # `replace=False` makes no difference for a single draw, but it takes other numbers from the generator, and the
  # published episodes are drawn with it.
  return int(generator.choice(count, 1, replace=False)[0])
