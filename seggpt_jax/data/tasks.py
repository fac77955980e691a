"""In-context tasks without end: pairs in which only the prompt's mask says what is wanted.

A task draws pictures of one family, picks some of the kinds of things in them as classes and colours everything else
background. The i-th pair depends on (seed, i) alone, so a pretraining run can stop anywhere and go on; how hard it is
grows with i.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8

from seggpt_jax import canvas, palette
from seggpt_jax.data import families
from seggpt_jax.data.transforms import Pair, make_pair

# A kind smaller than this share of a picture is not asked for.
_LEAST_SHARE = 0.006


@dataclasses.dataclass(frozen=True)
class Episode:
  """Pictures of the same kinds of things; the last one is the query, those before it prompts.

  Attributes:
    images: uint8 [n, size, size, 3].
    kinds: uint8 [n, size, size], 0 for nothing in particular.
    family: which family drew it.
  """

  images: UInt8[np.ndarray, "n size size 3"]
  kinds: UInt8[np.ndarray, "n size size"]
  family: str

  def shares(self) -> np.ndarray:
    """Share of each picture that each kind covers, [n, kinds]."""
    num = int(self.kinds.max()) + 1
    return np.stack([np.bincount(kinds.ravel(), minlength=num) / kinds.size for kinds in self.kinds])

  def present(self, least: float = _LEAST_SHARE) -> np.ndarray:
    """The kinds, without 0, that cover at least that share of every picture."""
    return np.flatnonzero(self.shares().min(axis=0) >= least)[1 if (self.kinds == 0).any() else 0 :]

  def labels(self, chosen: np.ndarray | list[int]) -> UInt8[np.ndarray, "n size size"]:
    """Class i + 1 where the i-th chosen kind is, 0 elsewhere."""
    table = np.zeros(256, np.uint8)
    table[np.asarray(chosen)] = np.arange(1, len(chosen) + 1)
    return table[self.kinds]


def _light(generator: np.random.Generator, image: np.ndarray, amount: float) -> UInt8[np.ndarray, "h w 3"]:
  """Brightness, contrast, a colour cast, blur and noise of one picture."""
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
  """Draws pictures of one family, under a light of their own each.

  Args:
    family: its name in `families.FAMILIES`, or the function itself.
    generator: source of randomness.
    size: side of the pictures in pixels.
    num_images: prompts and one query.
    difficulty: 0..1.
  """
  draw = families.FAMILIES[family][0] if isinstance(family, str) else family
  scenes = draw(generator, size, num_images, difficulty)
  images = np.stack([_light(generator, image, difficulty) for image in scenes.images])
  return Episode(images, np.stack(scenes.kinds), family if isinstance(family, str) else family.__name__)


def _another_view(generator: np.random.Generator, episode: Episode, difficulty: float) -> Episode:
  """The last picture replaced by another view of the first: mirrored, turned, shifted, in other light."""
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


@dataclasses.dataclass(frozen=True)
class TaskPairs:
  """The i-th training pair for i = 0, 1, ...

  Attributes:
    canvas_size: height and width in pixels.
    patch_size: in pixels.
    num_classes: most classes on a canvas, background included.
    palette_mode: see `palette.sample_palette`.
    mask_ratio: share of all patches that is hidden.
    lower_half_share: probability that a pair hides the query's half instead, as evaluation does.
    ramp: pairs until the difficulty may reach 1; 0 starts there.
  """

  canvas_size: tuple[int, int]
  patch_size: int
  num_classes: int
  palette_mode: str
  mask_ratio: float
  lower_half_share: float
  ramp: int

  def __call__(self, index: int, generator: np.random.Generator) -> Pair:
    reach = min(index / self.ramp, 1.0) if self.ramp else 1.0
    # Easy ones stay among the others: what was learnt from them is not unlearnt.
    difficulty = reach * generator.random() ** 0.5
    labels, images = self._draw(generator, difficulty)
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    if generator.random() < self.lower_half_share:
      patch_mask = canvas.lower_half_mask(grid)
    else:
      patch_mask = canvas.random_patch_mask(generator, grid, self.mask_ratio)
    colours = palette.sample_palette(generator, self.num_classes, self.palette_mode)
    prompt, query = ({"image": image, "label": label, "name": ""} for image, label in zip(images, labels, strict=True))
    return make_pair(prompt, query, colours, patch_mask)

  def _draw(self, generator: np.random.Generator, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and images, [2, S, S] and [2, S, S, 3]."""
    size = self.canvas_size[1]
    weights = np.array([easy + (hard - easy) * difficulty for _, easy, hard in families.FAMILIES.values()])
    while True:
      family = str(generator.choice(list(families.FAMILIES), p=weights / weights.sum()))
      episode = draw_episode(family, generator, size, 2, difficulty)
      if generator.random() < 0.3 - 0.25 * difficulty:
        episode = _another_view(generator, episode, difficulty)
      absent = generator.random() < 0.06 * difficulty
      candidates = np.flatnonzero(episode.shares()[0] >= 0.02) if absent else self._candidates(episode, difficulty)
      candidates = candidates[candidates > 0]
      # A picture that is all one class says nothing.
      if len(candidates) and (absent or not self._trivial(episode, candidates)):
        break
    most = min(self.num_classes - 1, len(candidates), 1 + int(generator.random() < 0.5) + int(generator.random() < 0.3))
    return episode.labels(generator.permutation(candidates)[:most]), episode.images

  def _candidates(self, episode: Episode, difficulty: float) -> np.ndarray:
    return episode.present(max(0.10 * (1 - 1.5 * difficulty), _LEAST_SHARE))

  def _trivial(self, episode: Episode, candidates: np.ndarray) -> bool:
    return bool(episode.shares()[:, candidates].max() > 0.9)
