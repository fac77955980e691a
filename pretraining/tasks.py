"""In-context tasks: a prompt and a query, of which only the mask of the prompt defines the classes.

`draw_task` draws pictures of one family and picks some of their kinds as classes; the rest is background.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from pretraining import photographs
from pretraining.families import FAMILIES, Weighted
from pretraining.materials import coordinates
from pretraining.scenes import Family
from seggpt_jax.data.scale import make_prompts
from seggpt_jax.data.sources import Sample
from seggpt_jax.errors import InputError

# Kinds that cover a smaller share of a picture are never classes, nor are kinds of a sparse family with fewer pixels.
_LEAST_SHARE, _LEAST_PIXELS = 0.006, 5
# Share of tasks of sparse families, and of others, whose prompt is a square of cells; most cells along its side; and
# pictures that the cells are cut from, as drawing takes time.
_CELLS, _CELLS_ELSEWHERE, _MOST_CELLS, _CELL_PICTURES = 0.6, 0.1, 3, 4
_ANY = 0.2  # share of the tasks of sparse families that ask for all kinds as one class
_GENEROUS = 0.3  # share of the tasks of sparse families whose masks reach a pixel beyond what they mark
_MOST_DRAWS = 500  # until a family that shows nothing to ask for is an error


@dataclasses.dataclass(frozen=True)
class Episode:
  """Pictures of the same kinds of objects: first the prompts, last the query.

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
  draw = FAMILIES[family].draw if isinstance(family, str) else family
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


class Task(NamedTuple):
  """A prompt and a query; only the labels of the prompt say what is asked for.

  Attributes:
    prompt_image: uint8 [size, size, 3].
    prompt_labels: uint8 [size, size], classes from 1, 0 for the background.
    query_image: uint8 [size, size, 3].
    query_labels: uint8 [size, size], of the same classes.
  """

  prompt_image: UInt8[np.ndarray, "size size 3"]
  prompt_labels: UInt8[np.ndarray, "size size"]
  query_image: UInt8[np.ndarray, "size size 3"]
  query_labels: UInt8[np.ndarray, "size size"]


def all_families(assets: str = "") -> dict[str, Weighted]:
  """Returns the families to train on by name: all that are drawn, and with assets those of real pictures.

  Args:
    assets: folder of photographs and cut-outs, see `photographs.families`; "" for none.
  """
  drawn = photographs.families(assets) if assets else {}
  return FAMILIES | {name: Weighted(drawn[name], *photographs.FAMILIES[name]) for name in drawn}


def choose_family(generator: np.random.Generator, choices: Mapping[str, Weighted], difficulty: float) -> str:
  """Draws the name of a family, as often as its weight says at a difficulty, 0..1."""
  weights = np.array([family.easy + (family.hard - family.easy) * difficulty for family in choices.values()])
  return str(generator.choice(list(choices), p=weights / weights.sum()))


def draw_task(
  family: str | Weighted,
  generator: np.random.Generator,
  size: int,
  difficulty: float = 1.0,
  *,
  num_classes: int = 7,
  cells: float = 1.0,
) -> Task:
  """Draws a task: pictures of one family, some of whose kinds are the classes.

  Args:
    family: name in `families.FAMILIES`, or an entry of `all_families`.
    generator: source of randomness; the task depends on nothing else.
    size: side of the pictures in pixels.
    difficulty: 0..1.
    num_classes: largest number of classes, background included.
    cells: factor, 0..1, on how often the prompt is a square of cells cut from several pictures.

  Raises:
    InputError: the family shows nothing that could be asked for at this size.
  """
  family = FAMILIES[family] if isinstance(family, str) else family
  for _ in range(_MOST_DRAWS):
    grid = 1
    if generator.random() < (_CELLS if family.sparse else _CELLS_ELSEWHERE) * cells:
      grid = int(generator.integers(2, _MOST_CELLS + 1))
    episode = draw_episode(family.draw, generator, size, min(grid**2, _CELL_PICTURES) + 1, difficulty)
    if grid == 1 and generator.random() < 0.3 - 0.25 * difficulty:
      episode = _another_view(generator, episode, difficulty)
    if generator.random() < 0.2 * difficulty:
      episode = _without_color(generator, episode)
    if family.sparse and generator.random() < _GENEROUS:
      # People mark small objects generously; how generously, the prompt shows.
      kinds = np.stack([cv2.dilate(kinds, np.ones((3, 3), np.uint8)) for kinds in episode.kinds])
      episode = dataclasses.replace(episode, kinds=kinds)
    candidates, whole = _candidates(episode, generator, difficulty, family.sparse or grid > 1)
    # A picture with a single class teaches nothing.
    if len(candidates) and whole <= 0.9:
      break
  else:
    raise InputError(f"found nothing to ask for in {_MOST_DRAWS} draws of {size} pixels, expected larger pictures")
  most = min(num_classes - 1, len(candidates), int(generator.choice([1, 2, 3, 6], p=[0.4, 0.3, 0.2, 0.1])))
  if family.sparse and generator.random() < _ANY:
    # One class for all faults, as an inspection line asks.
    labels = (episode.kinds > 0).astype(np.uint8)
  else:
    labels = episode.labels(generator.permutation(candidates)[:most])
  *prompts, query = (Sample(image=image, label=label) for image, label in zip(episode.images, labels, strict=True))
  if grid > 1:
    prompts = make_prompts([*itertools.islice(itertools.cycle(prompts), grid**2)], grid, size)
  return Task(prompts[0]["image"], prompts[0]["label"], query["image"], query["label"])


def _candidates(
  episode: Episode, generator: np.random.Generator, difficulty: float, sparse: bool
) -> tuple[np.ndarray, float]:
  """Returns the kinds that may be classes, and the largest share of a picture that one of them covers."""
  shares = episode.shares()
  if sparse:
    # Some prompt shows it; nobody knows whether the query does.
    kinds = np.flatnonzero(shares[:-1].max(axis=0) * episode.kinds[0].size >= _LEAST_PIXELS)
  # Now and then the query does not show the class, and the answer is background.
  elif generator.random() < 0.06 * difficulty:
    kinds = np.flatnonzero(shares[:-1].min(axis=0) >= 0.02)
  else:
    kinds = episode.present(max(0.10 * (1 - 1.5 * difficulty), _LEAST_SHARE))
  kinds = kinds[kinds > 0]
  return kinds, float(shares[:, kinds].max(initial=0.0))
