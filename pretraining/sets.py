"""Real labeled sets for pretraining: folders with a license in, prompts and queries of one class out.

A corpus is a folder with `sets.json` and a folder for each set:

  CORPUS/sets.json                  [{"name", "source_repo", "licence", "classes", ...}]
  CORPUS/SET/{images,labels}/NAME.* labels are 8-bit class indices; 0 is the rest, 255 is unknown

Every set must state a license; the model card lists them. All pictures are kept in memory as they are stored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.palette import IGNORE

_LEAST_PIXELS = 24  # of a class in a picture that is asked for it
_MOST_WEIGHT = 160  # pictures of a set that count for how often it is drawn
_CLASS_SHARE = 0.08  # of all pairs, at most, that one class of a set may have
_UNION, _ABSENT, _ONE_PICTURE, _WHOLE = 0.1, 0.06, 0.12, 0.45
# Shares of pairs that ask for a shade of a picture in place of a class, that get objects of other sets as distractors,
# and pictures of other sets as background.
_SHADE, _DISTRACTED, _MOVED = 0.15, 0.3, 0.12


@dataclasses.dataclass
class RealSet:
  """One labeled set.

  Attributes:
    name: its name.
    licence: its license, as found in its source.
    images: uint8 `[h, w, 3]` each.
    labels: uint8 `[h, w]` each.
    by_class: the pictures that show each class.
  """

  name: str
  licence: str
  images: list[UInt8[np.ndarray, "_ _ 3"]]
  labels: list[UInt8[np.ndarray, "_ _"]]
  by_class: dict[int, list[int]]


@dataclasses.dataclass
class Example:
  """Prompts and a query that ask for one class.

  Attributes:
    images: uint8 `[K + 1, size, size, 3]`, the query last.
    masks: float32 `[K + 1, size, size]`, 0 or 1.
    known: False where the class of a pixel is unknown, `[K + 1, size, size]`.
  """

  images: UInt8[np.ndarray, "n size size 3"]
  masks: Float[np.ndarray, "n size size"]
  known: Bool[np.ndarray, "n size size"]


def load_corpus(folder: Path) -> list[RealSet]:
  """Reads all sets of a corpus.

  Raises:
    InputError: `sets.json` is missing, or a set states no license or has no labeled pictures.
  """
  index = folder / "sets.json"
  if not index.is_file():
    raise InputError(f"{index}: not found, expected the list of sets with their licenses")
  return [_load_set(folder / entry["name"], entry) for entry in tqdm(json.loads(index.read_text()), "sets")]


def _load_set(folder: Path, entry: dict) -> RealSet:
  licence = entry.get("licence", "")
  if not licence or licence.lower().startswith("none"):
    raise InputError(f"{folder}: found no license in sets.json, expected an open one")
  images = {path.stem: path for path in sorted((folder / "images").iterdir())}
  labels = {path.stem: path for path in sorted((folder / "labels").iterdir())}
  names = sorted(images.keys() & labels.keys())
  if not names:
    raise InputError(f"{folder}: found no labeled pictures, expected images/NAME and labels/NAME")
  result = RealSet(entry["name"], licence, [], [], {})
  for place, name in enumerate(names):
    result.images.append(np.asarray(Image.open(images[name]).convert("RGB")))
    result.labels.append(np.asarray(Image.open(labels[name])))
    found, counts = np.unique(result.labels[-1], return_counts=True)
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
      if 0 < value < IGNORE and count >= _LEAST_PIXELS:
        result.by_class.setdefault(value, []).append(place)
  return result


class Corpus:
  """Draws examples from real sets, balanced over sets and classes."""

  def __init__(self, sets: Sequence[RealSet]):
    self.sets = list(sets)
    weights = np.array([min(len(one.images), _MOST_WEIGHT) ** 0.5 for one in self.sets])
    # Sets of many classes ask for more kinds of objects, and are drawn more often.
    weights = weights * np.array([min(len(one.by_class), 9) ** 0.4 for one in self.sets])
    self.weights = weights / weights.sum()

  def draw(self, generator: np.random.Generator, size: int, num_prompts: int) -> Example:
    """Draws an example of a random class.

    Args:
      generator: source of randomness.
      size: side of the pictures in pixels.
      num_prompts: K.
    """
    while True:
      example = self._draw(generator, size, num_prompts)
      if example is not None:
        return example

  def _draw(self, generator: np.random.Generator, size: int, num_prompts: int) -> Example | None:
    one = self.sets[generator.choice(len(self.sets), p=self.weights)]
    asked = int(generator.choice(list(one.by_class)))
    places = one.by_class[asked]
    classes = [asked]
    if len(one.by_class) > 2 and generator.random() < _UNION:
      classes.append(int(generator.choice(list(one.by_class))))
    query = int(generator.choice(places))
    others = [place for place in places if place != query]
    same = not others or generator.random() < _ONE_PICTURE
    if same:
      prompts = [query] * num_prompts
    else:
      prompts = [int(place) for place in generator.choice(others, num_prompts, replace=len(others) < num_prompts)]
    if generator.random() < _ABSENT:
      query = int(generator.integers(len(one.images)))
    turn, mirror = (
      (int(generator.integers(4)), bool(generator.integers(2))) if generator.random() < 0.35 else (0, False)
    )
    mirror = mirror or generator.random() < 0.25
    whole = not same and generator.random() < _WHOLE
    side = generator.uniform(0.35, 1.0)
    look = _Look(generator)
    foreign = self._foreign(generator) if generator.random() < _DISTRACTED else None
    moved = generator.random() < _MOVED
    shade = _Shade(generator) if generator.random() < _SHADE else None
    images, masks, known = [], [], []
    for number, place in enumerate([*prompts, query]):
      image, label = one.images[place], one.labels[place]
      for attempt in range(6):
        if whole:
          box = (0, 0, *image.shape[:2])
        else:
          box = _random_box(generator, image.shape[:2], side * generator.uniform(0.75, 1.33))
        picture, part = _cut(image, label, box, size)
        mask = shade(picture) if shade else np.isin(part, classes)
        # A prompt must show its class; a query may not.
        if whole or mask.sum() >= _LEAST_PIXELS or (number == num_prompts and attempt > 2):
          break
      else:
        return None
      if number < num_prompts and mask.sum() < 6:
        return None
      unknown = (part == IGNORE) & (shade is None)
      if moved and 0.01 < mask.mean() < 0.6 and generator.random() < 0.7:
        picture, unknown = self._on_other_ground(generator, picture, mask, size), np.zeros_like(unknown)
      if foreign and generator.random() < 0.7:
        picture, mask, unknown = self._with_object(generator, picture, mask, unknown, *foreign)
        if number < num_prompts and mask.sum() < 6:
          return None
      picture, mask, unknown = (np.rot90(part[:, ::-1] if mirror else part, turn) for part in (picture, mask, unknown))
      images.append(look(generator, np.ascontiguousarray(picture)))
      masks.append(mask.astype(np.float32))
      known.append(~unknown)
    if np.mean(masks) > 0.97:
      return None
    if generator.random() < 0.05:  # the rest instead of the class
      masks = [1 - mask for mask in masks]
    return Example(np.stack(images), np.stack(masks), np.stack(known))

  def _foreign(self, generator: np.random.Generator) -> tuple[RealSet, int]:
    """Draws a class of any set."""
    one = self.sets[generator.integers(len(self.sets))]
    return one, int(generator.choice(list(one.by_class)))

  def _on_other_ground(
    self, generator: np.random.Generator, picture: np.ndarray, mask: np.ndarray, size: int
  ) -> UInt8[np.ndarray, "size size 3"]:
    """Puts the object of a picture in front of a part of a picture of any set."""
    one = self.sets[generator.integers(len(self.sets))]
    image = one.images[generator.integers(len(one.images))]
    box = _random_box(generator, image.shape[:2], generator.uniform(0.3, 1.0))
    ground, _ = _cut(image, np.zeros(image.shape[:2], np.uint8), box, size)
    return _blended(ground, picture, mask)

  def _with_object(
    self,
    generator: np.random.Generator,
    picture: np.ndarray,
    mask: np.ndarray,
    unknown: np.ndarray,
    one: RealSet,
    index: int,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts an object of a class of any set, which is not asked for, into a picture."""
    place, size = int(generator.choice(one.by_class[index])), len(picture)
    box = _random_box(generator, one.images[place].shape[:2], generator.uniform(0.4, 1.0))
    other, label = _cut(one.images[place], one.labels[place], box, size)
    cover = label == index
    if not 0.005 < cover.mean() < 0.3:
      return picture, mask, unknown
    shift = generator.integers(-size // 3, size // 3 + 1, 2)
    other, cover = (np.roll(each, shift, (0, 1)) for each in (other, cover))
    return _blended(picture, other, cover), mask & ~cover, unknown & ~cover


def _blended(ground: np.ndarray, picture: np.ndarray, mask: np.ndarray) -> UInt8[np.ndarray, "size size 3"]:
  """Puts what a mask shows of a picture in front of another one, with a soft edge."""
  share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)[..., None]
  return np.round(share * picture + (1 - share) * ground).astype(np.uint8)


