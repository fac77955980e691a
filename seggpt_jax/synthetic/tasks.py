"""An endless stream of in-context tasks: pairs in which only the mask of the prompt defines the classes.

A task draws pictures of one family and picks some of their kinds as classes; the rest is background. The i-th pair
depends only on (seed, i), so a pretraining run can stop and resume anywhere. The difficulty grows with i.
"""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.cells import make_prompts
from seggpt_jax.data.sources import Sample
from seggpt_jax.data.transforms import EvaluationPair, Pair, TrainingPair
from seggpt_jax.errors import InputError
from seggpt_jax.synthetic import families, photographs
from seggpt_jax.synthetic.materials import coordinates
from seggpt_jax.synthetic.scenes import Family

# Kinds that cover a smaller share of a picture are never classes, nor are those of a sparse family with fewer pixels.
_LEAST_SHARE, _LEAST_PIXELS = 0.006, 5
# Share of tasks of sparse families, and of others, whose prompt is a square of cells; most cells along its side; and
# pictures that the cells are cut from, as drawing takes time.
_CELLS, _CELLS_ELSEWHERE, _MOST_CELLS, _CELL_PICTURES = 0.6, 0.1, 3, 4
_ANY = 0.2  # share of the tasks of sparse families that ask for all kinds as one class
_GENEROUS = 0.3  # share of the tasks of sparse families whose masks reach a pixel beyond what they mark
# Second half of the seeds of evaluation tasks.
_EVALUATION = 0x5E66


@dataclasses.dataclass(frozen=True)
class Episode:
  """Pictures of the same kinds of things: first the prompts, last the query.

  Attributes:
    images: uint8 [n, size, size, 3].
    kinds: uint8 [n, size, size], 0 for the background.
  """

  images: UInt8[np.ndarray, "n size size 3"]
  kinds: UInt8[np.ndarray, "n size size"]

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
  """Applies what a camera does: brightness, contrast, color cast, dark corners, blur, noise and JPEG."""
  gain = 1 + amount * generator.normal(0, 0.12) + amount * generator.normal(0, 0.05, 3)
  image = (image - 127.5) * gain.astype(np.float32) + np.float32(127.5 + amount * generator.normal(0, 14))
  if generator.random() < 0.15 * amount:
    y, x = coordinates(len(image))
    image = image * (1 - generator.uniform(0, 0.5) * ((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.5)[..., None]
  if generator.random() < 0.3:
    image = cv2.GaussianBlur(image, (0, 0), generator.uniform(0.3, 0.5 + 0.5 * amount))
  if generator.random() < 0.5:
    image = image + generator.standard_normal(image.shape, dtype=np.float32) * np.float32(8 * generator.random() ** 2)
  image = np.clip(np.round(image), 0, 255).astype(np.uint8)
  if generator.random() < 0.2 * amount:
    quality = int(generator.integers(35, 90))
    image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
  return image


def draw_episode(
  family: str | Family,
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
  draw = families.FAMILIES[family].draw if isinstance(family, str) else family
  scenes = draw(generator, size, num_images, difficulty)
  images = np.stack([_light(generator, image, difficulty) for image in scenes.images])
  return Episode(images, np.stack(scenes.kinds))


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
    assets: folder of photographs and cut-outs, see `photographs.families`; "" draws everything.
    families: names of the only families to draw from; empty for all.

  Raises:
    InputError: a family is unknown.
  """

  size: int
  num_classes: int
  ramp: int = 0
  num_prompts: int = 1
  assets: str = ""
  families: tuple[str, ...] = ()

  def __post_init__(self):
    known = set(families.FAMILIES) | (set(photographs.FAMILIES) if self.assets else set())
    for name in self.families:
      if name not in known:
        hint = "" if self.assets or name not in photographs.FAMILIES else "; this one needs data.assets"
        raise InputError(f"data.families: found {name!r}, expected some of {', '.join(sorted(known))}{hint}")

  def draw(self, index: int, generator: np.random.Generator) -> tuple[list[Sample], Sample]:
    """Draws the prompts and the query of the task at a place in the curriculum."""
    reach = min(index / self.ramp, 1.0) if self.ramp else 1.0
    # Some easy tasks stay in the mix, so that the network does not unlearn them.
    difficulty = reach * generator.random() ** 0.5
    choices = self._choices()
    weights = np.array([family.easy + (family.hard - family.easy) * difficulty for family in choices.values()])
    while True:
      name = str(generator.choice(list(choices), p=weights / weights.sum()))
      family = choices[name]
      grid = 1
      if generator.random() < (_CELLS if family.sparse else _CELLS_ELSEWHERE) * reach:
        grid = int(generator.integers(2, _MOST_CELLS + 1))
      num_images = self.num_prompts * min(grid**2, _CELL_PICTURES) + 1
      episode = draw_episode(family.draw, generator, self.size, num_images, difficulty)
      if grid == 1 and generator.random() < 0.3 - 0.25 * difficulty:
        episode = _another_view(generator, episode, difficulty)
      if generator.random() < 0.2 * difficulty:
        episode = _without_color(generator, episode)
      if family.sparse and generator.random() < _GENEROUS:
        # People mark small things generously; how generously, the prompt shows.
        kinds = np.stack([cv2.dilate(kinds, np.ones((3, 3), np.uint8)) for kinds in episode.kinds])
        episode = dataclasses.replace(episode, kinds=kinds)
      candidates, whole = self._candidates(episode, generator, difficulty, family.sparse or grid > 1)
      # A picture with a single class teaches nothing.
      if len(candidates) and whole <= 0.9:
        break
    most = min(self.num_classes - 1, len(candidates), int(generator.choice([1, 2, 3, 6], p=[0.4, 0.3, 0.2, 0.1])))
    if family.sparse and generator.random() < _ANY:
      # One class for all faults, as an inspection line asks.
      labels = (episode.kinds > 0).astype(np.uint8)
    else:
      labels = episode.labels(generator.permutation(candidates)[:most])
    *prompts, query = (
      Sample(image=image, label=label, name=f"{name}_{index}")
      for image, label in zip(episode.images, labels, strict=True)
    )
    if grid > 1:
      prompts = make_prompts([*itertools.islice(itertools.cycle(prompts), self.num_prompts * grid**2)], grid, self.size)
    return prompts, query

  def _choices(self) -> dict[str, families.Weighted]:
    """Returns the families to draw from."""
    choices = dict(families.FAMILIES)
    if self.assets:
      drawn = photographs.families(self.assets)
      choices |= {name: families.Weighted(drawn[name], *photographs.FAMILIES[name]) for name in drawn}
    return {name: choices[name] for name in self.families} if self.families else choices

  def _candidates(
    self, episode: Episode, generator: np.random.Generator, difficulty: float, sparse: bool
  ) -> tuple[np.ndarray, float]:
    """Returns the kinds that may be classes, and the largest share of a picture that one of them covers."""
    shares = episode.shares()
    if sparse:
      # Some prompt shows it; nobody knows whether the query does.
      kinds = np.flatnonzero(shares[:-1].max(axis=0) * self.size**2 >= _LEAST_PIXELS)
    # Now and then the query does not show the class, and the answer is background.
    elif generator.random() < 0.06 * difficulty:
      kinds = np.flatnonzero(shares[:-1].min(axis=0) >= 0.02)
    else:
      kinds = episode.present(max(0.10 * (1 - 1.5 * difficulty), _LEAST_SHARE))
    kinds = kinds[kinds > 0]
    return kinds, float(shares[:, kinds].max(initial=0.0))


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
