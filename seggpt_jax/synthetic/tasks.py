"""An endless stream of in-context tasks: pairs in which only the mask of the prompt defines the classes.

A task draws pictures of one family and picks some of their kinds as classes; the rest is background. The i-th pair
depends only on (seed, i), so a pretraining run can stop and resume anywhere. The difficulty grows with i.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.sources import Sample
from seggpt_jax.data.transforms import EvaluationPair, Pair, TrainingPair
from seggpt_jax.synthetic import families

# Kinds that cover a smaller share of a picture are never classes.
_LEAST_SHARE = 0.006
# Second half of the seeds of evaluation tasks.
_EVALUATION = 0x5E66


@dataclasses.dataclass(frozen=True)
class Episode:
  """Pictures of the same kinds of things: first the prompts, last the query.

  Attributes:
    images: uint8 [n, size, size, 3].
    kinds: uint8 [n, size, size], 0 for the background.
    family: name of the family that drew it.
  """

  images: UInt8[np.ndarray, "n size size 3"]
  kinds: UInt8[np.ndarray, "n size size"]
  family: str

  def shares(self) -> np.ndarray:
    """Returns the share of each picture that each kind covers, [n, kinds]."""
    num = int(self.kinds.max()) + 1
    return np.stack([np.bincount(kinds.ravel(), minlength=num) / kinds.size for kinds in self.kinds])

  def present(self, least: float = _LEAST_SHARE) -> np.ndarray:
    """Lists the kinds, without 0, that cover at least a given share of every picture."""
    kinds = np.flatnonzero(self.shares().min(axis=0) >= least)
    return kinds[kinds > 0]

  def labels(self, chosen: np.ndarray | list[int]) -> UInt8[np.ndarray, "n size size"]:
    """Returns labels: i + 1 for the i-th chosen kind, 0 elsewhere."""
    table = np.zeros(256, np.uint8)
    table[np.asarray(chosen)] = np.arange(1, len(chosen) + 1)
    return table[self.kinds]


def _light(generator: np.random.Generator, image: np.ndarray, amount: float) -> UInt8[np.ndarray, "h w 3"]:
  """Applies random brightness, contrast, color cast, blur and noise to a picture."""
  gain = 1 + amount * generator.normal(0, 0.12) + amount * generator.normal(0, 0.05, 3)
  image = (image - 127.5) * gain.astype(np.float32) + np.float32(127.5 + amount * generator.normal(0, 14))
  if generator.random() < 0.3:
    side = 0.25 * generator.random()
    middle = image[1:-1, 1:-1]
    around = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]
    image[1:-1, 1:-1] = (1 - 4 * side * 0.8) * middle + side * 0.8 * around
  if generator.random() < 0.5:
    image = image + generator.standard_normal(image.shape, dtype=np.float32) * np.float32(6 * generator.random())
  return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_episode(
  family: str | families.Family,
  generator: np.random.Generator,
  size: int,
  num_images: int,
  difficulty: float,
) -> Episode:
  """Draws pictures of one family, each in its own light.

  Args:
    family: name in `families.FAMILIES`, or a function.
    generator: source of randomness.
    size: side of the pictures in pixels.
    num_images: number of prompts, plus one for the query.
    difficulty: 0..1.
  """
  draw = families.FAMILIES[family][0] if isinstance(family, str) else family
  scenes = draw(generator, size, num_images, difficulty)
  images = np.stack([_light(generator, image, difficulty) for image in scenes.images])
  return Episode(images, np.stack(scenes.kinds), family if isinstance(family, str) else family.__name__)


def _another_view(generator: np.random.Generator, episode: Episode, difficulty: float) -> Episode:
  """Replaces the last picture by another view of the first: mirrored, rotated, shifted, in another light."""
  image, kinds = episode.images[0], episode.kinds[0]
  if generator.random() < 0.5:
    image, kinds = image[:, ::-1], kinds[:, ::-1]
  turns = int(generator.integers(4))
  image, kinds = np.rot90(image, turns), np.rot90(kinds, turns)
  shift = tuple(generator.integers(-image.shape[0] // 3, image.shape[0] // 3, 2))
  image, kinds = np.roll(image, shift, (0, 1)), np.roll(kinds, shift, (0, 1))
  image = _light(generator, image.astype(np.float32), difficulty)
  return Episode(
    np.concatenate([episode.images[:-1], image[None]]),
    np.concatenate([episode.kinds[:-1], kinds[None]]),
    episode.family,
  )


def _without_color(generator: np.random.Generator, episode: Episode) -> Episode:
  """Makes all pictures gray, as X-rays and microscopes do; all use the same random mixture of the channels."""
  gray = episode.images @ generator.dirichlet((2.0, 3.0, 1.0)).astype(np.float32)
  images = np.repeat(np.round(gray).astype(np.uint8)[..., None], 3, axis=-1)
  return dataclasses.replace(episode, images=images)


@dataclasses.dataclass(frozen=True)
class Tasks:
  """An endless sequence of prompts and queries.

  Attributes:
    size: side of the pictures in pixels.
    num_classes: largest number of classes in a task, background included.
    ramp: number of tasks until the difficulty may reach 1; 0 starts there.
    num_prompts: number of prompts K of each query.
  """

  size: int
  num_classes: int
  ramp: int = 0
  num_prompts: int = 1

  def draw(self, index: int, generator: np.random.Generator) -> tuple[list[Sample], Sample]:
    """Draws the prompts and the query of the task at a place in the curriculum."""
    reach = min(index / self.ramp, 1.0) if self.ramp else 1.0
    # Some easy tasks stay in the mix, so that the network does not unlearn them.
    difficulty = reach * generator.random() ** 0.5
    weights = np.array([easy + (hard - easy) * difficulty for _, easy, hard in families.FAMILIES.values()])
    while True:
      family = str(generator.choice(list(families.FAMILIES), p=weights / weights.sum()))
      episode = draw_episode(family, generator, self.size, self.num_prompts + 1, difficulty)
      if generator.random() < 0.3 - 0.25 * difficulty:
        episode = _another_view(generator, episode, difficulty)
      if generator.random() < 0.2 * difficulty:
        episode = _without_color(generator, episode)
      # Now and then the query does not show the class, and the answer is background.
      absent = generator.random() < 0.06 * difficulty
      if absent:
        candidates = np.flatnonzero(episode.shares()[:-1].min(axis=0) >= 0.02)
        candidates = candidates[candidates > 0]
      else:
        candidates = episode.present(max(0.10 * (1 - 1.5 * difficulty), _LEAST_SHARE))
      # A picture with a single class teaches nothing.
      if len(candidates) and (absent or episode.shares()[:, candidates].max() <= 0.9):
        break
    most = min(self.num_classes - 1, len(candidates), int(generator.choice([1, 2, 3], p=[0.5, 0.3, 0.2])))
    labels = episode.labels(generator.permutation(candidates)[:most])
    *prompts, query = (
      Sample(image=image, label=label, name=f"{family}_{index}")
      for image, label in zip(episode.images, labels, strict=True)
    )
    return prompts, query


@dataclasses.dataclass(frozen=True)
class TaskTrainingPairs:
  """`Tasks` as training pairs; see `pipeline.TrainingPairs`."""

  tasks: Tasks
  transform: TrainingPair
  epoch: int | None = None

  def __call__(self, index: int, generator: np.random.Generator) -> Pair:
    return self.transform(*self.tasks.draw(index, generator), generator)


@dataclasses.dataclass(frozen=True)
class TaskEvaluationPairs:
  """A fixed number of tasks that no training run draws; see `pipeline.EvaluationPairs`."""

  tasks: Tasks
  transform: EvaluationPair
  count: int = 512

  def __len__(self) -> int:
    return self.count

  def __call__(self, index: int) -> Pair:
    # Seeds of evaluation tasks never coincide with those that grain draws for training.
    return self.transform(*self.tasks.draw(index, np.random.default_rng([index, _EVALUATION])))