class _Shade:
  """Asks for pixels of one of the colors of the first picture, more or less blurred; half the time, of its textures."""

  def __init__(self, generator: np.random.Generator):
    self._generator, self._centers, self._wanted = generator, None, 0
    self._blur, self._count = generator.uniform(0.5, 3.0), int(generator.integers(3, 7))
    self._deviation = generator.uniform(1.0, 3.0) * generator.integers(2)  # its weight

  def __call__(self, picture: np.ndarray) -> Bool[np.ndarray, "size size"]:
    color = cv2.cvtColor(cv2.GaussianBlur(picture, (0, 0), self._blur), cv2.COLOR_RGB2LAB)
    gray = picture.mean(axis=-1, dtype=np.float32)
    mean, square = (cv2.GaussianBlur(part, (0, 0), 2 * self._blur) for part in (gray, gray * gray))
    deviation = self._deviation * np.sqrt(np.maximum(square - mean * mean, 0))
    values = np.concatenate([color, deviation[..., None]], axis=-1, dtype=np.float32).reshape(-1, 4)
    if self._centers is None:
      criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
      some = values[self._generator.integers(len(values), size=1000)]
      cv2.setRNGSeed(int(self._generator.integers(2**31)))
      _, _, self._centers = cv2.kmeans(some, self._count, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
      self._wanted = int(self._generator.integers(self._count))
    nearest = np.linalg.norm(values[:, None] - self._centers, axis=-1).argmin(axis=1)
    return (nearest == self._wanted).reshape(picture.shape[:2])


def _random_box(generator: np.random.Generator, shape: tuple[int, int], share: float) -> tuple[int, int, int, int]:
  """Draws a part of a picture: top, left, height and width in pixels; its aspect varies a little."""
  side = max(24, min(share, 1.0) * min(shape))
  aspect = np.exp(generator.normal(0, 0.12))
  height, width = (
    int(min(limit, max(16, value))) for limit, value in zip(shape, (side * aspect, side / aspect), strict=True)
  )
  return (
    int(generator.integers(shape[0] - height + 1)),
    int(generator.integers(shape[1] - width + 1)),
    height,
    width,
  )


def _cut(
  image: np.ndarray, label: np.ndarray, box: tuple[int, int, int, int], size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a part out of a picture and its labels, and resizes it to a square."""
  top, left, height, width = box
  place = np.s_[top : top + height, left : left + width]
  smaller = height * width > size * size
  picture = cv2.resize(image[place], (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
  return picture, cv2.resize(label[place], (size, size), interpolation=cv2.INTER_NEAREST)


class _Look:
  """Changes colors: all pictures of an example alike (gray, exchanged channels, negative), each in its light."""

  def __init__(self, generator: np.random.Generator):
    self.gray = generator.dirichlet((2.0, 3.0, 1.0)).astype(np.float32) if generator.random() < 0.15 else None
    self.order = generator.permutation(3) if generator.random() < 0.12 else np.arange(3)
    self.negative = generator.random() < 0.08
    self.amount = generator.random()
    self.gain, self.shift = np.exp(generator.normal(0, 0.15)), generator.normal(0, 12)

  def __call__(self, generator: np.random.Generator, image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    values = image.astype(np.float32)[..., self.order]
    if self.gray is not None:
      values = np.repeat((values @ self.gray)[..., None], 3, axis=-1)
    if self.negative:
      values = 255 - values
    gain = self.gain * np.exp(self.amount * generator.normal(0, 0.12))
    tint = np.exp(self.amount * generator.normal(0, 0.05, 3)).astype(np.float32) if self.gray is None else np.float32(1)
    values = (values - 127.5) * np.float32(gain) * tint + np.float32(
      127.5 + self.shift + self.amount * generator.normal(0, 10)
    )
    if generator.random() < 0.12:
      values = cv2.GaussianBlur(values, (0, 0), generator.uniform(0.4, 1.2))
    if generator.random() < 0.25:
      values = values + generator.standard_normal(values.shape, dtype=np.float32) * np.float32(
        10 * generator.random() ** 2
      )
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
