"""How one training sample is varied: a labeled image of any size in, a square of the canvas's size out.

Geometry moves image and label alike, images resampled smoothly and labels by nearest neighbor; appearance changes the
image alone. Everything is a pure function of the sample, a NumPy generator and an `Augmentation`.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from seggpt_jax.data.sources import Sample

# The pipeline gives each thread a sample of its own; OpenCV's threads on top of those would only take turns with them.
cv2.setNumThreads(0)

RESIZE_MODES = ("fixed", "shorter")

_Image = UInt8[np.ndarray, "h w 3"]

_GRAY = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)

# A standard Gaussian as 256 equally likely values, one for each value of a random byte.
_GAUSSIAN = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])
_GAUSSIAN /= _GAUSSIAN.std()


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How strongly training samples are varied; the defaults switch every part off.

  Attributes:
    resize: side in pixels that a sample is resized to before the crop; the canvas square if 0.
    resize_mode: "fixed" resizes to a square of that side whatever the aspect, "shorter" the shorter side to it and
      keeps the aspect.
    scale: lowest and highest factor on the size after `resize`, drawn log-uniformly; above 0. What is smaller than the
      crop is mirrored at its borders.
    foreground_crop: probability that the crop is placed around a foreground pixel, see `random_crop`.
    flip_horizontal: mirror left and right with probability 1/2.
    flip_vertical: mirror top and bottom with probability 1/2.
    rotate90: turn by 0, 90, 180 or 270 degrees, each with probability 1/4.
    brightness: factor on the colors, drawn from 1 - b .. 1 + b but not below 0; 0 is black.
    contrast: likewise for the distance from the image's mean gray.
    saturation: likewise for the distance of each pixel from its gray.
    hue: turn of the colors as a fraction of the color circle, drawn from -h..h; 0.5 reaches all hues.
    blur: standard deviation in pixels of a Gaussian filter, drawn from 0..blur.
    noise: standard deviation in gray levels (of 255) of Gaussian noise, drawn from 0..noise.
    jpeg_quality: lowest quality, 1..100, of a JPEG compression, drawn from q..100; 100 leaves it out.

  Raises:
    ValueError: unknown `resize_mode`.
  """

  resize: int = 0
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


