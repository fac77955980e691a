"""Classifiers fitted to the prompts at inference, which work with every network.

In: prompts, each an image with its label map. Out: a `Head`, which gives the probability of each class at each pixel of
an image. Its features are texture at several scales, as ilastik has them, and the frozen ImageNet features of the
packaged network. A linear layer goes before the upsampling, so an image costs little more than its features.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
import xxhash
from jaxtyping import Array, Float, Integer, UInt8

from seggpt_jax import canvas
from seggpt_jax.compilation import jit
from seggpt_jax.model import packaged, parameters
from seggpt_jax.palette import IGNORE

MOST_CLASSES = 32  # with more classes there is no head: a fit would take seconds
_SIDE = 384  # of the square that the ImageNet features see
_TEXTURE_SIDE = 640  # longer side of an image for the texture features, at most
_LEVELS = 4  # octaves of texture
_GRID = _SIDE // 8  # places along a side of the coarse features
_PIXELS, _MOST_PIXELS = 1000, 4000  # that a head is fitted to: of each class, and of all together
_RIDGE, _STEPS = 1e-3, 30
_WEIGHTS = (0.0, 0.1, 0.2, 0.3)  # candidates for the share of the head in the mean of logits
_NEAREST = 3  # neighbors whose mean a mask is carried back by
_KEPT = 16  # heads of the last sets of prompts

Labeled = tuple[UInt8[np.ndarray, "_ _ 3"], Integer[np.ndarray, "_ _"]]
Maps = list[Float[np.ndarray, "_ _ _"]]
Combine = Callable[[int, Float[np.ndarray, "h w"]], Float[np.ndarray, "h w"]]


def shrunk(
  image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"]
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Integer[np.ndarray, "h2 w2"]]:
  """Returns an image and its labels at the size that a head needs, which bounds the memory of prompts."""
  small = _limited(image)
  height, width = small.shape[:2]
  return small, cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)


def _limited(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
  scale = _TEXTURE_SIDE / max(image.shape[:2])
  if scale >= 1:
    return image
  height, width = (max(round(side * scale), 1) for side in image.shape[:2])
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def texture(image: UInt8[np.ndarray, "h w 3"]) -> Maps:
  """Computes colors, edges, and eigenvalues of Hessian and structure tensor, one map for each octave."""
  level, maps = image.astype(np.float32) / 255.0, []
  for _ in range(_LEVELS):
    gray = cv2.GaussianBlur(level.mean(axis=-1), (0, 0), 1.0)
    x, y, xx, xy, yy = (cv2.Sobel(gray, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2)))
    tensor = (cv2.GaussianBlur(part, (0, 0), 2.0) for part in (x * x, x * y, y * y))
    parts = [np.hypot(x, y), *_eigenvalues(xx, xy, yy), *(np.sqrt(np.maximum(v, 0)) for v in _eigenvalues(*tensor))]
    maps.append(np.concatenate([level, cv2.GaussianBlur(level, (0, 0), 1.0), np.stack(parts, axis=-1)], axis=-1))
    if min(level.shape[:2]) < 4:
      break
    level = cv2.pyrDown(level)
  return maps


def _eigenvalues(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  mean, root = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
  return mean + root, mean - root


@functools.cache
def _imagenet() -> Callable[[UInt8[np.ndarray, "h w 3"]], dict[int, Array]]:
  """Returns the compiled ImageNet features, with the weights of the packaged network."""
  path = packaged.path_of("small")
  graph, _ = parameters.abstract(packaged.read_config(path))
  params = {name: value.astype(np.float32) for name, value in packaged.read_params(path).items()}

  @jit
  def run(params, image):
    return parameters.merge(graph, params).features(canvas.normalize(image[None]))

  return functools.partial(run, jax.device_put(params))


class Features(NamedTuple):
  """Features of an image."""

  maps: Maps  # feature maps of any sizes
  shape: tuple[int, int]  # height and width of the image that they were computed from
  places: Float[np.ndarray, "p f"]  # the coarse ImageNet features at `_GRID` x `_GRID` places

  @property
  def statistics(self) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each channel of each map."""
    return [(each.mean(axis=(0, 1)), each.std(axis=(0, 1)) + 1e-3) for each in self.maps]


