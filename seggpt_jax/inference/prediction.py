"""The result for one image: the colors that the network predicted, and the labels decoded from them.

In: predicted colors and the palette of the prompts. Out: a `Prediction`. Images have any size, so pixels enter compiled
code in blocks of a few sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8

from seggpt_jax import palette as palette_lib
from seggpt_jax.errors import InputError
from seggpt_jax.files import expand
from seggpt_jax.inference import pictures

_MIN_BLOCK, _MAX_BLOCK = 2**12, 2**18  # pixels decoded at a time
_TEMPERATURE = 0.125  # as in training, see `loss.LossOptions`
_FAR = 1e4  # a color so far from all others that it is never the nearest or the second nearest


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
  """The result for one image. All arrays have the image's size.

  Attributes:
    labels: class indices `[H, W]`, uint8, or uint16 with more than 256 classes.
    colors: the colors that the network predicted, uint8 `[H, W, 3]`.
    palette: the color that stood for each class in the network's prompts, uint8 `[N, 3]`.
    classes: the classes that could be found, ascending: the background and those of the prompts.
    unstitched: the prediction before the seams between tiles were predicted again; None if they were not.
    image: the image itself, uint8 `[H, W, 3]`; None if it was not kept.
    class_names: names of classes 1, 2, ..., as far as they were given.
  """

  labels: np.ndarray
  colors: np.ndarray
  palette: np.ndarray
  classes: tuple[int, ...]
  unstitched: Prediction | None = None
  image: np.ndarray | None = None
  class_names: tuple[str, ...] = ()

  def mask(self, class_index: int | str) -> Bool[np.ndarray, "h w"]:
    """Returns True where a class was found, which is given by its index or its name."""
    if isinstance(class_index, str):
      if class_index not in self.class_names:
        raise InputError(f"mask: found {class_index!r}, expected one of {', '.join(self.class_names) or 'no names'}")
      class_index = 1 + self.class_names.index(class_index)
    return self.labels == class_index

  def shares(self) -> dict[int, float]:
    """Returns the share of the image's pixels, 0..1, of each class that was found."""
    classes, counts = np.unique(self.labels, return_counts=True)
    return dict(zip(classes.tolist(), (counts / self.labels.size).tolist(), strict=True))

  def distances(self) -> Float[np.ndarray, "h w 2"]:
    """Returns the distances, 0..442, of each predicted color to the nearest and the second nearest class color.

    Distances are Euclidean, in units of color values 0..255. With a single class, the second distance is infinite.
    """
    distances = _in_blocks(_distances_block, self.colors, self.palette[list(self.classes)], np.float32)
    if len(self.classes) == 1:
      distances[..., 1] = np.inf
    return distances

  def confidence(self) -> Float[np.ndarray, "h w"]:
    """Returns how close each predicted color is to the color of its class, 0..1.

    It is `(second - nearest) / (second + nearest)` of `distances`: 1 for exactly a class color, 0 halfway between two.
    It is not a probability.
    """
    nearest, second = np.moveaxis(self.distances(), -1, 0)
    if len(self.classes) == 1:
      return np.ones_like(nearest)
    return (second - nearest) / (second + nearest)

  def probabilities(self) -> Float[np.ndarray, "h w m"]:
    """Returns the probability of each of `classes`, 0..1, in their order, as `loss.cross_entropy` is trained on them.

    They are a softmax of squared distances to the colors, relative to the two closest colors of classes.
    """
    colors = self.palette[list(self.classes)].astype(np.float32)
    apart = np.linalg.norm(colors[:, None] - colors, axis=-1)[~np.eye(len(colors), dtype=bool)].min(initial=_FAR)
    function = functools.partial(_probabilities_block, scale=_TEMPERATURE * apart**2)
    return _in_blocks(function, self.colors, self.palette[list(self.classes)], np.float32)[..., : len(colors)]

  def save(self, path: str | os.PathLike) -> None:
    """Writes the labels as a PNG file of class indices: 8 bits, or 16 bits with more than 256 classes.

    Examples:
      >>> prediction.save("found/labels.png")
      >>> Image.fromarray(prediction.overlay()).save("overlay.jpg")  # Pillow writes pictures for people

    Args:
      path: path of the file, which ends in .png; its folder is created if missing.

    Raises:
      InputError: the file cannot be written, or its ending is that of another format.
    """
    if os.path.splitext(path)[1].lower() != ".png":
      raise InputError(f"{path}: expected .png, which keeps class indices exactly; for a picture, save overlay()")
    pictures.write_png(Path(expand(path)), self.labels, replace=True)

  def colored(self) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the labels in `palette.display_palette`, the colors for people."""
    return palette_lib.display_palette(len(self.palette))[self.labels]

  def overlay(
    self, image: UInt8[np.ndarray, "h w 3"] | None = None, alpha: float | int = 0.6
  ) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the classes in display colors over the image. The background stays as it is.

    Args:
      image: image to draw on, of the size of the labels; by default the one that was segmented, or black if it was not
        kept.
      alpha: opacity of the colors, 0..1.
    """
    if image is None:
      image = np.zeros_like(self.colors) if self.image is None else self.image
    return pictures.overlay(image, self.labels, palette_lib.display_palette(len(self.palette)), alpha)

  def _repr_png_(self) -> bytes:
    """Returns the colored labels as a PNG file, which notebooks show."""
    return pictures.encode_png(self.colored())

  def __repr__(self) -> str:
    height, width = self.labels.shape
    names = dict(enumerate(self.class_names, 1))
    shares = ", ".join(f"{names.get(index, f'class {index}')}: {share:.1%}" for index, share in self.shares().items())
    return f"Prediction({height} x {width}, {shares})"


