"""Augmentation of one training sample: a labeled image of any size in, a square of the canvas's size out.

Geometry changes image and label together; images are resampled smoothly, labels by nearest neighbor. Appearance changes
the image alone. Every function is pure: its result depends on the sample, a NumPy generator and an `Augmentation`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from seggpt_jax.data.scale import Scale
from seggpt_jax.data.sources import Sample
from seggpt_jax.formats.labels import classes_in, shrink_labels

# The pipeline already runs one sample in each thread. Threads inside OpenCV would only compete with them.
cv2.setNumThreads(0)

FLIPS = ("none", "horizontal", "vertical", "both", "turns")

_GRAY = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Strengths of the random changes to training samples. The defaults switch every change off.

  Attributes:
    resize: side in pixels of the square to which a sample is resized before the crop; 0 takes the side of the canvas
      square, None keeps the size of the sample.
    scale: lowest and highest factor on the size after `resize`, above 0, drawn log-uniformly. A sample smaller than the
      crop is mirrored at its borders.
    foreground_crop: probability, 0 to 1, that the crop contains a chosen foreground pixel, see `random_crop`.
    flips: one of `FLIPS`. "horizontal" mirrors left and right with probability 1/2, "vertical" top and bottom, "both"
      does both, "turns" also rotates by 0, 90, 180 or 270 degrees, each with probability 1/4.
    color: brightness b, contrast c and saturation s, each at least 0. The colors are multiplied by a factor from
      1 - b .. 1 + b, at least 0; the difference of each color from the image's mean gray by one from 1 - c .. 1 + c, at
      least 0; the difference of each pixel from its own gray by one from 1 - s .. 1 + s, at least 0.
    blur: largest standard deviation, in pixels, of a Gaussian filter; drawn from 0..blur.
  """

  resize: int | None = 0
  scale: tuple[float, float] = (1.0, 1.0)
  foreground_crop: float = 0.0
  flips: str = "none"
  color: tuple[float, float, float] = (0.0, 0.0, 0.0)
  blur: float = 0.0


