"""Families of scenes for pretraining: each draws several pictures that show the same kinds of objects.

A family is a function (generator, size, count, difficulty) -> `Scenes`. The rule that makes two regions the same kind
differs between families and between draws: the material, the shape, the part of an object, the place in an order, or
the relation to the surroundings. `difficulty` runs from 0 (few large regions that look alike in all pictures) to 1
(small regions, many kinds, and a different background and light in each picture).

The families in `held_out.py` measure what a network has learned. No family of this module may draw what they draw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pretraining import shapes, surfaces
from pretraining.materials import (
  Material,
  coordinates,
  random_material,
  random_materials,
  retextured,
  smooth_noise,
  vary,
)
from pretraining.scenes import Family, Scenes


def _between(generator: np.random.Generator, easy: tuple[float, float], hard: tuple[float, float], difficulty: float):
  """Draws a number from a range that moves with the difficulty."""
  low, high = (a + (b - a) * difficulty for a, b in zip(easy, hard, strict=True))
  return float(generator.uniform(low, high))


def _backgrounds(
  generator: np.random.Generator, size: int, count: int, difficulty: float, contrast: float = 1.0
) -> tuple[Material, list[np.ndarray]]:
  """Draws a material and `count` backgrounds of it; at higher difficulty some use another material, or two."""
  shared = random_material(generator, contrast=contrast)
  squares = []
  for _ in range(count):
    own = random_material(generator, contrast=contrast) if generator.random() < 0.4 * difficulty else shared
    square = vary(own, generator, difficulty).paint(generator, size)
    if generator.random() < 0.3 * difficulty:
      other = random_material(generator, contrast=contrast).paint(generator, size)
      square = np.where(smooth_noise(generator, size, 2.0)[..., None] > 0.3, other, square)
    squares.append(square)
  return shared, squares


def _put(image: np.ndarray, kinds: np.ndarray, mask: np.ndarray, square: np.ndarray, kind: int) -> None:
  """Paints a material where the mask is set, in place."""
  np.copyto(image, square, where=mask[..., None])
  kinds[mask] = kind


def _pave(kinds: np.ndarray, squares: list[np.ndarray]) -> np.ndarray:
  """Composes a picture that shows `squares[i]` where the kind is i + 1."""
  picture = squares[0].copy()
  for index, square in enumerate(squares[1:], start=2):
    np.copyto(picture, square, where=(kinds == index)[..., None])
  return picture


def _places(generator: np.random.Generator, radii: list[float], size: int) -> list[tuple[float, float]]:
  """Draws centers of discs, and keeps the overlap small by trying a few times."""
  centers: list[tuple[float, float]] = []
  for radius in radii:
    tries = generator.uniform(0.7 * min(radius, size / 2), size - 0.7 * min(radius, size / 2), (8, 2))
    if centers:
      gaps = np.linalg.norm(tries[:, None] - np.array(centers), axis=-1) - np.array(radii[: len(centers)])
      best = int(np.argmax(gaps.min(axis=1)))
    else:
      best = 0
    centers.append((float(tries[best, 0]), float(tries[best, 1])))
  return centers


def regions(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws pictures divided into a few regions, each of one material; the material defines the kind."""
  num = int(generator.integers(2, 4 + round(2 * difficulty)))
  materials = random_materials(generator, num)
  images, labels = [], []
  for _ in range(count):
    cells = _between(generator, (1.0, 2.0), (1.5, 4.0), difficulty)
    fields = np.stack([smooth_noise(generator, size, cells) for _ in range(num)])
    kinds = np.argmax(fields, axis=0).astype(np.uint8) + 1
    images.append(
      _pave(kinds, [vary(material, generator, difficulty).paint(generator, size) for material in materials])
    )
    labels.append(kinds)
  return Scenes(images, labels)


