"""Augmentation of one training sample: a labeled image of any size in, a square of the canvas's size out.

Geometry changes image and label together; images are resampled smoothly, labels by nearest neighbor. Appearance changes
the image alone. Every function is pure: its result depends on the sample, a NumPy generator and an `Augmentation`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from seggpt_jax.data.cells import zoomed_shape
from seggpt_jax.data.labels import classes_in, shrink_labels
from seggpt_jax.data.sources import Sample

# The pipeline already runs one sample in each thread. Threads inside OpenCV would only compete with them.
cv2.setNumThreads(0)

RESIZE_MODES = ("fixed", "shorter")

_Image = UInt8[np.ndarray, "h w 3"]

_GRAY = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)

# 256 equally likely quantiles of a standard Gaussian, one for each value of a random byte.
_GAUSSIAN = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])
_GAUSSIAN /= _GAUSSIAN.std()


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Strengths of the random changes to training samples. The defaults switch every change off.

  Attributes:
    resize: side in pixels to which a sample is resized before the crop; 0 takes the side of the canvas square, None
      keeps its size.
    resize_mode: "fixed" resizes to a square of that side, "shorter" resizes the shorter side to it and keeps the aspect
      ratio.
    scale: lowest and highest factor on the size after `resize`, above 0, drawn log-uniformly. A sample smaller than the
      crop is mirrored at its borders.
    foreground_crop: probability, 0 to 1, that the crop contains a chosen foreground pixel, see `random_crop`.
    flip_horizontal: True mirrors left and right with probability 1/2.
    flip_vertical: True mirrors top and bottom with probability 1/2.
    rotate90: True rotates by 0, 90, 180 or 270 degrees, each with probability 1/4.
    brightness: b >= 0; the colors are multiplied by a factor from 1 - b .. 1 + b, at least 0. Factor 0 gives black.
    contrast: c >= 0; the difference of each color from the image's mean gray is multiplied by a factor from
      1 - c .. 1 + c, at least 0.
    saturation: s >= 0; the difference of each pixel from its own gray is multiplied by a factor from 1 - s .. 1 + s, at
      least 0.
    hue: h, 0 to 0.5; the colors are rotated by a fraction of the color circle from -h..h, so 0.5 reaches all hues.
    blur: largest standard deviation, in pixels, of a Gaussian filter; drawn from 0..blur.
    noise: largest standard deviation, in gray levels of 255, of Gaussian noise; drawn from 0..noise.
    jpeg_quality: lowest quality, 1..100, of JPEG compression; drawn from jpeg_quality..100. 100 never compresses.

  Raises:
    ValueError: `resize_mode` is unknown.
  """

  resize: int | None = 0
  resize_mode: str = "fixed"
  scale: tuple[float, float] = (1.0, 1.0)
  foreground_crop: float = 0.0
  flip_horizontal: bool = False
  flip_vertical: bool = False
  rotate90: bool = False
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  blur: float = 0.0
  noise: float = 0.0
  jpeg_quality: int = 100

  def __post_init__(self):
    if self.resize_mode not in RESIZE_MODES:
      raise ValueError(f"resize_mode: found {self.resize_mode!r}, expected one of {', '.join(RESIZE_MODES)}")


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

  The window is a whole number of source pixels, so the size of the result may differ from the drawn factor by half a
  pixel. With probability `foreground_crop`, a foreground class of the sample and one of its pixels are drawn uniformly,
  and the window uniformly among those that contain the pixel. A label that shrinks keeps only a sparse grid of its
  pixels, so an object smaller than the grid may be visible in the image and missing in the label; with `resize=None` no
  object is lost.

  Args and Returns are those of `augment`. If nothing is resampled, image and label are views into the sample.
  """
  shape, anchor = sample["label"].shape, None
  factor = math.exp(generator.uniform(*np.log(augmentation.scale)))
  if augmentation.resize is None:
    resized, resize_label = zoomed_shape(shape, factor), shrink_labels
  else:
    resized = _resized_shape(shape, factor * (augmentation.resize or size), augmentation.resize_mode)
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


def _resized_shape(shape: tuple[int, int], side: float, mode: str) -> tuple[int, int]:
  """Returns the height and width in pixels to which a sample is resized."""
  factors = (side / length for length in shape) if mode == "fixed" else (side / min(shape),) * 2
  height, width = (max(1, round(length * factor)) for length, factor in zip(shape, factors, strict=True))
  return height, width


def _foreground_pixel(
  label: UInt8[np.ndarray, "h w"], classes: Sequence[int] | None, generator: np.random.Generator
) -> tuple[int, int] | None:
  """Returns row and column of a random pixel of a random class, or None if there is no foreground.

  The class is drawn first, so that a small class beside a large one is found as often.
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
  vertical = augmentation.flip_vertical and generator.random() < 0.5
  horizontal = augmentation.flip_horizontal and generator.random() < 0.5
  if not (vertical or horizontal):
    return sample
  code = -1 if vertical and horizontal else int(horizontal)
  return {**sample, "image": cv2.flip(sample["image"], code), "label": cv2.flip(sample["label"], code)}