def decode_prediction(
  colors: UInt8[np.ndarray, "h w 3"],
  palette: UInt8[np.ndarray, "n 3"],
  classes: Integer[np.ndarray, "m"],
  image: UInt8[np.ndarray, "h w 3"] | None = None,
  sensitivity: Sequence[float] = (),
  least_area: int = 0,
) -> Prediction:
  """Decodes each pixel to the class with the nearest color.

  Args:
    colors: predicted colors.
    palette: the color of each class.
    classes: classes to decode to, ascending.
    image: the image itself, kept with the prediction.
    sensitivity: see `InferenceOptions`.
    least_area: see `InferenceOptions`.
  """
  divisors = None
  if sensitivity:
    divisors = np.ones(max(len(palette), 1 + len(sensitivity)), np.float32)
    divisors[1 : 1 + len(sensitivity)] = sensitivity
    divisors = divisors[classes]
  dtype = np.uint8 if len(palette) <= 256 else np.uint16
  labels = classes.astype(dtype)[decode(colors, palette[classes], divisors)]
  if least_area > 1:
    labels = without_specks(labels, least_area)
  return Prediction(labels, colors, palette, tuple(classes.tolist()), image=image)


def blend_most_likely(
  probabilities: dict[int, Float[np.ndarray, "h w"]], palette: UInt8[np.ndarray, "n 3"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
  """Blends each pixel's most likely class into the background, by its probability."""
  background = palette[0].astype(np.float32)
  best, color = np.zeros(shape, np.float32), np.broadcast_to(background, (*shape, 3))
  for index, probability in probabilities.items():
    color = np.where((probability > best)[..., None], palette[index], color)
    best = np.maximum(best, probability)
  return np.round(background + best[..., None] * (color - background)).astype(np.uint8)


def class_shares(
  colors: UInt8[np.ndarray, "h w 3"], palette: UInt8[np.ndarray, "n 3"], classes: Integer[np.ndarray, "m"]
) -> dict[int, Float[np.ndarray, "h w"]]:
  """Returns how far each color is from the background to each class, 0..1: 0 where another class is nearer."""
  if not len(classes):
    return {}
  nearest = classes[decode(colors, palette[classes])]
  to_background, to_class = (
    np.linalg.norm(colors.astype(np.float32) - end.astype(np.float32), axis=-1)
    for end in (palette[0], palette[nearest])
  )
  share = to_background / np.maximum(to_background + to_class, 1e-6)
  return {index: np.where(nearest == index, share, np.float32(0)) for index in classes.tolist()}


_decode_block = jax.jit(palette_lib.decode)
_distances_block = jax.jit(palette_lib.nearest_distances)


@jax.jit
def _probabilities_block(colors: jax.Array, palette: jax.Array, scale: jax.Array) -> jax.Array:
  squared = ((colors[..., None, :].astype(np.float32) - palette[:, None, None]) ** 2).sum(axis=-1)
  return jax.nn.softmax(-squared / scale, axis=-1)


def without_specks(labels: Integer[np.ndarray, "h w"], least_area: int) -> Integer[np.ndarray, "h w"]:
  """Turns small foreground objects into background.

  Args:
    labels: class indices.
    least_area: pixels that an object needs to stay; it is 8-connected and may be of several classes.
  """
  objects, stats = cv2.connectedComponentsWithStats((labels > 0).astype(np.uint8))[1:3]
  specks = np.flatnonzero(np.asarray(stats)[:, cv2.CC_STAT_AREA] < least_area)
  return np.where(np.isin(objects, specks), 0, labels).astype(labels.dtype)


def decode(
  colors: UInt8[np.ndarray, "h w 3"], palette: Num[np.ndarray, "n 3"], sensitivity: Float[np.ndarray, "n"] | None = None
) -> Integer[np.ndarray, "h w"]:
  """Applies `palette.decode` to one image of any size without compiling for that size.

  Returns:
    Class indices 0..N-1, of the smallest unsigned type that holds them.
  """
  dtype = np.min_scalar_type(max(len(palette) - 1, 0))
  if sensitivity is None:
    return _in_blocks(_decode_block, colors, palette, dtype)
  filled = np.ones((1, max(1 << (len(palette) - 1).bit_length(), 2)), np.float32)
  filled[0, : len(palette)] = sensitivity
  return _in_blocks(lambda block, colors: _decode_block(block, colors, filled), colors, palette, dtype)


def _in_blocks(function: Callable, colors: np.ndarray, palette: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
  """Applies a function of colors and palettes to a large image block by block, in shapes of powers of two."""
  rows = 1 << (len(palette) - 1).bit_length()
  filled = np.full((1, max(rows, 2), 3), _FAR, np.float32)
  filled[0, : len(palette)] = palette
  height, width, _ = colors.shape
  size = min(max(1 << (height * width - 1).bit_length(), _MIN_BLOCK), _MAX_BLOCK)
  pixels, results = colors.reshape(-1, 3), []
  for start in range(0, len(pixels), size):
    block = pixels[start : start + size]
    padded = block if len(block) == size else np.pad(block, ((0, size - len(block)), (0, 0)))
    results.append(np.asarray(function(padded[None, None], filled))[0, 0, : len(block)].astype(dtype))
  return np.concatenate(results).reshape(height, width, *results[0].shape[1:])