def augment(sample: Sample, size: int, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """The whole chain for one training sample: crop, flip, turn, vary its appearance.

  Args:
    sample: of any size; it is not changed, but may share its pixels with the result where nothing is to be done.
    size: side in pixels of the square that comes out.
    generator: all that is random comes from here.
    augmentation: what is done, and how strongly.

  Returns:
    The sample with `image` uint8 [size, size, 3] and `label` uint8 [size, size], both C-contiguous.
  """
  sample = random_crop(sample, size, generator, augmentation)
  sample = random_flip(sample, generator, augmentation)
  sample = random_turn(sample, generator, augmentation)
  sample = random_appearance(sample, generator, augmentation)
  image, label = (np.ascontiguousarray(sample[key]) for key in ("image", "label"))
  return {**sample, "image": image, "label": label}


def random_crop(sample: Sample, size: int, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """A random square of the resized sample; only what the square shows is resampled.

  The window is a whole number of source pixels, so the factor may differ from the drawn one by half a pixel's worth.
  Where `foreground_crop` decides so, one pixel is chosen uniformly among those labeled neither 0 nor 255 and the
  window uniformly among those that hold it. A label that shrinks keeps a sparse grid of the window's pixels: an object
  smaller than the factor may be in the image, and not in the label.

  Args and Returns as of `augment`; where nothing is resampled, image and label are views of the sample's own.
  """
  shape, held = sample["label"].shape, None
  factor = math.exp(generator.uniform(*np.log(augmentation.scale)))
  resized = _resized_shape(shape, factor * (augmentation.resize or size), augmentation.resize_mode)
  if augmentation.foreground_crop and generator.random() < augmentation.foreground_crop:
    held = _foreground_pixel(sample["label"], generator)
  rows, cols = (_random_span(*axis, size, generator) for axis in zip(shape, resized, held or (None, None), strict=True))
  window = np.s_[rows.start : rows.start + rows.window, cols.start : cols.start + cols.window]
  image = _resize_image(sample["image"][window], (rows.out, cols.out))
  label = _resize_label(sample["label"][window], (rows.out, cols.out))
  if (rows.out, cols.out) != (size, size):
    after = (size - rows.before - rows.out, size - cols.before - cols.out)
    border = (rows.before, after[0], cols.before, after[1], cv2.BORDER_REFLECT_101)
    image, label = cv2.copyMakeBorder(image, *border), cv2.copyMakeBorder(label, *border)
  return {**sample, "image": image, "label": label}


def _resized_shape(shape: tuple[int, int], side: float, mode: str) -> tuple[int, int]:
  """Height and width in pixels that a sample is resized to."""
  factors = (side / length for length in shape) if mode == "fixed" else (side / min(shape),) * 2
  height, width = (max(1, round(length * factor)) for length, factor in zip(shape, factors, strict=True))
  return height, width


def _foreground_pixel(label: UInt8[np.ndarray, "h w"], generator: np.random.Generator) -> tuple[int, int] | None:
  """Row and column of a random pixel labeled neither 0 nor 255, or None if there is none."""
  mask = cv2.inRange(label, 1, 254)
  # Counting by rows first spares a list of all foreground pixels, which takes longer than the rest of the chain.
  counts = np.cumsum(cv2.reduce(mask, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S) // 255)
  if not counts[-1]:
    return None
  row = int(np.searchsorted(counts, generator.integers(counts[-1]), side="right"))
  return row, int(generator.choice(np.flatnonzero(mask[row])))


class _Span(NamedTuple):
  """One axis of a crop: `window` source pixels from `start` on become `out`; `before` mirrored ones precede them."""

  start: int
  window: int
  out: int
  before: int


def _random_span(length: int, resized: int, held: int | None, size: int, generator: np.random.Generator) -> _Span:
  """Draws one axis of a crop, around the source pixel `held` if given."""
  if resized < size:
    return _Span(0, length, resized, int(generator.integers(size - resized + 1)))
  window = max(1, round(length * size / resized))
  low, high = 0, length - window
  if held is not None:
    low, high = max(low, held - window + 1), min(high, held)
  return _Span(int(generator.integers(low, high + 1)), window, size, 0)


def _resize_image(image: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resamples without aliasing; to (height, width)."""
  (height, width), (rows, cols) = shape, image.shape[:2]
  if (rows, cols) == shape:
    return image
  shrink = max(rows / height, cols / width)
  if shrink >= 3:
    # INTER_AREA must not enlarge: an axis that grows waits for the second step.
    image = cv2.resize(image, (min(cols, width), min(rows, height)), interpolation=cv2.INTER_AREA)
  elif shrink > 1.1:
    # Twice the size, then halved: INTER_AREA is fast for halving only. Its odd factors take two to three times as long,
    # below 2 for a result further from an antialiased cubic, above for one little closer.
    kernel = cv2.INTER_CUBIC if shrink < 2 else cv2.INTER_LINEAR
    image = cv2.resize(image, (2 * width, 2 * height), interpolation=kernel)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _resize_label(label: UInt8[np.ndarray, "h w"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
  """Takes the nearest pixel; to (height, width)."""
  if label.shape == shape:
    return label
  # INTER_NEAREST measures from the pixels' corners and would shift labels by half a pixel against their image.
  return cv2.resize(label, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def random_flip(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Mirrors image and label alike, each way with probability 1/2 if it is on."""
  vertical = augmentation.flip_vertical and generator.random() < 0.5
  horizontal = augmentation.flip_horizontal and generator.random() < 0.5
  if not (vertical or horizontal):
    return sample
  code = -1 if vertical and horizontal else int(horizontal)
  return {**sample, "image": cv2.flip(sample["image"], code), "label": cv2.flip(sample["label"], code)}


def random_turn(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Turns image and label alike by a random number of right angles, if that is on."""
  turns = generator.integers(4) if augmentation.rotate90 else 0
  if not turns:
    return sample
  code = (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)[turns - 1]
  return {**sample, "image": cv2.rotate(sample["image"], code), "label": cv2.rotate(sample["label"], code)}


def random_appearance(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Varies the image in the order of a camera: color, blur, noise, compression. The label stays."""
  image = sample["image"]
  if augmentation.brightness or augmentation.contrast or augmentation.saturation or augmentation.hue:
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [generator.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
    turn = generator.uniform(-augmentation.hue, augmentation.hue)
    image = cv2.transform(image, color_map(float(_GRAY @ cv2.mean(image)[:3]), *factors, turn))
  if augmentation.blur:
    # 1 - [0, 1): OpenCV refuses a deviation of 0.
    image = cv2.GaussianBlur(image, (0, 0), augmentation.blur * (1.0 - generator.random()))
  if augmentation.noise:
    image = add_noise(image, generator.uniform(0.0, augmentation.noise), generator)
  if augmentation.jpeg_quality < 100:
    image = compress(image, int(generator.integers(augmentation.jpeg_quality, 101)))
  return {**sample, "image": image}


def color_map(
  gray: float, brightness: float, contrast: float, saturation: float, hue: float
) -> Float64[np.ndarray, "3 4"]:
  """Brightness, contrast, saturation and hue, in this order, as one affine map of RGB, which clips once at the end.

  The first three are as in Pillow and torchvision; hue turns the chroma plane of YIQ, which unlike a turn in HSV keeps
  the gray of every pixel.

  Args:
    gray: mean gray of the image.
    brightness: factor on each color.
    contrast: factor on its distance from the mean gray.
    saturation: factor on its distance from its own gray.
    hue: turn as a fraction of the color circle.

  Returns:
    Matrix for colors (r, g, b, 1) as a column.
  """
  cos, sin = saturation * math.cos(math.tau * hue), saturation * math.sin(math.tau * hue)
  chroma = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
  # Chroma leaves grays alone, so the offset that contrast adds to all channels goes through it unchanged.
  offset = np.full((3, 1), (1.0 - contrast) * brightness * gray)
  return np.concatenate([brightness * contrast * chroma, offset], axis=1)


def add_noise(image: _Image, deviation: float, generator: np.random.Generator) -> _Image:
  """Adds Gaussian noise of a standard deviation in gray levels, independent for every value."""
  # A random byte each and a table of quantiles: a tenth of the time of `standard_normal`, and nothing lies beyond 2.9
  # deviations. `cv2.randn` has hidden state.
  draws = np.frombuffer(generator.bytes(image.size), np.uint8).reshape(image.shape)
  noise = cv2.LUT(draws, np.rint(deviation * _GAUSSIAN).astype(np.int16))
  return cv2.add(image, noise, dtype=cv2.CV_8U)


def compress(image: _Image, quality: int) -> _Image:
  """What JPEG of a quality of 1..100 leaves of an image."""
  # OpenCV takes blue first; in the wrong order JPEG would be coarse where eyes are sharp.
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  return cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR_RGB)