def random_turn(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Rotates image and label together by a random number of right angles, if that is enabled."""
  turns = generator.integers(4) if augmentation.rotate90 else 0
  if not turns:
    return sample
  code = (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)[turns - 1]
  return {**sample, "image": cv2.rotate(sample["image"], code), "label": cv2.rotate(sample["label"], code)}


def random_appearance(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Changes the image in the order in which a camera would: color, blur, noise, compression. The label stays."""
  image = sample["image"]
  if augmentation.brightness or augmentation.contrast or augmentation.saturation or augmentation.hue:
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [generator.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
    hue = abs(augmentation.hue)  # NumPy draws nothing from 0 to -0.0
    turn = generator.uniform(-hue, hue)
    image = cv2.transform(image, color_map(float(_GRAY @ cv2.mean(image)[:3]), *factors, turn))
  if augmentation.blur:
    # 1 - random() is above 0. OpenCV refuses a deviation of 0.
    image = cv2.GaussianBlur(image, (0, 0), augmentation.blur * (1.0 - generator.random()))
  if augmentation.noise:
    image = add_noise(image, generator.uniform(0.0, augmentation.noise), generator)
  if augmentation.jpeg_quality < 100:
    image = compress(image, int(generator.integers(augmentation.jpeg_quality, 101)))
  return {**sample, "image": image}


def color_map(
  gray: float, brightness: float, contrast: float, saturation: float, hue: float
) -> Float64[np.ndarray, "3 4"]:
  """Returns one affine map of RGB for brightness, contrast, saturation and hue, applied in this order, clipped once.

  The first three match Pillow and torchvision. Hue rotates the chroma plane of YIQ; unlike a rotation in HSV, this
  keeps the gray of every pixel.

  Args:
    gray: mean gray of the image, 0..255.
    brightness: factor on each color.
    contrast: factor on the distance of each color from the mean gray.
    saturation: factor on the distance of each color from its own gray.
    hue: rotation as a fraction of the color circle.

  Returns:
    Matrix to multiply with a column (r, g, b, 1).
  """
  cos, sin = saturation * math.cos(math.tau * hue), saturation * math.sin(math.tau * hue)
  chroma = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
  # The chroma map does not change grays, so it does not change the equal offset that contrast adds to all channels.
  offset = np.full((3, 1), (1.0 - contrast) * brightness * gray)
  return np.concatenate([brightness * contrast * chroma, offset], axis=1)


def add_noise(image: _Image, deviation: float, generator: np.random.Generator) -> _Image:
  """Adds Gaussian noise with a standard deviation in gray levels, independent for every value."""
  # Random bytes and a table of quantiles take a tenth of the time of `standard_normal`, but noise never exceeds 2.9
  # deviations. `cv2.randn` is not used because it has hidden state.
  draws = np.frombuffer(generator.bytes(image.size), np.uint8).reshape(image.shape)
  noise = cv2.LUT(draws, np.rint(deviation * _GAUSSIAN).astype(np.int16))
  return cv2.add(image, noise, dtype=cv2.CV_8U)


def compress(image: _Image, quality: int) -> _Image:
  """Returns the image after JPEG compression with a quality of 1..100."""
  # OpenCV expects BGR. In RGB order JPEG would lose most detail in the channels that eyes see best.
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  return cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR_RGB)
