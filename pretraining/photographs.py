"""Families of real pictures: objects cut out and put on photographs, and two views of one photograph.

The pictures come from a folder that `python -m pretraining.assets` makes; the package holds none.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pretraining.scenes import Family, Scenes
from pretraining.surfaces import random_surface
from seggpt_jax.errors import InputError

FILES = ("grounds", "regions", "cutouts")
# How often each family is drawn, at difficulty 0 and 1, in addition to the families in families.py.
FAMILIES = {"cutouts": (2.0, 4.0), "views": (2.0, 2.0)}


@functools.cache
def families(folder: str) -> dict[str, Family]:
  """Returns the families that draw from a folder of assets.

  Args:
    folder: the folder. It has `grounds.npy` uint8 [n, side, side, 3], photographs; `regions.npy` uint8
      [n, side, side], the region of each of their pixels from 1; `cutouts.npy` uint8 [m, side, side, 4], objects with
      their opacity.

  Raises:
    InputError: a file is missing.
  """
  for name in FILES:
    if not (Path(folder) / f"{name}.npy").is_file():
      raise InputError(f"{folder}: found no {name}.npy, expected a folder from python -m pretraining.assets")
  # Mapped, so that all worker processes share one copy.
  grounds, regions, things = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in FILES)
  return {
    "cutouts": functools.partial(cutouts, things, grounds),
    "views": functools.partial(views, grounds, regions),
  }


def _ground(
  generator: np.random.Generator, grounds: UInt8[np.ndarray, "n side side 3"], size: int
) -> Float[np.ndarray, "size size 3"]:
  """Draws a square of a photograph, or of a drawn surface."""
  if generator.random() < 0.3:
    return random_surface(generator, gray=False).paint(generator, size)
  ground = grounds[generator.integers(len(grounds))]
  side = int(generator.uniform(0.3, 1.0) * len(ground))
  top, left = generator.integers(0, len(ground) - side + 1, 2)
  return cv2.resize(ground[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA).astype(
    np.float32
  )


def _paste(
  generator: np.random.Generator, image: np.ndarray, kinds: np.ndarray, thing: np.ndarray, radius: float, kind: int
) -> None:
  """Puts a thing [side, side, 4] on a picture at a random place, turn and light, in place."""
  size, side = len(image), len(thing)
  turn, zoom = generator.normal(0, 25) + 180 * (generator.random() < 0.1), 2 * radius / side
  if generator.random() < 0.5:
    thing = thing[:, ::-1]
  # Averaged first: turning alone would skip pixels of a larger thing.
  small = max(round(side * zoom), 4)
  thing = cv2.resize(np.ascontiguousarray(thing), (small, small), interpolation=cv2.INTER_AREA).astype(np.float32)
  matrix = cv2.getRotationMatrix2D((small / 2, small / 2), turn, 1.0)
  matrix[:, 2] += generator.uniform(0.1, 0.9, 2) * size - small / 2
  thing = cv2.warpAffine(thing, matrix, (size, size))
  cover = thing[..., 3:] / 255
  light = 1 + generator.normal(0, 0.12) + generator.normal(0, 0.04, 3)
  image += cover * (thing[..., :3] * light + generator.normal(0, 10) - image)
  kinds[cover[..., 0] > 0.5] = kind


def cutouts(
  things: UInt8[np.ndarray, "m edge edge 4"],
  grounds: UInt8[np.ndarray, "n side side 3"],
  generator: np.random.Generator,
  size: int,
  count: int,
  difficulty: float,
) -> Scenes:
  """Draws one to three objects on photographs, turned, scaled, lit and partly hidden; more objects are background.

  In a third of the draws each picture shows another thing of the same sort, as photographs of a class do, and in half
  of these in other colors. Files of one sort lie side by side.
  """
  akin = generator.random() < 0.33
  recolored = akin and generator.random() < 0.5
  chosen = generator.integers(len(things), size=1 if akin else int(generator.integers(1, 4)))
  low, high = 0.2 - 0.1 * difficulty, 0.42 - 0.08 * difficulty
  same = _ground(generator, grounds, size)
  images, labels = [], []
  for _ in range(count):
    image = _ground(generator, grounds, size) if generator.random() < 0.3 + 0.6 * difficulty else same.copy()
    kinds = np.zeros((size, size), np.uint8)
    shown = np.clip(chosen + akin * generator.integers(-5, 6, len(chosen)), 0, len(things) - 1)
    channels = generator.permutation(3) if recolored else np.arange(3)
    others = generator.integers(len(things), size=int(generator.integers(0, 2 + round(3 * difficulty))))
    put = [(index, 0) for index in others] + [(index, kind) for kind, index in enumerate(shown, 1)]
    put += [(shown[kind], kind + 1) for kind in range(len(chosen)) if generator.random() < 0.3 * difficulty]
    for place in generator.permutation(len(put)):
      index, kind = put[place]
      thing = things[index][..., [*channels, 3]] if kind else things[index]
      _paste(generator, image, kinds, thing, size * generator.uniform(low, high), kind)
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def views(
  grounds: UInt8[np.ndarray, "n side side 3"],
  regions: UInt8[np.ndarray, "n side side"],
  generator: np.random.Generator,
  size: int,
  count: int,
  difficulty: float,
) -> Scenes:
  """Draws parts of one photograph at several scales, turned and mirrored; its regions are the kinds."""
  index = generator.integers(len(grounds))
  side = grounds.shape[1]
  images, labels = [], []
  middle = generator.uniform(0.35, 0.65, 2) * side
  for _ in range(count):
    width = generator.uniform(0.75 - 0.3 * difficulty, 1.0) * side
    center = np.clip(middle + generator.normal(0, 0.12 * difficulty, 2) * side, width / 2, side - width / 2)
    left, top = np.floor(center - width / 2).astype(int).clip(0)
    window = np.s_[index, top : top + int(width), left : left + int(width)]
    image = cv2.resize(grounds[window], (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    kinds = cv2.resize(regions[window], (size, size), interpolation=cv2.INTER_NEAREST)
    turn = generator.normal(0, 20 * difficulty) if difficulty else 0.0
    stretch = math.exp(0.15 * difficulty * generator.standard_normal()) + abs(math.sin(math.radians(turn)))
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), turn, stretch)
    image = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT)
    kinds = cv2.warpAffine(kinds, matrix, (size, size), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
    if generator.random() < 0.5:
      image, kinds = image[:, ::-1], kinds[:, ::-1]
    images.append(np.ascontiguousarray(image))
    labels.append(np.ascontiguousarray(kinds))
  return Scenes(images, labels)