def describe(image: UInt8[np.ndarray, "h w 3"]) -> Features:
  """Computes the features of an image of any size."""
  image = _limited(image)
  interpolation = cv2.INTER_AREA if max(image.shape[:2]) > _SIDE else cv2.INTER_LINEAR
  square = cv2.resize(image, (_SIDE, _SIDE), interpolation=interpolation)
  found = {stride: np.asarray(each[0]) for stride, each in _imagenet()(square).items()}
  places = np.concatenate([found[8], _resized(found[16], (_GRID, _GRID))], axis=-1).reshape(_GRID**2, -1)
  return Features([*texture(image), *found.values()], image.shape[:2], places)


def _resized(values: Float[np.ndarray, "..."], shape: tuple[int, int], area: bool = False) -> Float[np.ndarray, "..."]:
  """Resizes a map to a height and width."""
  if values.shape[:2] == shape:
    return values
  resized = cv2.resize(values, shape[::-1], interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
  return resized.reshape(*shape, *values.shape[2:])


class Head:
  """A classifier of pixels, and the places of the prompts that its answers are carried back to.

  Its logistic regression, one class against the rest, takes features that each image normalizes by its own statistics.

  Args:
    classes: classes that the prompts show, without the background.
    weights: a weight for each feature and class, then a bias.
    places: coarse features at places of the prompts.
    shares: share of each class at these places.
  """

  def __init__(
    self,
    classes: Sequence[int],
    weights: Float[np.ndarray, "f c"],
    places: Float[np.ndarray, "p g"],
    shares: Float[np.ndarray, "p c"],
  ):
    self.classes, self._weights, self._shares = tuple(classes), weights, shares
    self._mean, self._scale = places.mean(axis=0), places.std(axis=0) + 1e-3
    self._places = (places - self._mean) / self._scale

  def logits(self, features: Features) -> Float[np.ndarray, "h w c"]:
    """Returns the logit of each class at each pixel of the image that was described."""
    total, start = np.zeros((*features.shape, len(self.classes)), np.float32), 0
    for each, (mean, scale) in zip(features.maps, features.statistics, strict=True):
      weights = self._weights[start : start + each.shape[-1]] / scale[:, None]
      start += each.shape[-1]
      total += _resized(each @ weights - mean @ weights, features.shape)
    return total + self._weights[-1]

  def combine(self, image: UInt8[np.ndarray, "h w 3"]) -> Combine:
    """Returns a function that improves the probability of a class, which the network has found in an image.

    The candidates are means of the network's and the head's logits, with more or less weight for the head. Each mask is
    carried back to the prompts by their nearest neighbors in the image. The one that finds the prompts' own mask best
    is the answer, so a head that has only learned the prompts' background is not heard.
    """
    features = describe(image)
    logits, places = self.logits(features), (features.places - self._mean) / self._scale
    distances = (places * places).sum(axis=1) - 2 * self._places @ places.T
    nearest = []  # three times the smallest one takes a tenth of the time of a partition
    for _ in range(_NEAREST):
      nearest.append(np.argmin(distances, axis=1))
      np.put_along_axis(distances, nearest[-1][:, None], np.inf, axis=1)

    def recall(found: Float[np.ndarray, "h w"], place: int) -> float:
      """Returns the soft IoU of a mask that is carried back with the prompts' mask."""
      inside = _resized((found > 0).astype(np.float32), (_GRID, _GRID), area=True).reshape(-1)[nearest].mean(axis=0)
      share = self._shares[:, place]
      return float(np.minimum(inside, share).sum() / max(np.maximum(inside, share).sum(), 1e-6))

    def improved(index: int, probability: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
      if index not in self.classes:
        return probability
      place = self.classes.index(index)
      own = logits[..., place]
      network = _logit(_resized(probability, features.shape, area=True))
      scores = [recall((1 - weight) * network + weight * own, place) for weight in _WEIGHTS]
      weight = _WEIGHTS[int(np.argmax(scores))]
      if not weight:
        return probability
      mixed = (1 - weight) * _logit(probability) + weight * _resized(own, probability.shape)
      return 1 / (1 + np.exp(-np.clip(mixed, -30, 30)))

    return improved


def _logit(probability: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
  inside = np.clip(probability, 1e-3, 1 - 1e-3)
  return np.log(inside / (1 - inside))


def fit(prompts: Sequence[Labeled]) -> Head | None:
  """Fits a head to prompts. Returns None without prompts, without a class or with more than `MOST_CLASSES`.

  Args:
    prompts: images of any sizes with labels, of which 255 is ignored.
  """
  classes = sorted({index for _, labels in prompts for index in np.unique(labels).tolist()} - {0, IGNORE})
  if not 0 < len(classes) <= MOST_CLASSES:
    return None
  count = min(_PIXELS, _MOST_PIXELS // (1 + len(classes))) // len(prompts)
  generator, rows, found, places, shares = np.random.default_rng(0), [], [], [], []
  for image, labels in itertools.starmap(shrunk, prompts):
    features, each_class = describe(image), [labels == index for index in (0, *classes)]
    pixels = np.concatenate([_choose(mask, count, generator) for mask in each_class])
    normalized = [
      (_sample(each, pixels, features.shape) - mean) / scale
      for each, (mean, scale) in zip(features.maps, features.statistics, strict=True)
    ]
    rows.append(np.concatenate(normalized, axis=1))
    found.append(labels.reshape(-1)[pixels])
    share = [_resized(mask.astype(np.float32), (_GRID, _GRID), area=True).reshape(-1) for mask in each_class[1:]]
    share = np.stack(share, axis=-1)
    half = _GRID**2 // len(prompts) // 2
    # Small objects must not be lost.
    kept = np.concatenate([_choose(mask, half, generator) for mask in (share.any(axis=1), ~share.any(axis=1))])
    if len(prompts) == 1:
      kept = np.arange(_GRID**2)
    places.append(features.places[kept])
    shares.append(share[kept])
  inside = np.concatenate(found)[:, None] == np.asarray(classes)
  weights = _logistic(np.concatenate(rows), inside.astype(np.float32))
  return Head(classes, weights, np.concatenate(places), np.concatenate(shares))


class ContentCache:
  """Keeps the last values that were made of arrays, by the content of the arrays."""

  def __init__(self, most: int = _KEPT):
    self._most, self._kept = most, collections.OrderedDict[bytes, Any]()

  def get(self, arrays: Iterable[np.ndarray], make: Callable[[], Any]) -> Any:
    """Returns the value of these arrays, which is made unless it is kept."""
    digest = xxhash.xxh3_128()
    for array in arrays:
      digest.update(f"{array.shape}{array.dtype}".encode())
      digest.update(np.ascontiguousarray(array))
    key = digest.digest()
    if key not in self._kept:
      self._kept[key] = make()
    self._kept.move_to_end(key)
    if len(self._kept) > self._most:
      self._kept.popitem(last=False)
    return self._kept[key]


def _choose(mask: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
  """Returns the places of at most `count` pixels of a mask."""
  places = np.flatnonzero(mask)
  return places if len(places) <= count else generator.choice(places, max(count, 1), replace=False)


def _sample(values: Float[np.ndarray, "h w c"], places: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Returns the values of a map at pixels of its image, as `cv2.resize` would enlarge it to the image's size."""
  lower, upper, share = [], [], []
  for place, size, target in zip(np.divmod(places, shape[1]), values.shape[:2], shape, strict=True):
    at = np.clip((place + 0.5) * size / target - 0.5, 0, size - 1)
    lower.append(np.floor(at).astype(np.int64))
    upper.append(np.minimum(lower[-1] + 1, size - 1))
    share.append((at - lower[-1])[:, None].astype(np.float32))
  top, bottom = (
    values[rows, lower[1]] * (1 - share[1]) + values[rows, upper[1]] * share[1] for rows in (lower[0], upper[0])
  )
  return top * (1 - share[0]) + bottom * share[0]


def _logistic(rows: Float[np.ndarray, "n f"], inside: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "f1 c"]:
  """Fits each class against the rest, balanced, by accelerated steps (bound on the Hessian: Boehning, Lindsay 1988)."""
  rows = np.concatenate([rows, np.ones_like(rows[:, :1])], axis=1)
  outside = 1 - inside
  share = inside / np.maximum(inside.sum(axis=0), 1) + outside / np.maximum(outside.sum(axis=0), 1)
  share /= 2
  ridge = np.append(np.full(rows.shape[1] - 1, _RIDGE), 1e-4).astype(np.float32)
  bound = (rows * share.max(axis=1, keepdims=True)).T @ rows / 4 + np.diag(ridge)
  step = np.linalg.inv(bound)
  weights = ahead = np.zeros((rows.shape[1], inside.shape[1]), np.float32)
  speed = 1.0
  for _ in range(_STEPS):
    error = 1 / (1 + np.exp(-np.clip(rows @ ahead, -30, 30))) - inside
    last, weights = weights, ahead - step @ (rows.T @ (share * error) + ridge[:, None] * ahead)
    last_speed, speed = speed, (1 + np.sqrt(1 + 4 * speed**2)) / 2
    ahead = weights + (last_speed - 1) / speed * (weights - last)
  return weights.astype(np.float32)
