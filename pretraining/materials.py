"""Materials: recipes for the appearance of a surface, from which any number of patches can be painted.

Two patches of one material share colors, pattern, scale and direction, but no pixel. Each takes NumPy tens of
microseconds, so that tasks can be drawn as fast as a network trains on them.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float

PATTERNS = ("flat", "gradient", "clouds", "grain", "stripes", "checks", "dots", "marble", "bands")


@functools.cache
def _spread(size: int, cells: int) -> Float[np.ndarray, "size cells"]:
  """Returns the matrix that interpolates `cells` random values to `size` pixels and keeps their variance."""
  position = (np.arange(size) + 0.5) * (cells - 3) / size + 1.0
  weight = np.exp(-0.5 * ((position[:, None] - np.arange(cells)) / 0.6) ** 2)
  return (weight / np.sqrt((weight**2).sum(axis=1, keepdims=True))).astype(np.float32)


def smooth_noise(generator: np.random.Generator, size: int, cells: float) -> Float[np.ndarray, "size size"]:
  """Draws a smooth random field with mean 0 and variance about 1.

  Args:
    generator: source of randomness.
    size: side in pixels.
    cells: approximate number of hills and valleys along a side.
  """
  spread = _spread(size, max(int(round(cells)), 1) + 3)
  return spread @ generator.standard_normal((spread.shape[1],) * 2, dtype=np.float32) @ spread.T


@functools.cache
def coordinates(size: int) -> tuple[Float[np.ndarray, "size 1"], Float[np.ndarray, "1 size"]]:
  """Returns y and x of the pixel centers, 0..1."""
  axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
  return axis[:, None], axis[None, :]


@dataclasses.dataclass(frozen=True)
class Material:
  """A recipe for a surface.

  Attributes:
    pattern: one of `PATTERNS`.
    colors: the two colors of the pattern, 0..255, [2, 3].
    frequency: periods or hills along a side of the square.
    angle: direction in radians.
    sharpness: 0 blends the colors smoothly, 1 switches between them.
    roughness: standard deviation of pixel noise, in 0..255.
  """

  pattern: str
  colors: Float[np.ndarray, "2 3"]
  frequency: float
  angle: float
  sharpness: float
  roughness: float

  @property
  def color(self) -> Float[np.ndarray, "3"]:
    """Mean color."""
    return self.colors.mean(axis=0)

  def paint(self, generator: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """Paints a new square of this material, 0..255, not clipped."""
    if self.pattern == "flat":
      square = np.broadcast_to(self.colors.mean(axis=0), (size, size, 3))
    else:
      share = self._pattern(generator, size)
      # From a soft wave to a hard edge.
      share = np.clip((share - 0.5) * (1.0 + 6.0 * self.sharpness) + 0.5, 0.0, 1.0)
      square = self.colors[0] + share[..., None] * (self.colors[1] - self.colors[0])
    if self.roughness:
      square = square + generator.standard_normal((size, size, 1), dtype=np.float32) * np.float32(self.roughness)
    return square.astype(np.float32)

  def _pattern(self, generator: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Returns the share of the second color in each pixel, about 0..1."""
    if self.pattern == "clouds":
      return 0.5 + 0.3 * smooth_noise(generator, size, self.frequency)
    if self.pattern == "grain":
      return 0.5 + 0.3 * smooth_noise(generator, size, size / 2.5)
    y, x = coordinates(size)
    # Python floats: NumPy's own would turn all of it into float64.
    cos, sin = math.cos(self.angle), math.sin(self.angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    if self.pattern == "gradient":
      return 0.5 + along - generator.uniform(0.2, 0.8)
    turn = 2 * math.pi * self.frequency
    first, second = generator.uniform(0, 2 * math.pi, 2).tolist()
    if self.pattern == "stripes":
      return 0.5 + 0.5 * np.sin(turn * along + first)
    if self.pattern == "checks":
      return 0.5 + 0.5 * np.sin(turn * along + first) * np.sin(turn * across + second)
    if self.pattern == "dots":
      return np.maximum(np.sin(turn * along + first) * np.sin(turn * across + second), 0.0) * 1.2
    if self.pattern == "marble":
      return 0.5 + 0.5 * np.sin(turn * along + first + 1.5 * smooth_noise(generator, size, 4.0))
    levels = np.sin(turn * along + first) + 0.5 * np.sin(2.3 * turn * along + second)
    return 0.5 + 0.25 * np.round(levels * 1.5)


def random_material(
  generator: np.random.Generator,
  apart_from: tuple[Material, ...] | list[Material] = (),
  contrast: float = 1.0,
) -> Material:
  """Draws a random material whose mean color differs from those of other materials.

  Args:
    generator: source of randomness.
    apart_from: materials to differ from; the function draws a few colors and keeps the one farthest from theirs.
    contrast: factor on the difference between the two colors of the material.
  """
  colors = generator.uniform(10, 245, (8 if apart_from else 1, 3))
  if generator.random() < 0.3:
    # Many inspected surfaces are gray.
    colors = colors.mean(axis=1, keepdims=True) + generator.uniform(-6, 6, 3) + 1.4 * (colors[:, :1] - 127.5)
    colors = np.clip(colors, 5, 250)
  if apart_from:
    others = np.stack([other.color for other in apart_from])
    color = colors[np.argmax(np.linalg.norm(colors[:, None] - others, axis=-1).min(axis=1))]
  else:
    color = colors[0]
  direction = generator.standard_normal(3) * 0.5 + generator.choice((-1.0, 1.0))
  offset = direction * generator.uniform(8, 32) * contrast
  return Material(
    pattern=str(generator.choice(PATTERNS)),
    colors=np.stack([color - offset, color + offset]).astype(np.float32),
    frequency=float(np.exp(generator.uniform(np.log(2.5), np.log(12)))),
    angle=float(generator.uniform(0, np.pi)),
    sharpness=float(generator.random() ** 2),
    roughness=float(max(generator.uniform(-6, 12), 0.0)),
  )


def random_materials(
  generator: np.random.Generator, count: int, contrast: float = 1.0, apart_from: tuple[Material, ...] = ()
) -> list[Material]:
  """Draws several materials whose mean colors differ from one another and from those of other materials."""
  materials: list[Material] = []
  for _ in range(count):
    materials.append(random_material(generator, [*apart_from, *materials], contrast))
  return materials


def vary(material: Material, generator: np.random.Generator, amount: float) -> Material:
  """Returns the same material in another light: colors, scale and direction shift a little.

  Args:
    material: the material to vary.
    generator: source of randomness.
    amount: 0 changes nothing; 1 is the largest change between two pictures of the same object.
  """
  if not amount:
    return material
  shift = generator.standard_normal(3) * 10 + generator.standard_normal() * 10
  return dataclasses.replace(
    material,
    colors=(material.colors + amount * shift).astype(np.float32),
    frequency=material.frequency * float(np.exp(0.2 * amount * generator.standard_normal())),
    angle=material.angle + 0.3 * amount * float(generator.standard_normal()),
  )


def retextured(material: Material, generator: np.random.Generator) -> Material:
  """Draws a material with the same colors and another pattern."""
  others = [pattern for pattern in ("clouds", "stripes", "checks", "dots", "grain") if pattern != material.pattern]
  return dataclasses.replace(
    material,
    pattern=str(generator.choice(others)),
    frequency=float(generator.uniform(3, 10)),
    angle=material.angle + float(generator.uniform(0.5, 2.6)),
    sharpness=float(generator.random()),
  )
