"""Shapes: outlines in the unit disc, and their masks on a square of pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw


@dataclasses.dataclass(frozen=True)
class Outline:
  """A polygon with an optional hole.

  Attributes:
    points: corners (x, y) within the unit disc, [n, 2].
    hole: factor on the points that gives the corners of the hole; 0 is no hole.
  """

  points: Float[np.ndarray, "n 2"]
  hole: float = 0.0


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
  return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _blob(generator: np.random.Generator) -> np.ndarray:
  angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
  radius = np.ones_like(angle)
  for order in range(2, 6):
    radius += generator.normal(0, 0.35 / order) * np.cos(order * angle + generator.uniform(0, 2 * np.pi))
  return _polar(np.clip(radius, 0.25, None) / radius.max(), angle)


def _round(generator: np.random.Generator) -> np.ndarray:
  angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
  return _polar(np.ones_like(angle), angle) * (1.0, generator.uniform(0.35, 1.0))


def _polygon(generator: np.random.Generator) -> np.ndarray:
  corners = generator.integers(3, 7)
  return _polar(np.ones(corners), 2 * np.pi * np.arange(corners) / corners)


def _bar(generator: np.random.Generator) -> np.ndarray:
  width = generator.uniform(0.15, 0.8)
  corners = np.array([(-1, -width), (1, -width), (1, width), (-1, width)])
  return corners / np.hypot(1, width)


def _star(generator: np.random.Generator) -> np.ndarray:
  rays = int(generator.integers(3, 8))
  radius = np.tile([1.0, generator.uniform(0.3, 0.6)], rays)
  return _polar(radius, np.pi * np.arange(2 * rays) / rays)


def _cross(generator: np.random.Generator) -> np.ndarray:
  w = generator.uniform(0.2, 0.4)
  quarter = np.array([(w, w), (w, 1.0), (-w, 1.0)])
  turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.pi / 2 * np.arange(4)]
  return np.concatenate([quarter @ turn for turn in turns]) / np.hypot(1, w)


def _corner(generator: np.random.Generator) -> np.ndarray:
  w = generator.uniform(0.4, 0.7)
  return np.array([(-1, -1), (1, -1), (1, -1 + w), (-1 + w, -1 + w), (-1 + w, 1), (-1, 1)]) * 0.7


def _crescent(generator: np.random.Generator) -> np.ndarray:
  angle = np.linspace(-0.75 * np.pi, 0.75 * np.pi, 24)
  bite = generator.uniform(0.2, 0.6)
  outer, inner = _polar(np.ones(24), angle), _polar(np.full(24, 1 - bite), angle[::-1])
  return np.concatenate([outer, inner + np.array((0.25 * bite, 0.0))])


def _wedge(generator: np.random.Generator) -> np.ndarray:
  half = generator.uniform(0.5, 1.6)
  return np.concatenate([_polar(np.ones(20), np.linspace(-half, half, 20)), [(-0.2, 0.0)]])


_OUTLINES = (_blob, _round, _polygon, _bar, _star, _cross, _corner, _crescent, _wedge)


def random_outline(generator: np.random.Generator) -> Outline:
  """Draws a blob, ellipse, polygon, bar, star, cross, corner, crescent or wedge; some have a hole."""
  points = _OUTLINES[generator.integers(len(_OUTLINES))](generator)
  return Outline(points.astype(np.float32), float(generator.uniform(0.4, 0.7)) if generator.random() < 0.15 else 0.0)


def random_outlines(generator: np.random.Generator, count: int) -> list[Outline]:
  """Draws several outlines of different sorts."""
  sorts = generator.permutation(len(_OUTLINES))[:count]
  return [Outline(_OUTLINES[sort](generator).astype(np.float32)) for sort in sorts]


def fill(
  outline: Outline,
  size: int,
  center: tuple[float, float],
  radius: float,
  angle: float = 0.0,
) -> Bool[np.ndarray, "size size"]:
  """Draws the mask of an outline.

  Args:
    outline: the outline.
    size: side of the square in pixels.
    center: x and y in pixels.
    radius: radius of the enclosing disc in pixels.
    angle: rotation in radians.
  """
  turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
  image = Image.new("L", (size, size))
  draw = ImageDraw.Draw(image)
  points = outline.points @ turn * radius
  draw.polygon((points + center).ravel().tolist(), fill=1)
  if outline.hole:
    draw.polygon((points * outline.hole + center).ravel().tolist(), fill=0)
  return np.asarray(image) > 0


def stroke(points: Float[np.ndarray, "n 2"], size: int, width: int) -> Bool[np.ndarray, "size size"]:
  """Draws the mask of a line through points (x, y) in pixels."""
  image = Image.new("L", (size, size))
  ImageDraw.Draw(image).line(points.ravel().tolist(), fill=1, width=max(width, 1), joint="curve")
  return np.asarray(image) > 0


def walk(
  generator: np.random.Generator, size: int, steps: int = 12, wiggle: float = 0.3, straight: float = 0.0
) -> Float[np.ndarray, "steps 2"]:
  """Draws a random line that crosses the square or a part of it.

  Args:
    generator: source of randomness.
    size: side of the square in pixels.
    steps: number of points.
    wiggle: deviation of the turn from point to point, in radians.
    straight: share of the wiggle that is removed.
  """
  turns = np.cumsum(generator.normal(0, wiggle * (1 - straight), steps))
  heading = generator.uniform(0, 2 * np.pi) + turns
  length = size * generator.uniform(0.6, 1.4) / steps
  points = np.cumsum(length * _polar(np.ones(steps), heading), axis=0)
  return points - points.mean(axis=0) + generator.uniform(0.2, 0.8, 2) * size


def dilate(mask: Bool[np.ndarray, "h w"], times: int = 1) -> Bool[np.ndarray, "h w"]:
  """Grows a mask by a number of pixels in the four directions."""
  for _ in range(times):
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    mask = grown
  return mask
