"""What the network says about one image: painted colors, and the labels they mean.

In: colors as the network painted them, and the palette of the prompts. Out: a `Prediction`. Images are of any size, so
pixels enter compiled code in blocks of a few sizes.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8
from PIL import Image

from seggpt_jax import palette as palette_lib
from seggpt_jax.inference import tiling

_LEAST_BLOCK, _MOST_BLOCK = 2**12, 2**18  # pixels decoded at a time
_FAR = 1e4  # a color so far from all others that it is never the nearest or the second


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
  """What the network says about one image; everything has the image's own size.

  Attributes:
    labels: class indices `[H, W]`, uint8, or uint16 when there are more than 256 classes.
    colors: the colors the network painted, uint8 `[H, W, 3]`.
    palette: the color of each class, uint8 `[N, 3]`.
    classes: the classes that could be found, ascending: the background and those of the prompts.
    unstitched: what was painted before the seams were painted again; None where they were not.
  """

  labels: np.ndarray
  colors: np.ndarray
  palette: np.ndarray
  classes: tuple[int, ...]
  unstitched: Prediction | None = None

  def mask(self, class_index: int) -> Bool[np.ndarray, "h w"]:
    """Where that class was found."""
    return self.labels == class_index

  def shares(self) -> dict[int, float]:
    """The share of the image's pixels, 0..1, of each class that was found."""
    classes, counts = np.unique(self.labels, return_counts=True)
    return dict(zip(classes.tolist(), (counts / self.labels.size).tolist(), strict=True))

  def distances(self) -> Float[np.ndarray, "h w 2"]:
    """How far each painted color is from the nearest color that is decoded to and from the second, 0..442.

    The unit is that of colors, 0..255 for each channel. With one class alone there is no second: infinite.
    """
    distances = _in_blocks(_distances_block, self.colors, self.palette[list(self.classes)])
    if len(self.classes) == 1:
      distances[..., 1] = np.inf
    return distances

  def confidence(self) -> Float[np.ndarray, "h w"]:
    """How clearly each pixel was painted in one of the colors, 0..1.

    `(second - nearest) / (second + nearest)` of `distances`: 1 for exactly a palette's color, 0 halfway between two.
    It is no probability.
    """
    nearest, second = np.moveaxis(self.distances(), -1, 0)
    if len(self.classes) == 1:
      return np.ones_like(nearest)
    return (second - nearest) / (second + nearest)

  def _repr_png_(self) -> bytes:
    """How a notebook shows it: the labels in their colors."""
    file = io.BytesIO()
    Image.fromarray(self.palette[self.labels]).save(file, "png")
    return file.getvalue()

  def __repr__(self) -> str:
    height, width = self.labels.shape
    shares = ", ".join(f"class {index}: {share:.1%}" for index, share in self.shares().items())
    return f"Prediction({height} x {width}, {shares})"


def decode_prediction(
  colors: UInt8[np.ndarray, "h w 3"], palette: UInt8[np.ndarray, "n 3"], classes: Integer[np.ndarray, "m"]
) -> Prediction:
  """The prediction with each pixel's nearest color among those of some classes.

  Args:
    colors: painted colors.
    palette: the color of each class.
    classes: those that are decoded to, ascending.
  """
  labels = classes[decode(colors, palette[classes])].astype(np.uint8 if len(palette) <= 256 else np.uint16)
  return Prediction(labels, colors, palette, tuple(classes.tolist()))


_decode_block = jax.jit(palette_lib.decode)
_distances_block = jax.jit(palette_lib.nearest_distances)


def decode(colors: UInt8[np.ndarray, "h w 3"], palette: Num[np.ndarray, "n 3"]) -> Integer[np.ndarray, "h w"]:
  """`palette.decode` for one image of any size without compiling for that size.

  Args:
    colors: painted colors, 0..255.
    palette: N colors, 0..255.

  Returns:
    int32 class indices 0..N-1.
  """
  return _in_blocks(_decode_block, colors, palette)


def _in_blocks(function: Callable, colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """A function of `[B, H, W, 3]` colors and `[B, N, 3]` palettes, for one image, in as few shapes as powers of two."""
  rows = 1 << (len(palette) - 1).bit_length()
  filled = np.full((1, max(rows, 2), 3), _FAR, np.float32)
  filled[0, : len(palette)] = palette
  height, width, _ = colors.shape
  size = min(max(1 << (height * width - 1).bit_length(), _LEAST_BLOCK), _MOST_BLOCK)
  blocks = tiling.pixel_blocks(colors.reshape(-1, 3), size, fill=0)
  results = np.concatenate([np.asarray(function(block[None, None], filled))[0, 0] for block in blocks])
  return results[: height * width].reshape(height, width, *results.shape[1:])
