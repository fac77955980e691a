"""Families of scenes that no network is pretrained on. They measure whether a network reads the prompt.

Each family resembles something that people segment: cells under a microscope, fields from the air, a slice of a brain,
a circuit board, fruit on a cloth, weathered concrete. The functions have the signature of those in `families.py`, but
share neither its drawing code nor its random materials, so a network cannot succeed here by appearance alone. They
ignore the difficulty, since a measure should not change; `tasks.draw_episode` varies only the light with it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from pretraining.materials import coordinates, smooth_noise
from pretraining.scenes import Family, Scenes
from seggpt_jax.synthetic.board_layout import FINE, draw_layout

_LEAST, _MOST = 0.015, 0.4  # share of a picture that each kind covers

_Paint = np.ndarray | np.float32  # [size, size, 3], [size, size, 1], [3] or one gray, 0..255


class _Picture:
  """A picture that is being drawn, and the kind of each pixel."""

  def __init__(self, ground: _Paint, size: int):
    self.image = np.broadcast_to(ground, (size, size, 3)).astype(np.float32)
    self.kinds = np.zeros((size, size), np.uint8)

  def shade(self, cover: np.ndarray, paint: _Paint) -> None:
    """Blends a color over the picture by coverage [size, size], 0..1; kinds stay as they are."""
    self.image += cover[..., None] * (paint - self.image)

  def put(self, cover: np.ndarray, paint: _Paint, kind: int | np.integer) -> None:
    """Blends a color over the picture by coverage, and marks the covered pixels as a kind."""
    self.shade(cover, paint)
    self.kinds[cover > 0.5] = kind


def _scenes(draw: Callable[[], _Picture], count: int, num_kinds: int) -> Scenes:
  """Draws pictures; redraws each one until every kind is visible and none fills it."""
  pictures = []
  for _ in range(count):
    for _ in range(40):
      picture = draw()
      shares = np.bincount(picture.kinds.ravel(), minlength=num_kinds + 1)[1:] / picture.kinds.size
      if shares.min() >= _LEAST and shares.max() <= _MOST:
        break
    pictures.append(picture)
  return Scenes([picture.image for picture in pictures], [picture.kinds for picture in pictures])


def _color(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
  """Converts hue, saturation and value 0..1 to a color 0..255; the hue is cyclic."""
  return 255 * np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def _grain(generator: np.random.Generator, size: int, cells: float, amount: float) -> Float[np.ndarray, "size size 1"]:
  """Draws smooth gray noise to add to a picture."""
  return amount * smooth_noise(generator, size, cells)[..., None]


def _frame(
  size: int, center: np.ndarray, radii: tuple[float, float], angle: float
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "size size"]]:
  """Returns coordinates in which an ellipse about `center` is the unit circle; lengths are in sides of the picture."""
  y, x = coordinates(size)
  y, x = y - np.float32(center[1]), x - np.float32(center[0])
  cos, sin = np.cos(angle), np.sin(angle)
  return ((x * cos + y * sin) / radii[0]).astype(np.float32), ((y * cos - x * sin) / radii[1]).astype(np.float32)


def _inside(distance: np.ndarray, softness: float) -> np.ndarray:
  """Returns the coverage of the region with distance below 1; its soft edge has the given width."""
  return np.clip((1 - distance) / softness + 0.5, 0, 1)


def _polygon(size: int, points: np.ndarray) -> Float[np.ndarray, "size size"]:
  """Returns the coverage of a polygon with corners (x, y), 0..1; its edge is as soft as a camera's."""
  image = Image.new("L", (size * FINE, size * FINE))
  ImageDraw.Draw(image).polygon((points * size * FINE).ravel().tolist(), fill=255)
  return np.asarray(image.reduce(FINE), np.float32) / 255


def _line(size: int, points: np.ndarray, width: float) -> Float[np.ndarray, "size size"]:
  """Returns the coverage of a line through points (x, y), 0..1; the width is in the same unit."""
  image = Image.new("L", (size * FINE, size * FINE))
  pixels = max(round(width * size * FINE), 1)
  ImageDraw.Draw(image).line((points * size * FINE).ravel().tolist(), fill=255, width=pixels, joint="curve")
  return np.asarray(image.reduce(FINE), np.float32) / 255


