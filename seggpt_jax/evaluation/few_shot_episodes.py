"""Draws the episodes of the few-shot benchmarks: a dataset's listing in, queries with their prompts out.

Episodes are drawn like in the published test code of HSNet (Min et al., 2021, arXiv 2104.01538), which others have
adopted: NumPy's legacy generator with one seed for each fold, one draw for each prompt, and a new draw if the prompt is
the query. Hence a query can have the same prompt twice, except where the published code of a benchmark differs. If the
listing is in the published order, the episodes are the published ones. All functions depend on their arguments only.

Where a benchmark asks for parts of one object, an image is drawn first and one of its objects second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
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
    objects: function that returns the samples of a class in an image, in order, one for each object; None stands for an
      object that has no sample, which is drawn again. By default the only sample of image i is i.
    distinct: whether the prompts of a query are of different images.
  """

  images: Mapping[int, Sequence[int]]
  objects: Callable[[int, int], Sequence[int | None]] | None = None
  distinct: bool = False

  def samples(self, class_index: int, image: int) -> Sequence[int | None]:
    """Returns the samples of a class in an image."""
    return (image,) if self.objects is None else self.objects(class_index, image)

  def num_usable(self, class_index: int) -> int:
    """Returns the number of different images that have a sample of a class."""
    images = set(self.images.get(class_index, ()))
    return sum(any(sample is not None for sample in self.samples(class_index, image)) for image in images)


def in_turn(queries: Sequence[tuple[int, int]], pools: Pools, count: int, shots: int, seed: int) -> list[Episode]:
  """Returns episodes whose queries come in turn, starting over at the end, with prompts drawn at random.

  Args:
    queries: (image, class) pairs in order.
    pools: images that prompts are drawn from; every image is one sample.
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
    if (found := pools.num_usable(index)) <= shots:
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
  image, query = _sample(generator, pools, class_index, ())
  return Episode(class_index, query, _prompts(generator, pools, class_index, image, shots))


def _prompts(
  generator: np.random.RandomState, pools: Pools, class_index: int, query_image: int, shots: int
) -> tuple[int, ...]:
  chosen: list[int] = []
  taken = {query_image}
  while len(chosen) < shots:
    image, sample = _sample(generator, pools, class_index, taken)
    chosen.append(sample)
    if pools.distinct:
      taken.add(image)
  return tuple(chosen)


def _sample(
  generator: np.random.RandomState, pools: Pools, class_index: int, taken: Collection[int]
) -> tuple[int, int]:
  """Draws an image that is not taken, and a sample in it."""
  images = pools.images[class_index]
  while True:
    image = images[_draw(generator, len(images))]
    if image in taken:
      continue
    samples = pools.samples(class_index, image)
    # Drawing one of one takes no number from the generator, so images without objects need no case of their own.
    sample = samples[_draw(generator, len(samples))] if samples else None
    if sample is not None:
      return image, sample


def _draw(generator: np.random.RandomState, count: int) -> int:
  # `replace=False` makes no difference for a single draw, but it takes other numbers from the generator, and the
  # published episodes are drawn with it.
  return int(generator.choice(count, 1, replace=False)[0])