def objects(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws objects on a background; the material, the shape or both define the kind."""
  cue = generator.choice(
    ["material", "shape", "both"], p=[0.6 - 0.2 * difficulty, 0.4 * difficulty, 0.4 - 0.2 * difficulty]
  )
  num = int(generator.integers(2, 4 + round(difficulty)))
  background, squares = _backgrounds(generator, size, count, difficulty)
  materials = random_materials(generator, num, apart_from=(background,))
  outlines = shapes.random_outlines(generator, num)
  images, labels = [], []
  for square in squares:
    image, kinds = square.copy(), np.zeros((size, size), np.uint8)
    each = generator.integers(1, 2 + round(2 * difficulty), num)
    things = generator.permutation(np.repeat(np.arange(num), each)).tolist()
    radii = [size * _between(generator, (0.22, 0.36), (0.09, 0.26), difficulty) for _ in things]
    for kind, radius, center in zip(things, radii, _places(generator, radii, size), strict=True):
      material = materials[kind] if cue != "shape" else random_material(generator, [background])
      outline = outlines[kind] if cue != "material" else shapes.random_outline(generator)
      turn = generator.uniform(0, 2 * np.pi) if cue == "material" or difficulty > 0.3 else generator.normal(0, 0.2)
      mask = shapes.fill(outline, size, center, radius, turn)
      _put(image, kinds, mask, vary(material, generator, difficulty).paint(generator, size), kind + 1)
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def parts(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws bodies with a core and a rim; loose pieces that look like a core are background."""
  background, squares = _backgrounds(generator, size, count, difficulty)
  body, core, rim = random_materials(generator, 3, apart_from=(background,))
  outline = shapes.random_outline(generator)
  inner = shapes.random_outline(generator)
  share, band = generator.uniform(0.35, 0.6), int(generator.integers(1, 3)) + size // 64
  has_rim, loose = generator.random() < 0.5, generator.random() < 0.6 * difficulty
  images, labels = [], []
  for square in squares:
    image, kinds = square.copy(), np.zeros((size, size), np.uint8)
    paint = [vary(material, generator, difficulty).paint(generator, size) for material in (body, core, rim)]
    if loose:
      for center in generator.uniform(0, size, (int(generator.integers(1, 4)), 2)):
        mask = shapes.fill(inner, size, tuple(center), size * generator.uniform(0.08, 0.16))
        _put(image, kinds, mask, paint[1], 0)
    radii = [size * _between(generator, (0.3, 0.42), (0.16, 0.32), difficulty)] * int(
      generator.integers(1, 2 + round(2 * difficulty))
    )
    for radius, center in zip(radii, _places(generator, radii, size), strict=True):
      turn = generator.uniform(0, 2 * np.pi)
      mask = shapes.fill(outline, size, center, radius, turn)
      if has_rim:
        _put(image, kinds, shapes.dilate(mask, band), paint[2], 3)
      _put(image, kinds, mask, paint[0], 1)
      offset = generator.normal(0, 0.15 * radius, 2)
      _put(image, kinds, shapes.fill(inner, size, tuple(center + offset), radius * share, turn), paint[1], 2)
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def particles(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws many small objects of two or three kinds, scattered over a background."""
  num = int(generator.integers(2, 4))
  background, squares = _backgrounds(generator, size, count, difficulty, contrast=0.6)
  materials = random_materials(generator, num, contrast=0.5, apart_from=(background,))
  outlines = [shapes.random_outline(generator) for _ in range(num)]
  scale = [_between(generator, (0.10, 0.15), (0.04, 0.10), difficulty) for _ in range(num)]
  images, labels = [], []
  for square in squares:
    image, kinds = square.copy(), np.zeros((size, size), np.uint8)
    paint = [vary(material, generator, difficulty).paint(generator, size) for material in materials]
    many = int(generator.integers(3, 8 + round(6 * difficulty)))
    for kind in generator.permutation(np.repeat(np.arange(num), many)).tolist():
      radius = size * scale[kind] * generator.uniform(0.8, 1.25)
      center = tuple(generator.uniform(0, size, 2))
      mask = shapes.fill(outlines[kind], size, center, radius, generator.uniform(0, 2 * np.pi))
      _put(image, kinds, mask, paint[kind], kind + 1)
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def strokes(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws lines of two or three kinds, which differ in material, width and straightness."""
  num = int(generator.integers(1, 4))
  background, squares = _backgrounds(generator, size, count, difficulty, contrast=0.7)
  materials = random_materials(generator, num, contrast=0.4, apart_from=(background,))
  width = [_between(generator, (0.07, 0.14), (0.025, 0.09), difficulty) * size for _ in range(num)]
  straight, wiggle = generator.random(num).round(), generator.uniform(0.2, 0.7, num)
  images, labels = [], []
  for square in squares:
    image, kinds = square.copy(), np.zeros((size, size), np.uint8)
    for kind in generator.permutation(np.repeat(np.arange(num), generator.integers(1, 4, num))).tolist():
      points = shapes.walk(generator, size, wiggle=wiggle[kind], straight=straight[kind])
      mask = shapes.stroke(points, size, round(width[kind] * generator.uniform(0.85, 1.15)))
      _put(image, kinds, mask, vary(materials[kind], generator, difficulty).paint(generator, size), kind + 1)
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def lattices(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws a grid of tiles; the kinds are the joints and the tiles of each material."""
  num = int(generator.integers(1, 3 + round(difficulty)))
  materials = random_materials(generator, num + 1, contrast=0.6)
  pitch = _between(generator, (0.25, 0.4), (0.14, 0.3), difficulty)
  joint, staggered = generator.uniform(0.12, 0.4), generator.random() < 0.4
  aspect, round_tiles = generator.uniform(0.6, 1.7), generator.random() < 0.3
  shares = np.append(1.5, np.ones(num - 1)) / (num + 0.5)
  y, x = coordinates(size)
  images, labels = [], []
  for _ in range(count):
    angle = generator.normal(0, 0.3) if difficulty > 0.2 else 0.0
    scale = pitch * math.exp(0.2 * difficulty * generator.standard_normal())
    cos, sin = math.cos(angle), math.sin(angle)
    u = (x * cos + y * sin) / (scale * aspect) + generator.random() + 8
    v = (y * cos - x * sin) / scale + generator.random() + 8
    row = np.floor(v).astype(int)
    u = u + 0.5 * staggered * (row % 2)
    column = np.floor(u).astype(int)
    du, dv = np.abs(u - column - 0.5), np.abs(v - row - 0.5)
    inside = np.hypot(du, dv) < 0.5 - joint / 2 if round_tiles else np.maximum(du, dv) < 0.5 - joint / 2
    table = generator.choice(num, (64, 64), p=shares / shares.sum())
    kinds = np.where(inside, table[row % 64, column % 64] + 2, 1).astype(np.uint8)
    images.append(
      _pave(kinds, [vary(material, generator, difficulty).paint(generator, size) for material in materials])
    )
    labels.append(kinds)
  return Scenes(images, labels)


def mosaics(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws irregular cells side by side; the kinds are walls, cores, and cells of each material."""
  num = int(generator.integers(1, 3 + round(difficulty)))
  materials = random_materials(generator, num + 2, contrast=0.6)
  wall = _between(generator, (0.05, 0.09), (0.02, 0.06), difficulty) if generator.random() < 0.7 else 0.0
  core = _between(generator, (0.10, 0.15), (0.05, 0.10), difficulty) if generator.random() < 0.5 else 0.0
  y, x = coordinates(size)
  images, labels = [], []
  for _ in range(count):
    seeds = generator.random((int(_between(generator, (4.0, 9.0), (8.0, 22.0), difficulty)), 2), dtype=np.float32)
    distance = np.hypot(y - seeds[:, :1, None], x - seeds[:, 1:, None])
    owner = np.argmin(distance, axis=0)
    nearest, second = np.partition(distance, 1, axis=0)[:2]
    of_cell = generator.integers(0, num, len(seeds))
    kinds = (of_cell[owner] + 3).astype(np.uint8)
    kinds[second - nearest < wall] = 1
    kinds[nearest < core] = 2
    images.append(
      _pave(kinds, [vary(material, generator, difficulty).paint(generator, size) for material in materials])
    )
    labels.append(kinds)
  return Scenes(images, labels)


def levels(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws contour bands of a smooth surface; the place in the order from dark to light defines the kind."""
  num = int(generator.integers(3, 5 + round(difficulty)))
  ends = random_materials(generator, 2, contrast=0.3)
  cuts = np.sort(generator.normal(0, 1, num - 1)) + np.linspace(-0.8, 0.8, num - 1)
  lines = generator.random() < 0.3
  images, labels = [], []
  for _ in range(count):
    height = smooth_noise(generator, size, _between(generator, (1.2, 2.0), (2.0, 4.5), difficulty))
    kinds = np.digitize(height, cuts).astype(np.uint8) + 1
    dark, light = (vary(material, generator, 0.6 * difficulty).paint(generator, size) for material in ends)
    share = ((kinds - 1.0) / (num - 1))[..., None].astype(np.float32)
    image = dark + (light - dark) * share
    if lines:
      edge = np.abs(height[..., None] - cuts).min(axis=-1) < 0.08
      image[edge] = 0.5 * image[edge]
      kinds[edge] = num + 1
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def stains(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws soft-edged, half transparent spots on a pattern; the kinds are darker, lighter and tinted spots."""
  num = int(generator.integers(1, 4))
  _, squares = _backgrounds(generator, size, count, 0.7 * difficulty)
  tints = random_materials(generator, num, contrast=0.3)
  cover = [generator.uniform(0.55, 0.95) for _ in range(num)]
  cells = [_between(generator, (1.5, 2.5), (2.0, 5.0), difficulty) for _ in range(num)]
  edge = generator.uniform(0.05, 0.4)
  images, labels = [], []
  for square in squares:
    image, kinds = square.copy(), np.zeros((size, size), np.uint8)
    for kind in range(num):
      height = smooth_noise(generator, size, cells[kind])
      level = np.quantile(height, _between(generator, (0.6, 0.75), (0.75, 0.93), difficulty))
      share = cover[kind] * np.clip((height - level) / edge + 0.5, 0, 1)[..., None]
      image += share * (vary(tints[kind], generator, difficulty).paint(generator, size) - image)
      kinds[height > level] = kind + 1
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def fabrics(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws patches of one color and several patterns; the pattern defines the kind."""
  num = 2 + int(generator.random() < 0.4 * difficulty)
  ground = random_material(generator, contrast=1.6)
  materials = [ground]
  for _ in range(num - 1):
    materials.append(retextured(ground, generator))
  images, labels = [], []
  outline = shapes.random_outline(generator) if generator.random() < 0.5 else None
  for _ in range(count):
    light = generator.standard_normal(3) * 12 * difficulty
    kinds = np.ones((size, size), np.uint8)
    for kind in range(1, num):
      if outline is None:
        height = smooth_noise(generator, size, generator.uniform(1.2, 2.5))
        kinds[height > np.quantile(height, generator.uniform(0.55, 0.8))] = kind + 1
      else:
        center = tuple(generator.uniform(0.25, 0.75, 2) * size)
        mask = shapes.fill(outline, size, center, size * generator.uniform(0.25, 0.4), generator.uniform(0, 6.3))
        kinds[mask] = kind + 1
    squares = [vary(material, generator, 0.3 * difficulty).paint(generator, size) for material in materials]
    images.append((_pave(kinds, squares) + light).astype(np.float32))
    labels.append(kinds)
  return Scenes(images, labels)


def relations(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws objects of the same material and shape; their size or the ground below them defines the kind."""
  rule = generator.choice(["size", "ground"])
  background, squares = _backgrounds(generator, size, count, 0.5 * difficulty)
  thing = random_material(generator, [background], contrast=0.6)
  ground = random_material(generator, [background, thing], contrast=0.8)
  outline = shapes.random_outline(generator)
  images, labels = [], []
  for square in squares:
    image, kinds = square.copy(), np.zeros((size, size), np.uint8)
    paint = [vary(material, generator, difficulty).paint(generator, size) for material in (thing, ground)]
    if rule == "size":
      radii = [size * generator.uniform(0.24, 0.34)] * int(generator.integers(1, 3))
      small = [size * generator.uniform(0.09, 0.14)] * int(generator.integers(2, 5))
      of_thing = [1] * len(radii) + [2] * len(small)
      radii = radii + small
    else:
      height = smooth_noise(generator, size, 1.3)
      _put(image, kinds, height > np.quantile(height, generator.uniform(0.4, 0.6)), paint[1], 3)
      radii = [size * generator.uniform(0.1, 0.2) for _ in range(int(generator.integers(4, 8)))]
      of_thing = [0] * len(radii)
    for kind, radius, (x, y) in zip(of_thing, radii, _places(generator, radii, size), strict=True):
      under = kinds[min(int(y), size - 1), min(int(x), size - 1)]
      mask = shapes.fill(outline, size, (x, y), radius, generator.uniform(0, 2 * np.pi))
      _put(image, kinds, mask, paint[0], kind or (1 if under == 3 else 2))
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


class Weighted(NamedTuple):
  """A family and how often it is drawn.

  Attributes:
    draw: the family.
    easy: relative frequency at difficulty 0.
    hard: relative frequency at difficulty 1.
    sparse: whether what it asks for is small and often absent, so that a picture need not show it.
  """

  draw: Family
  easy: float
  hard: float
  sparse: bool = False


FAMILIES: dict[str, Weighted] = {
  "regions": Weighted(regions, 4.0, 1.0),
  "objects": Weighted(objects, 4.0, 1.5),
  "parts": Weighted(parts, 1.0, 0.7),
  "particles": Weighted(particles, 0.5, 0.8),
  "strokes": Weighted(strokes, 0.5, 0.8),
  "lattices": Weighted(lattices, 1.0, 0.6),
  "mosaics": Weighted(mosaics, 1.0, 0.8),
  "levels": Weighted(levels, 1.0, 0.8),
  "stains": Weighted(stains, 1.0, 0.8),
  "fabrics": Weighted(fabrics, 0.0, 0.5),
  "relations": Weighted(relations, 0.0, 0.5),
  "layers": Weighted(surfaces.layers, 1.0, 1.5),
  "membranes": Weighted(surfaces.membranes, 0.5, 1.2),
  "threads": Weighted(surfaces.threads, 0.5, 1.5, sparse=True),
  "flaws": Weighted(surfaces.flaws, 0.5, 4.0, sparse=True),
  "prints": Weighted(surfaces.prints, 0.2, 2.5, sparse=True),
}
