"""The samples and the episodes of a few-shot benchmark: what a reader of a dataset returns and an evaluation runs.

Episodes are drawn like in the published test code of HSNet (Min et al., 2021, arXiv 2104.01538), which others have
adopted: NumPy's legacy generator with one seed for each fold, one draw for each prompt, and a new draw if the prompt is
the query. Hence a query can have the same prompt twice. If the listing is in the published order, the episodes are the
published ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.sources import EncodedSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import decode_image
from seggpt_jax.formats.labels import IGNORE
from seggpt_jax.inference import tiling


class Episode(NamedTuple):
  """A query and its prompts, as indices into the dataset, and the class that is asked for."""

  class_index: int
  query: int
  prompts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Samples:
  """The samples of a benchmark. One sample can be asked for several classes."""

  source: EncodedSource
  own_class: bool = False  # whether each label file is the mask of one class, instead of class indices
  stretched: bool = False  # whether images may be stored at another size than their labels, which they then get

  def __len__(self) -> int:
    return len(self.source)

  def name(self, sample: int) -> str:
    return self.source.name(sample)

  def read(self, sample: int, class_index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Reads an image and its mask of a class: 1 where the class is, IGNORE where the label is ignored.

    Raises:
      InputError: a file is missing, cannot be read, or has another size than its image; names the file.
    """
    if self.stretched:
      image, label = decode_image(*self.source.encoded_image(sample)), self.source.label(sample)
      image = image if image.shape[:2] == label.shape else tiling.resize_image(image, label.shape)
    else:
      read = self.source[sample]
      image, label = read["image"], read["label"]
    mask = (label == (1 if self.own_class else class_index)).astype(np.uint8)
    mask[label == IGNORE] = IGNORE
    return image, mask


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotData:
  """A benchmark with its classes, folds and the plan of its episodes.

  If there are `queries`, (sample, class) pairs of each fold in order, they come in turn. Otherwise queries are drawn at
  random, and their classes in turn or at random.
  """

  samples: Samples
  class_names: Mapping[int, str]
  folds: Mapping[int, Sequence[int]]  # classes of each fold
  pools: Mapping[int, Sequence[int]]  # samples that show each class, in order, from which prompts are drawn
  num_episodes: Mapping[int, int]  # of each fold
  queries: Mapping[int, Sequence[tuple[int, int]]] | None = None
  classes_in_turn: bool = False
  notes: tuple[str, ...] = ()  # sentences to print below the results
  comparable: bool = True  # whether published results use the same classes

  def episodes(self, fold: int, shots: int, seed: int = 0, count: int | None = None) -> list[Episode]:
    """Returns the episodes of a fold, the same ones for the same files and arguments.

    Args:
      fold: a key of `folds`.
      shots: number of prompts per query.
      seed: seed of the draws.
      count: number of episodes to keep, evenly spread. By default all are kept.

    Raises:
      InputError: there is no such fold, or one of its classes has too few images.
    """
    if fold not in self.folds:
      raise InputError(f"--fold: found {fold}, expected some of {', '.join(map(str, self.folds))}")
    classes, total = self.folds[fold], self.num_episodes[fold]
    for index in classes:
      if (found := len(set(self.pools.get(index, ())))) <= shots:
        raise InputError(
          f"class {self.class_names[index]}: found {found} images of it, expected at least {shots + 1} for --shots "
          f"{shots}: a query and its prompts"
        )
    queries = None if self.queries is None else self.queries[fold]
    drawn = draw_episodes(self.pools, total, shots, seed, queries or classes, in_turn=self.classes_in_turn)
    if count is None or count >= total:
      return drawn
    return [drawn[index * total // count] for index in range(count)]


def draw_episodes(
  pools: Mapping[int, Sequence[int]],
  count: int,
  shots: int,
  seed: int,
  asked: Sequence[int] | Sequence[tuple[int, int]],
  *,
  in_turn: bool = False,
) -> list[Episode]:
  """Draws the episodes of a fold.

  Args:
    pools: the samples that show each class, in order.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
    asked: (sample, class) pairs, which are the queries in turn, starting over at the end; or the classes of the fold,
      of which queries are drawn.
    in_turn: whether classes come in turn; otherwise they are drawn too.
  """
  generator = np.random.RandomState(seed)

  def draw(items: Sequence) -> int:
    # `replace=False` makes no difference for a single draw, but it takes other numbers from the generator, and the
    # published episodes are drawn with it.
    return items[int(generator.choice(len(items), 1, replace=False)[0])]

  episodes = []
  for index in range(count):
    if isinstance(asked[0], tuple):
      query, class_index = asked[index % len(asked)]
    else:
      class_index = asked[index % len(asked)] if in_turn else draw(asked)
      query = draw(pools[class_index])
    prompts: list[int] = []
    while len(prompts) < shots:
      if (prompt := draw(pools[class_index])) != query:
        prompts.append(prompt)
    episodes.append(Episode(class_index, query, tuple(prompts)))
  return episodes


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