def to_square(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
  """Resizes an image of any form to a square; pixels are averaged where it shrinks."""
  shrinks = image.shape[0] * image.shape[1] > side * side
  return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def augment(
  sample: Sample,
  size: int,
  generator: np.random.Generator,
  augmentation: Augmentation,
  crop_classes: Sequence[int] | None = None,
) -> Sample:
  """Applies the whole chain to one training sample: crop, flip, rotate, change the appearance.

  Args:
    sample: sample of any size. It is not changed, but the result may share its pixels.
    size: side of the result in pixels.
    generator: source of all random numbers.
    augmentation: strengths of the changes.
    crop_classes: classes on which `foreground_crop` places crops; None takes all foreground.

  Returns:
    The sample with `image` uint8 [size, size, 3] and `label` uint8 [size, size], both C-contiguous.
  """
  sample = random_crop(sample, size, generator, augmentation, crop_classes)
  sample = random_flip(sample, generator, augmentation)
  sample = random_turn(sample, generator, augmentation)
  sample = random_appearance(sample, generator, augmentation)
  image, label = (np.ascontiguousarray(sample[key]) for key in ("image", "label"))
  return {**sample, "image": image, "label": label}


def random_crop(
  sample: Sample,
  size: int,
  generator: np.random.Generator,
  augmentation: Augmentation,
  crop_classes: Sequence[int] | None = None,
) -> Sample:
  """Cuts a random square from the resized sample. Only the pixels inside the square are resampled.

  The window spans an integer number of pixels, so the size of the result may differ from the drawn factor by half a
  pixel. With probability `foreground_crop`, a foreground class of the sample and one of its pixels are drawn uniformly,
  and the window uniformly among windows that contain the pixel. A label that shrinks keeps only a sparse grid of its
  pixels, so an object smaller than the grid may be visible in the image and missing in the label; with `resize=None` no
  object is lost.

  Args and Returns are those of `augment`. If nothing is resampled, image and label are views into the sample.
  """
  shape, anchor = sample["label"].shape, None
  factor = math.exp(generator.uniform(*np.log(augmentation.scale)))
  if augmentation.resize is None:
    resized, resize_label = Scale(factor).size(shape), shrink_labels
  else:
    side = factor * (augmentation.resize or size)
    resized = tuple(max(1, round(length * (side / length))) for length in shape)  # nearly a square
    resize_label = _resize_label
  if augmentation.foreground_crop and generator.random() < augmentation.foreground_crop:
    anchor = _foreground_pixel(sample["label"], crop_classes, generator)
  axes = zip(shape, resized, anchor or (None, None), strict=True)
  rows, cols = (_random_span(*axis, size, generator) for axis in axes)
  window = np.s_[rows.start : rows.start + rows.window, cols.start : cols.start + cols.window]
  image = _resize_image(sample["image"][window], (rows.out, cols.out))
  label = resize_label(np.ascontiguousarray(sample["label"][window]), (rows.out, cols.out))
  if (rows.out, cols.out) != (size, size):
    after = (size - rows.before - rows.out, size - cols.before - cols.out)
    border = (rows.before, after[0], cols.before, after[1], cv2.BORDER_REFLECT_101)
    image, label = cv2.copyMakeBorder(image, *border), cv2.copyMakeBorder(label, *border)
  return {**sample, "image": image, "label": label}


def _foreground_pixel(
  label: UInt8[np.ndarray, "h w"], classes: Sequence[int] | None, generator: np.random.Generator
) -> tuple[int, int] | None:
  """Returns row and column of a random pixel of a random class, or None if there is no foreground.

  The class is drawn first, so that a small class next to a large one is found as often.
  """
  present = classes_in(label)
  if classes is not None:
    present = tuple(index for index in present if index in classes)
  if not present:
    return None
  chosen = int(generator.choice(present))
  mask = cv2.inRange(label, chosen, chosen)
  # Counting by rows avoids a list of all foreground pixels, which takes longer than the rest of the chain.
  counts = np.cumsum(cv2.reduce(mask, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S) // 255)
  row = int(np.searchsorted(counts, generator.integers(counts[-1]), side="right"))
  return row, int(generator.choice(np.flatnonzero(mask[row])))


class _Span(NamedTuple):
  """One axis of a crop: `window` source pixels from `start` become `out` pixels, after `before` mirrored pixels."""

  start: int
  window: int
  out: int
  before: int


def _random_span(length: int, resized: int, anchor: int | None, size: int, generator: np.random.Generator) -> _Span:
  """Draws one axis of a crop, which contains the source pixel `anchor` if it is given."""
  if resized < size:
    return _Span(0, length, resized, int(generator.integers(size - resized + 1)))
  window = max(1, round(length * size / resized))
  low, high = 0, length - window
  if anchor is not None:
    low, high = max(low, anchor - window + 1), min(high, anchor)
  return _Span(int(generator.integers(low, high + 1)), window, size, 0)


def _resize_image(image: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resamples an image to (height, width) without aliasing."""
  (height, width), (rows, cols) = shape, image.shape[:2]
  if (rows, cols) == shape:
    return image
  shrink = max(rows / height, cols / width)
  if shrink >= 3:
    # INTER_AREA must not enlarge, so an axis that grows is left to the cubic step below.
    image = cv2.resize(image, (min(cols, width), min(rows, height)), interpolation=cv2.INTER_AREA)
  elif shrink > 1.1:
    # Resize to twice the target, then halve, because INTER_AREA is fast only for halving. Used directly it takes two to
    # three times as long; the result is worse than this one for factors below 2 and hardly better above.
    kernel = cv2.INTER_CUBIC if shrink < 2 else cv2.INTER_LINEAR
    image = cv2.resize(image, (2 * width, 2 * height), interpolation=kernel)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _resize_label(label: UInt8[np.ndarray, "h w"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
  """Resamples a label to (height, width) by nearest neighbor."""
  if label.shape == shape:
    return label
  # INTER_NEAREST measures from the corners of pixels, which would shift labels by half a pixel against their image.
  return cv2.resize(label, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def random_flip(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Mirrors image and label together, in each enabled direction with probability 1/2."""
  vertical = augmentation.flips in ("vertical", "both", "turns") and generator.random() < 0.5
  horizontal = augmentation.flips in ("horizontal", "both", "turns") and generator.random() < 0.5
  if not (vertical or horizontal):
    return sample
  code = -1 if vertical and horizontal else int(horizontal)
  return {**sample, "image": cv2.flip(sample["image"], code), "label": cv2.flip(sample["label"], code)}


def random_turn(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Rotates image and label together by a random number of right angles, if that is enabled."""
  turns = generator.integers(4) if augmentation.flips == "turns" else 0
  if not turns:
    return sample
  code = (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)[turns - 1]
  return {**sample, "image": cv2.rotate(sample["image"], code), "label": cv2.rotate(sample["label"], code)}


def random_appearance(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Changes the image: color, then blur. The label stays."""
  image = sample["image"]
  if any(augmentation.color):
    factors = [generator.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in augmentation.color]
    generator.random()  # once drew a hue; without it, runs from before would resume with other numbers
    image = cv2.transform(image, _color_map(float(_GRAY @ cv2.mean(image)[:3]), *factors))
  if augmentation.blur:
    # 1 - random() is above 0. OpenCV refuses a deviation of 0.
    image = cv2.GaussianBlur(image, (0, 0), augmentation.blur * (1.0 - generator.random()))
  return {**sample, "image": image}


def _color_map(gray: float, brightness: float, contrast: float, saturation: float) -> Float64[np.ndarray, "3 4"]:
  """Returns one affine map of RGB, `[3, 4]`, for the three factors in this order, clipped once, as Pillow does it.

  `gray` is the mean gray of the image, 0..255; contrast is measured from it, saturation from each color's own gray.
  """
  chroma = _RGB @ np.diag([1, saturation, saturation]) @ _YIQ
  # The chroma map does not change grays, so it does not change the equal offset that contrast adds to all channels.
  offset = np.full((3, 1), (1.0 - contrast) * brightness * gray)
  return np.concatenate([brightness * contrast * chroma, offset], axis=1)