def _apart(generator: np.random.Generator, radii: np.ndarray) -> Float[np.ndarray, "n 2"]:
  """Draws centers (x, y), 0..1, of discs, and keeps the overlap small by trying a few times."""
  centers = np.zeros((0, 2))
  for index, radius in enumerate(radii):
    throws = generator.uniform(0.5 * radius, 1 - 0.5 * radius, (30, 2))
    gaps = np.linalg.norm(throws[:, None] - centers, axis=-1) - radii[:index] - radius
    # Takes the first free center. The freest centers would all be at the edge.
    free = gaps.min(axis=1, initial=1.0)
    centers = np.concatenate([centers, throws[[np.argmax(free > 0) if free.max() > 0 else np.argmax(free)]]])
  return centers


def cells(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws stained cells under a microscope: large round ones, small slender ones, and the nuclei of both."""
  hue = generator.random()
  stains = {
    1: _color(hue, generator.uniform(0.2, 0.35), generator.uniform(0.8, 0.9)),
    2: _color(hue + generator.uniform(0.25, 0.75), generator.uniform(0.4, 0.6), generator.uniform(0.7, 0.85)),
    3: _color(hue + generator.uniform(-0.1, 0.1), generator.uniform(0.5, 0.8), generator.uniform(0.25, 0.45)),
  }
  ground = _color(generator.random(), 0.06, generator.uniform(0.9, 0.97))

  def draw() -> _Picture:
    picture = _Picture(ground + _grain(generator, size, 3.0, 4.0) + _grain(generator, size, size / 2, 2.0), size)
    num = generator.integers((2, 5), (5, 9))
    kinds = np.repeat((1, 2), num)
    radii = generator.uniform(0.85, 1.15, num.sum()) * np.array([0.15, 0.1])[kinds - 1]
    for kind, radius, center in zip(kinds, radii, _apart(generator, radii), strict=True):
      angle, slender = generator.uniform(0, np.pi), generator.uniform(0.75, 1.0) if kind == 1 else 0.5
      u, v = _frame(size, center, (radius, slender * radius), angle)
      turn = np.arctan2(v, u)
      bumps = sum(generator.normal(0, 0.06) * np.cos(k * turn + generator.uniform(0, 6.3)) for k in (2, 3, 5))
      distance = np.hypot(u, v) * (1 + bumps)
      # Cells are thicker, thus darker, toward the rim.
      picture.put(_inside(distance, 0.2), stains[kind] * (1 - 0.25 * np.clip(distance, 0, 1)[..., None] ** 4), kind)
      du, dv = generator.normal(0, 0.12, 2)
      nucleus = np.hypot(u - du, v - dv) / generator.uniform(0.45, 0.55)
      picture.put(_inside(nucleus, 0.25), stains[3] + _grain(generator, size, size / 4, 10.0), 3)
    return picture

  return _scenes(draw, count, 3)


def fields(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws farmland from the air: two crops in furrowed fields between meadows, a road, houses with shadows, a pond."""
  meadow, hues = _color(0.24, 0.45, 0.6), np.array([0.13, 0.055, 0.33]) + generator.uniform(-0.03, 0.03, 3)
  # Ripe corn, bare soil and dark leaves: two of the three.
  crops = generator.permutation([_color(hues[0], 0.5, 0.8), _color(hues[1], 0.45, 0.5), _color(hues[2], 0.55, 0.35)])
  road = _color(0.1, generator.uniform(0.0, 0.15), generator.uniform(0.65, 0.85))
  roof = _color(generator.uniform(-0.02, 0.04), generator.uniform(0.5, 0.8), generator.uniform(0.6, 0.9))
  water = _color(generator.uniform(0.52, 0.6), generator.uniform(0.4, 0.6), generator.uniform(0.3, 0.55))
  sun = generator.uniform(0, 2 * np.pi)

  def draw() -> _Picture:
    picture = _Picture(meadow + _grain(generator, size, 12.0, 7.0), size)
    turn = generator.uniform(0, np.pi)
    u, v = _frame(size, generator.random(2), (generator.uniform(0.3, 0.45), generator.uniform(0.25, 0.4)), turn)
    column = np.floor(u).astype(int)
    row = np.floor(v + generator.random(16)[column]).astype(int)
    of_parcel, along = generator.integers(0, 3, (16, 16)), generator.random((16, 16)) < 0.5
    edge = np.minimum(u - column, 1 + column - u) > 0.04
    for kind, color in enumerate(crops[:2], 1):
      furrows = np.sin(2 * np.pi * 7 * np.where(along[row, column], u, v))[..., None]
      cover = ((of_parcel[row, column] == kind) & edge).astype(np.float32)
      picture.put(cover, color * (1 + 0.12 * furrows) + _grain(generator, size, 20.0, 5.0), kind)
    radii = np.array([0.18] + [0.085] * int(generator.integers(4, 7)))
    pond, *houses = _apart(generator, radii)
    distance = np.hypot(*_frame(size, pond, (radii[0], radii[0]), 0.0)) + 0.25 * smooth_noise(generator, size, 6.0)
    picture.put(_inside(distance, 0.1), water + _grain(generator, size, 5.0, 5.0), 5)
    path = np.stack([np.linspace(-1, 1, 12), 0.12 * np.sin(np.linspace(0, 4, 12) + generator.uniform(0, 6.3))], -1)
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    picture.put(_line(size, path @ spin + generator.uniform(0.25, 0.75, 2), 0.07), road, 3)
    for center in houses:
      wall = np.array([(-1, -0.7), (1, -0.7), (1, 0.7), (-1, 0.7)]) * generator.uniform(0.06, 0.075) @ spin + center
      picture.shade(0.6 * _polygon(size, wall + 0.03 * np.array([np.cos(sun), np.sin(sun)])), np.float32(0))
      picture.put(_polygon(size, wall), roof, 4)
      # The half of the roof beyond its ridge is darker.
      picture.put(_polygon(size, np.concatenate([(wall[:2] + wall[[3, 2]]) / 2, wall[2:]])), 0.75 * roof, 4)
    return picture

  return _scenes(draw, count, 5)


def tissue(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws a slice of a brain: cortex, white matter, ventricles and a lesion, in the grays of one kind of scan."""
  order = np.array([0.55, 0.78, 0.2]) if generator.random() < 0.5 else np.array([0.68, 0.42, 0.95])
  cortex, white, fluid = 255 * (order + generator.uniform(-0.05, 0.05, 3))
  lesion = 255 * (1.0 if fluid < 128 else 0.08)
  skull, folds = 255 * generator.uniform(0.6, 0.95), generator.integers(9, 14)
  noise = generator.uniform(3, 8)

  def draw() -> _Picture:
    picture = _Picture(np.float32(12), size)
    long = generator.uniform(0.36, 0.5)
    center = generator.uniform(0.36, 0.64, 2)
    u, v = _frame(size, center, (long * generator.uniform(0.75, 0.9), long), generator.normal(0, 0.5))
    u, v = u + 0.05 * smooth_noise(generator, size, 3.0), v + 0.05 * smooth_noise(generator, size, 3.0)
    distance, turn = np.hypot(u, v), np.arctan2(v, u)
    picture.shade(_inside(distance, 0.05), np.float32(skull))
    picture.shade(_inside(distance / 0.91, 0.05), np.float32(25))
    # The cleft between the hemispheres runs into the cortex from both ends.
    cleft = 0.35 * np.exp(-((u / 0.04) ** 2))
    picture.put(_inside(distance / 0.85 + 0.3 * cleft, 0.06), np.float32(cortex), 1)
    wavy = 0.1 * np.cos(folds * turn + generator.uniform(0, 6.3)) + 0.05 * smooth_noise(generator, size, 8.0)
    picture.put(_inside((distance + wavy) / 0.63 + cleft, 0.1), np.float32(white), 2)
    tall, wide = generator.uniform(0.28, 0.36), generator.uniform(0.11, 0.16)
    for side in (-1, 1):
      along = v - 0.5 * np.abs(u)
      horn = np.hypot((u - side * (0.17 + 0.25 * v**2)) / wide, along / tall)
      picture.put(_inside(horn, 0.15), np.float32(fluid), 3)
    angle, far = generator.uniform(0, 2 * np.pi), generator.uniform(0.3, 0.45)
    spot = np.hypot(u - far * np.cos(angle), v - far * np.sin(angle)) / generator.uniform(0.17, 0.27)
    picture.put(_inside(spot + 0.15 * smooth_noise(generator, size, 8.0), 0.2), np.float32(lesion), 4)
    picture.image += _grain(generator, size, size / 2, noise) + _grain(generator, size, 2.0, 6.0)
    return picture

  return _scenes(draw, count, 4)


def circuit(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws a printed circuit: traces under solder mask, bare metal (pads and the ends of parts), and dark parts."""
  hue = generator.choice([0.36, 0.6, 0.0, 0.78, 0.5]) + generator.uniform(-0.03, 0.03)
  board = _color(hue, generator.uniform(0.6, 0.85), generator.uniform(0.25, 0.4))
  trace = 1.35 * board + 30
  metal = _color(0.11, generator.uniform(0.05, 0.6), generator.uniform(0.75, 0.9))
  part, scale = _color(0.08, generator.uniform(0, 0.5), generator.uniform(0.1, 0.3)), size / 96 * 1.3

  def draw() -> _Picture:
    picture = _Picture(board + _grain(generator, size, size / 2, 3.0), size)
    layout = draw_layout(generator, size, scale)
    copper, pads, drills = (
      np.asarray(Image.fromarray(np.uint8(255 * (fine > 0))).reduce(FINE), np.float32) / 255
      for fine in (layout.nets, layout.pads, layout.drills)
    )
    picture.put(copper, trace, 1)
    picture.put(pads, metal + _grain(generator, size, 10.0, 8.0), 2)
    picture.put(drills, np.float32(15), 0)
    radii = generator.uniform(0.09, 0.15, generator.integers(2, 4))
    for radius, center in zip(radii, _apart(generator, radii), strict=True):
      half = radius * np.array([1.0, generator.uniform(0.5, 0.8)])[:: generator.choice([-1, 1])]
      corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
      ends = corners * np.where(half == half.max(), 1.35, 0.8)
      picture.put(_polygon(size, ends + center), 0.9 * metal, 2)
      picture.put(_polygon(size, corners + center), part + _grain(generator, size, size / 2, 3.0), 3)
    return picture

  return _scenes(draw, count, 3)


def fruits(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws fruit of three sorts on a checked cloth, which differ in color, size and elongation."""
  hues = generator.permutation([0.0, 0.08, 0.15, 0.27, 0.45, 0.8])[:3] + generator.uniform(-0.02, 0.02, 3)
  skins = [_color(hue, generator.uniform(0.7, 0.95), generator.uniform(0.65, 0.95)) for hue in hues]
  sizes, slender = generator.uniform(0.11, 0.16, 3), generator.choice([1.0, 0.65, 0.85], 3)
  cloth = _color(generator.random(), generator.uniform(0.1, 0.5), generator.uniform(0.75, 0.95))
  thread, pitch = _color(generator.random(), generator.uniform(0.1, 0.5), 0.6), generator.uniform(10, 18)
  light = generator.uniform(0, 2 * np.pi)

  def draw() -> _Picture:
    weave = np.concatenate(_frame(size, generator.random(2), (1.0, 1.0), generator.uniform(0, 1.6))).reshape(
      2, size, size
    )
    weave = weave + 0.02 * smooth_noise(generator, size, 3.0)
    share = (np.sin(pitch * 2 * weave) > 0).mean(axis=0, dtype=np.float32)[..., None]
    picture = _Picture(cloth + 0.6 * share * (thread - cloth) + _grain(generator, size, 4.0, 7.0), size)
    sorts = generator.permutation(np.repeat([0, 1, 2], generator.integers(1, 4, 3)))
    radii = sizes[sorts] * generator.uniform(0.9, 1.1, len(sorts))
    sun = 0.45 * np.array([np.cos(light), np.sin(light)])
    for sort, radius, center in zip(sorts, radii, _apart(generator, 0.9 * radii), strict=True):
      angle = generator.uniform(0, np.pi)
      shadow = np.hypot(*_frame(size, center - 0.6 * radius * sun, (radius * 1.05, radius * slender[sort]), angle))
      picture.shade(0.5 * _inside(shadow, 0.5), np.float32(20))
      u, v = _frame(size, center, (radius, radius * slender[sort]), angle)
      # Where the light comes from in the fruit's own frame.
      du, dv = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ sun
      lit = np.hypot(u - du, v - dv)
      skin = skins[sort] * (1.1 - 0.42 * np.clip(lit, 0, 1.6)[..., None] ** 2) + _grain(generator, size, size / 3, 4.0)
      picture.put(_inside(np.hypot(u, v), 0.12), skin, sort + 1)
      picture.shade(0.7 * np.exp(-((lit / 0.25) ** 2)), np.float32(255))
    return picture

  return _scenes(draw, count, 3)


def _crack(
  generator: np.random.Generator, size: int, start: np.ndarray, heading: float, width: float, steps: int
) -> Float[np.ndarray, "size size"]:
  """Returns the coverage of a jagged line that gets thinner and branches."""
  cover = np.zeros((size, size), np.float32)
  for step in range(steps):
    turned = heading + generator.normal(0, 0.45)
    end = start + 0.08 * np.array([np.cos(turned), np.sin(turned)])
    cover = np.maximum(cover, _line(size, np.stack([start, end]), width * (1 - 0.5 * step / steps)))
    start = end
    if steps > 6 and generator.random() < 0.3:
      side = turned + generator.choice([-1, 1]) * generator.uniform(0.6, 1.1)
      cover = np.maximum(cover, _crack(generator, size, start, side, 0.8 * width, steps // 3))
  return cover


def _clumps(generator: np.random.Generator, size: int, num: int, ragged: float) -> Bool[np.ndarray, "size size"]:
  """Returns the coverage of scattered ragged spots."""
  centers, near = generator.uniform(0, 1, (num, 2)), np.full((size, size), np.inf)
  for center in centers:
    near = np.minimum(near, np.hypot(*_frame(size, center, tuple(generator.uniform(0.1, 0.22, 2)), 0.0)))
  return near + ragged * smooth_noise(generator, size, size / 6) < 1


def concrete(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws weathered concrete: branching cracks, rust that runs down, moss."""
  ground = _color(generator.uniform(0.05, 0.6), generator.uniform(0.0, 0.12), generator.uniform(0.55, 0.8))
  rust = _color(generator.uniform(0.03, 0.08), generator.uniform(0.6, 0.9), generator.uniform(0.4, 0.65))
  moss = _color(generator.uniform(0.2, 0.35), generator.uniform(0.4, 0.7), generator.uniform(0.25, 0.5))
  width, pores = generator.uniform(0.025, 0.04), generator.uniform(0, 40)
  heading = generator.uniform(0, 2 * np.pi)

  def draw() -> _Picture:
    picture = _Picture(ground + _grain(generator, size, 4.0, 6.0) + _grain(generator, size, size / 2, 7.0), size)
    holes = smooth_noise(generator, size, size / 5) > 2.4
    picture.shade(holes.astype(np.float32), ground - 20 - pores)
    spots = _clumps(generator, size, int(generator.integers(1, 4)), 0.12).astype(np.float32)
    # Rain carries the rust down: a fading trail that is not counted as rust.
    fading = np.exp(-5 * coordinates(size)[0])
    picture.shade(0.4 * fading * np.maximum.accumulate(spots / fading, axis=0), rust)
    picture.put(0.9 * spots, rust + _grain(generator, size, size / 4, 14.0), 2)
    tufts = _clumps(generator, size, int(generator.integers(1, 4)), 0.3)
    picture.put(0.95 * tufts.astype(np.float32), moss + _grain(generator, size, size / 2, 16.0), 3)
    for _ in range(int(generator.integers(1, 3))):
      start = generator.uniform(0.2, 0.8, 2) - 0.4 * np.array([np.cos(heading), np.sin(heading)])
      cover = _crack(generator, size, start, heading + generator.normal(0, 0.5), width, 11)
      picture.put(cover, np.float32(0.2) * ground, 1)
    return picture

  return _scenes(draw, count, 3)


HELD_OUT: dict[str, Family] = {
  "cells": cells,
  "fields": fields,
  "tissue": tissue,
  "circuit": circuit,
  "fruits": fruits,
  "concrete": concrete,
}
