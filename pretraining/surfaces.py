"""Families of surfaces with flaws and of thin lines, as cameras on production lines, roads and microscopes see them.

The functions have the signature of those in `families.py`. What they ask for is small, often absent, and no fuller
picture of it exists: a scratch one pixel wide, a hole of a dozen pixels, a stain hardly darker than its surroundings.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from jaxtyping import Float

from pretraining.materials import coordinates, random_material, smooth_noise, vary
from pretraining.scenes import Scenes

_FINE = 4  # lines are drawn this many times larger
_BITS = 8  # of the fraction of a pixel in which OpenCV draws
_Mask = Float[np.ndarray, "size size"]


def line(size: int, points: np.ndarray, width: float) -> _Mask:
  """Returns the coverage 0..1 of a smooth-edged line through points (x, y) in pixels.

  Args:
    size: side of the square in pixels.
    points: points in their order, [n, 2].
    width: width in pixels; a line thinner than a pixel covers less of it.
  """
  # OpenCV's own smooth lines are up to two pixels wider than asked for.
  fine = np.zeros((_FINE * size, _FINE * size), np.uint8)
  corners = np.round((np.asarray(points) + 0.5) * _FINE * 2**_BITS).astype(np.int32)
  cv2.polylines(fine, [corners], False, 255, max(round(_FINE * width) - 1, 1), cv2.LINE_8, _BITS)
  return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def blob(generator: np.random.Generator, size: int, center: np.ndarray, radius: float, ragged: float = 0.2) -> _Mask:
  """Returns the coverage 0..1 of a roundish, smooth-edged spot.

  Args:
    generator: source of randomness.
    size: side of the square in pixels.
    center: x and y in pixels.
    radius: mean radius in pixels.
    ragged: how much the outline deviates from an ellipse, as a share of the radius.
  """
  angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
  bumps = sum(generator.normal(0, ragged / k) * np.cos(k * angle + generator.uniform(0, 6.3)) for k in (1, 2, 3, 5))
  slender, turn = generator.uniform(0.6, 1.0), generator.uniform(0, np.pi)
  points = radius * (1 + bumps)[:, None] * np.stack([np.cos(angle), slender * np.sin(angle)], axis=-1)
  cos, sin = math.cos(turn), math.sin(turn)
  points = points @ np.array([[cos, sin], [-sin, cos]]) + center
  cover = np.zeros((size, size), np.uint8)
  cv2.fillPoly(cover, [np.round(points * 2**_BITS).astype(np.int32)], 255, cv2.LINE_AA, _BITS)
  return cover.astype(np.float32) / 255


def jagged(generator: np.random.Generator, start: np.ndarray, length: float, wiggle: float) -> np.ndarray:
  """Draws the points (x, y) of a jagged line, a few pixels apart, [n, 2].

  Args:
    generator: source of randomness.
    start: first point in pixels.
    length: length in pixels.
    wiggle: standard deviation of the turn from step to step in radians.
  """
  steps = max(int(length / 3), 2)
  heading = generator.uniform(0, 2 * np.pi) + np.cumsum(generator.normal(0, 0.4 * wiggle, steps))
  heading = heading + generator.normal(0, wiggle, steps)
  return start + np.cumsum(3 * np.stack([np.cos(heading), np.sin(heading)], axis=-1), axis=0)


def branching(generator: np.random.Generator, size: int, width: float, length: float, wiggle: float) -> _Mask:
  """Returns the coverage 0..1 of a line that wanders, thins out and branches."""
  points = jagged(generator, generator.uniform(0.1, 0.9, 2) * size, length, wiggle)
  cover = line(size, points, width)
  for _ in range(int(generator.integers(0, 4))):
    start = points[generator.integers(len(points))]
    cover = np.maximum(cover, line(size, jagged(generator, start, 0.5 * length, wiggle), 0.75 * width))
  return cover


@dataclasses.dataclass(frozen=True)
class Surface:
  """A surface from which any number of pictures can be painted: rough, brushed, woven or with a pattern.

  Attributes:
    sort: one of "rough", "brushed", "material".
    color: mean color, 0..255.
    contrast: standard deviation of the texture, in 0..255.
    seed: the texture's parameters are drawn from it, so that all pictures share them.
  """

  sort: str
  color: np.ndarray
  contrast: float
  seed: int

  def paint(self, generator: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """Paints another square of the surface, 0..255, not clipped."""
    own = np.random.default_rng(self.seed)
    if self.sort == "material":
      material = random_material(own, contrast=0.5)
      square = vary(dataclasses.replace(material, colors=material.colors - material.color + self.color), generator, 0.3)
      return square.paint(generator, size)
    if self.sort == "brushed":
      long, short = own.uniform(1.0, 4.0), size / own.uniform(1.5, 5.0)
      wide = int(1.5 * size)
      field = cv2.resize(
        generator.standard_normal((int(short) + 2, int(long) + 2), dtype=np.float32),
        (wide, wide),
        interpolation=cv2.INTER_CUBIC,
      )
      center, turn = (wide / 2, wide / 2), math.degrees(own.uniform(0, math.pi)) + 4 * generator.standard_normal()
      turned = cv2.warpAffine(field, cv2.getRotationMatrix2D(center, turn, 1.0), (wide, wide))
      start = (wide - size) // 2
      texture = turned[start : start + size, start : start + size]
    else:
      shares = own.dirichlet((1.0, 1.0, 1.0, 0.7))
      cells = (2.0, size / own.uniform(8, 16), size / own.uniform(3, 6), size / 1.6)
      texture = sum(
        np.float32(math.sqrt(s)) * smooth_noise(generator, size, c) for s, c in zip(shares, cells, strict=True)
      )
    tint = 1 + 0.1 * own.standard_normal(3)
    return (self.color + self.contrast * texture[..., None] * tint).astype(np.float32)


def random_surface(generator: np.random.Generator, gray: bool) -> Surface:
  """Draws a surface; a gray one has equal channels apart from its texture's tint."""
  color = np.full(3, generator.uniform(40, 215)) if gray else generator.uniform(30, 225, 3)
  sort = str(generator.choice(["rough", "brushed", "material"], p=[0.5, 0.25, 0.25]))
  return Surface(sort, color, float(np.exp(generator.uniform(np.log(2), np.log(28)))), int(generator.integers(2**31)))


@dataclasses.dataclass(frozen=True)
class Flaw:
  """A kind of flaw: what it looks like, wherever it occurs.

  Attributes:
    sort: name of the shape.
    tint: difference to the surface in 0..255, [3].
    scale: size relative to the usual one.
    rim: difference of its border, as a factor on the tint; 0 for none.
  """

  sort: str
  tint: np.ndarray
  scale: float
  rim: float

  def draw(self, generator: np.random.Generator, image: np.ndarray) -> _Mask:
    """Adds one flaw of this kind to a picture [size, size, 3], in place, and returns its coverage 0..1."""
    size = len(image)
    unit, center = size / 64 * self.scale * generator.uniform(0.75, 1.3), generator.uniform(0.08, 0.92, 2) * size
    cover, strength = getattr(self, "_" + self.sort)(generator, size, unit, center)
    if self.sort == "missing":
      image += cover[..., None] * (cv2.GaussianBlur(image, (0, 0), 4.0 * unit) + 0.3 * self.tint - image)
    elif self.sort == "dent":
      # Lit from one side: bright where it falls away from the light, dark where it rises.
      slope = cv2.Sobel(cv2.GaussianBlur(cover, (0, 0), 1.5 * unit), cv2.CV_32F, 1, 0, ksize=3)
      image += np.clip(4 * slope, -1, 1)[..., None] * self.tint
    else:
      if self.rim:
        rim = np.clip(cv2.GaussianBlur(cover, (0, 0), 1.2) * 1.6, 0, 1) - cover
        image += np.clip(rim, 0, 1)[..., None] * (self.rim * self.tint).astype(np.float32)
      image += (cover * strength)[..., None] * self.tint.astype(np.float32)
    return cover

  def _scratch(self, generator, size, unit, center):
    half = generator.uniform(4, 22) * unit
    turn = generator.uniform(0, np.pi)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    place = np.linspace(-1, 1, 6)[:, None]
    points = center + half * (along * place + generator.normal(0, 0.08) * across * place**2)
    return line(size, points, max(self.scale * generator.uniform(0.8, 1.8), 0.7)), np.float32(1)

  def _crack(self, generator, size, unit, center):
    points = jagged(generator, center, generator.uniform(12, 45) * unit, 0.45)
    cover = line(size, points, max(self.scale * 1.2, 0.8))
    if generator.random() < 0.5:
      side = jagged(generator, points[len(points) // 2], generator.uniform(6, 20) * unit, 0.45)
      cover = np.maximum(cover, line(size, side, 0.8))
    return cover, np.float32(1)

  def _hole(self, generator, size, unit, center):
    return blob(generator, size, center, generator.uniform(1.2, 4.0) * unit, 0.15), np.float32(1)

  def _dent(self, generator, size, unit, center):
    return blob(generator, size, center, generator.uniform(4.0, 9.0) * unit, 0.1), np.float32(1)

  def _stain(self, generator, size, unit, center):
    cover = blob(generator, size, center, generator.uniform(5.0, 13.0) * unit, 0.5)
    return cover, cv2.GaussianBlur(cover, (0, 0), 2.0) * (0.8 + 0.15 * smooth_noise(generator, size, size / 5))

  def _uneven(self, generator, size, unit, center):
    cover = blob(generator, size, center, generator.uniform(12.0, 26.0) * unit, 0.35)
    return cover, cv2.GaussianBlur(cover, (0, 0), 3.0) * 0.6

  def _band(self, generator, size, unit, center):
    # From a side inwards, as a tool leaves it that took off more there: with a sharp step, and another roughness.
    turn = np.pi / 2 * generator.integers(4) + generator.normal(0, 0.15)
    y, x = coordinates(size)
    depth = (x - 0.5) * math.cos(turn) + (y - 0.5) * math.sin(turn) + 0.015 * smooth_noise(generator, size, 6.0)
    cover = np.clip((depth - generator.uniform(0.1, 0.42)) * size + 0.5, 0, 1).astype(np.float32)
    lines = np.repeat(smooth_noise(generator, size, size / 2)[:1], size, axis=0)
    return cover, 0.5 + generator.uniform(0, 0.5) * (lines if generator.random() < 0.5 else lines.T)

  def _missing(self, generator, size, unit, center):
    return blob(generator, size, center, generator.uniform(4.0, 12.0) * unit, 0.4), np.float32(1)

  def _chip(self, generator, size, unit, center):
    # A piece that is broken off, with corners and its own roughness.
    corners = center + generator.normal(0, 6.0 * unit, (int(generator.integers(4, 8)), 2))
    hull = cv2.convexHull(np.round(corners * 2**_BITS).astype(np.int32))
    cover = np.zeros((size, size), np.uint8)
    cv2.fillPoly(cover, [hull], 255, cv2.LINE_AA, _BITS)
    return cover.astype(np.float32) / 255, 1 + 0.35 * smooth_noise(generator, size, size / 3)

  def _fray(self, generator, size, unit, center):
    turn, cover = generator.uniform(0, np.pi), np.zeros((size, size), np.float32)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    for place in np.linspace(-1, 1, int(generator.integers(5, 12))):
      root = center + 12 * unit * place * along
      tip = root + across * generator.uniform(2, 9) * unit + along * generator.normal(0, 2) * unit
      cover = np.maximum(cover, line(size, np.stack([root, tip]), generator.uniform(1.0, 3.0)))
    return cover, np.float32(1)

  def _specks(self, generator, size, unit, center):
    cover = np.zeros((size, size), np.float32)
    for place in center + generator.normal(0, 6 * unit, (int(generator.integers(3, 9)), 2)):
      cover = np.maximum(cover, blob(generator, size, place, generator.uniform(0.8, 1.8) * unit, 0.1))
    return cover, np.float32(1)


SORTS = ("scratch", "crack", "hole", "dent", "stain", "uneven", "band", "missing", "chip", "fray", "specks")


def _random_flaws(generator: np.random.Generator, count: int, gray: bool, contrast: float, hard: float) -> list[Flaw]:
  """Draws kinds of flaws of different sorts; harder ones differ less from the surface's own texture."""
  flaws = []
  for sort in generator.permutation(SORTS)[:count].tolist():
    tint = np.ones(3) if gray or generator.random() < 0.5 else generator.normal(0.5, 0.8, 3)
    amount = generator.uniform(25, 110 - 50 * hard) + contrast
    tint = tint / np.abs(tint).max() * amount * (-1 if generator.random() < 0.65 else 1)
    scale = float(np.exp(generator.normal(0.25 * (1 - hard), 0.3)))
    flaws.append(Flaw(sort, tint.astype(np.float32), scale, float(generator.choice([0.0, 0.0, -0.5]))))
  return flaws


def _edge(generator: np.random.Generator, image: np.ndarray, around: Surface, share: float) -> None:
  """Lays a straight edge of the part across a picture, in place: behind it something else begins, often with a rim.

  Args:
    generator: source of randomness.
    image: picture [size, size, 3].
    around: what lies behind the edge.
    share: largest distance of the edge from the picture's border, 1 for its middle.
  """
  size, (y, x) = len(image), coordinates(len(image))
  turn = np.pi / 2 * generator.integers(4) + generator.normal(0, 0.06)
  turn = turn if generator.random() < 0.7 else generator.uniform(0, 2 * np.pi)
  depth = (x - 0.5) * math.cos(turn) + (y - 0.5) * math.sin(turn) - 0.5 + generator.uniform(0, 0.5) * share
  np.copyto(image, around.paint(generator, size), where=depth[..., None] > 0)
  if generator.random() < 0.5:
    rim = np.exp(-0.5 * (depth * size / generator.uniform(0.5, 2.0)) ** 2)
    image += np.float32(generator.uniform(-80, 80)) * rim[..., None].astype(np.float32)


def flaws(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws one surface with flaws of several sorts; some pictures are faultless, many show a single sort.

  Edges of the part, uneven light and, in half of the draws, marks that are no flaws are in some pictures and not in
  others: a prompt never shows everything that may be in a query.
  """
  gray = generator.random() < 0.55
  surface = random_surface(generator, gray)
  num, marks = int(generator.integers(1, 6)), int(generator.choice([0, 1, 2], p=[0.5, 0.3, 0.2]))
  every = _random_flaws(generator, num + marks, gray, 1.5 * surface.contrast, difficulty)
  part, shade = generator.random() < 0.5, 10 * float(generator.exponential())
  around = random_surface(generator, gray)
  if generator.random() < 0.5:
    around = dataclasses.replace(around, color=around.color * 0.2)
  images, labels = [], []
  for _ in range(count):
    image, kinds = surface.paint(generator, size), np.zeros((size, size), np.uint8)
    image += (shade * difficulty * smooth_noise(generator, size, 1.0))[..., None]
    for _ in range(int(generator.integers(0, 3)) if part else 0):
      _edge(generator, image, around, float(generator.choice([0.3, 1.0])))
    # First the marks, so that no flaw is hidden below one.
    for kind, flaw in reversed(list(enumerate(every, 1))):
      for _ in range(int(generator.choice([0, 1, 2, 3], p=[0.4, 0.35, 0.15, 0.1]))):
        kinds[flaw.draw(generator, image) > 0.4] = kind if kind <= num else 0
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def prints(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws two-tone line art with faults: gaps, bridges, notches, bumps, islands and holes; the art is no fault."""
  colors = generator.uniform(0, 255, (2, 1) if generator.random() < 0.6 else (2, 3)) + np.zeros((2, 3))
  if np.abs(colors[0] - colors[1]).max() < 70:
    colors[1] = 255 - colors[0]
  straight, noise = generator.random() < 0.7, 8 * generator.random()
  base, pitch = generator.uniform(2.5, 6.0) * size / 64, generator.uniform(2.0, 3.2)
  chosen = generator.permutation(6)[: int(generator.integers(2, 7))].tolist()
  soft = generator.uniform(0.3, 0.9)
  images, labels = [], []
  for _ in range(count):
    art, runs = _line_art(generator, size, base, pitch, straight)
    kinds = np.zeros((size, size), np.uint8)
    for kind, fault in enumerate(chosen, 1):
      for _ in range(int(generator.choice([0, 1, 2], p=[0.45, 0.4, 0.15]))):
        changed = _fault(generator, art, runs, fault, base, pitch)
        near = cv2.dilate((np.abs(changed - art) > 0.35).astype(np.uint8), np.ones((2, 2), np.uint8))
        kinds[near > 0] = kind
        art = changed
    art = cv2.GaussianBlur(art, (0, 0), soft)[..., None]
    image = colors[0] + art * (colors[1] - colors[0]) + noise * generator.standard_normal((size, size, 1))
    images.append(image.astype(np.float32))
    labels.append(kinds)
  return Scenes(images, labels)


def _line_art(generator, size: int, base: float, pitch: float, straight: bool) -> tuple[_Mask, list[tuple]]:
  """Draws bundles of lines, blocks and discs; returns the coverage and the lines (from, to, width) in pixels."""
  art, runs = np.zeros((size, size), np.float32), []
  for _ in range(int(generator.integers(1, 4))):
    turn = generator.choice([0, 0.25, 0.5, 0.75]) * np.pi if straight else generator.uniform(0, np.pi)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    start, width = generator.uniform(0, size, 2), base * generator.uniform(0.7, 1.4)
    half = generator.uniform(0.3, 1.0) * size
    for place in range(int(generator.integers(1, 6))):
      middle = start + across * place * width * pitch
      ends = np.stack([middle - half * along, middle + half * along])
      art = np.maximum(art, line(size, ends, width))
      runs.append((*ends, width))
  for center in generator.uniform(0, size, (int(generator.integers(0, 4)), 2)):
    radius = base * generator.uniform(0.9, 2.5)
    if generator.random() < 0.5:
      art = np.maximum(art, blob(generator, size, center, radius, 0.0))
    else:
      corner = np.round(center - radius).astype(int).clip(0)
      art[corner[1] : corner[1] + int(2 * radius), corner[0] : corner[0] + int(3 * radius)] = 1
  return art, runs


def _fault(generator, art: _Mask, runs: list[tuple], fault: int, base: float, pitch: float) -> _Mask:
  """Returns line art with one more fault: 0 gap, 1 bridge, 2 notch, 3 bump, 4 island, 5 hole."""
  size = len(art)
  first, last, width = runs[generator.integers(len(runs))]
  along = (last - first) / np.linalg.norm(last - first)
  across = np.array([-along[1], along[0]])
  # A point of the line that lies in the picture.
  for _ in range(8):
    point = first + generator.random() * (last - first)
    if (point > 0.05 * size).all() and (point < 0.95 * size).all():
      break
  if fault == 0:
    reach = across * (0.8 * width + 1)
    return art * (1 - line(size, np.stack([point - reach, point + reach]), base * generator.uniform(0.4, 1.0)))
  if fault == 1:
    reach = across * width * pitch * generator.choice([-1, 1])
    return np.maximum(art, line(size, np.stack([point, point + reach]), base * generator.uniform(0.4, 1.0)))
  side = across * width / 2 * generator.choice([-1, 1])
  spot = base * generator.uniform(0.3, 0.6)
  if fault == 2:
    return art * (1 - blob(generator, size, point + side, spot, 0.3))
  if fault == 3:
    return np.maximum(art, blob(generator, size, point + 1.1 * side, spot, 0.3))
  inside = np.argwhere(cv2.erode(art if fault == 5 else 1 - art, np.ones((3, 3))) > 0.9)
  if not len(inside):
    return art
  cover = blob(generator, size, inside[generator.integers(len(inside))][::-1].astype(float), spot, 0.25)
  return np.maximum(art, cover) if fault == 4 else art * (1 - cover)


def threads(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws thin and branching lines, one to four pixels wide, as cracks, vessels, roads and wires are, among clutter.

  In half of the draws straight lines of another look, and edges, cross some of the pictures.
  """
  gray, crossed = generator.random() < 0.5, generator.random() < 0.5
  surface, around = random_surface(generator, gray), random_surface(generator, gray)
  num = int(generator.integers(1, 3))
  tints = [_tint(generator, gray, surface.contrast) for _ in range(num + 1)]
  width = np.exp(generator.uniform(0, np.log(4 - 1.5 * difficulty), num)) * size / 64
  wiggle, length = generator.uniform(0.05, 0.5, num), generator.uniform(0.5, 1.6, num) * size
  images, labels = [], []
  for _ in range(count):
    image, kinds = surface.paint(generator, size), np.zeros((size, size), np.uint8)
    for center in generator.uniform(0, size, (int(generator.integers(0, 5)), 2)):
      image += blob(generator, size, center, size * generator.uniform(0.02, 0.12), 0.3)[..., None] * tints[-1]
    if crossed and generator.random() < 0.5:
      _edge(generator, image, around, 0.5)
      ends = generator.uniform(0, size, (2, 2))
      image += line(size, ends, size * generator.uniform(0.02, 0.1))[..., None] * -tints[-1]
    for kind in range(num):
      for _ in range(int(generator.integers(1, 4))):
        cover = branching(generator, size, width[kind], length[kind], wiggle[kind])
        image += cover[..., None] * tints[kind]
        kinds[cover > 0.4] = kind + 1
    images.append(image)
    labels.append(kinds)
  return Scenes(images, labels)


def _tint(generator: np.random.Generator, gray: bool, contrast: float) -> np.ndarray:
  """Draws a difference in color, 0..255, larger than the contrast of the texture below."""
  tint = np.ones(3) if gray else generator.normal(0.4, 0.8, 3)
  amount = generator.uniform(18, 90) + 1.3 * contrast
  return (tint / np.abs(tint).max() * amount * generator.choice([-1, 1])).astype(np.float32)


def membranes(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws cells side by side with thin dark or light walls and dots inside, noisy as under a microscope."""
  gray = generator.random() < 0.7
  color = np.full(3, generator.uniform(90, 200)) if gray else generator.uniform(60, 220, 3)
  wall, dot = _tint(generator, gray, 10.0), _tint(generator, gray, 5.0)
  width, many = generator.uniform(1.0, 2.6) * size / 64, generator.uniform(5, 16)
  noise, shade, texture = generator.uniform(2, 14), generator.uniform(0, 14), generator.uniform(0, 16)
  y, x = coordinates(size)
  images, labels = [], []
  for _ in range(count):
    seeds = generator.random((int(many * generator.uniform(0.8, 1.2)), 2), dtype=np.float32)
    warped = [axis + 0.04 * smooth_noise(generator, size, 5.0) for axis in (y, x)]
    distance = np.hypot(warped[0] - seeds[:, :1, None], warped[1] - seeds[:, 1:, None])
    nearest, second = np.partition(distance, 1, axis=0)[:2]
    gap = (second - nearest) * size
    image = color + (shade * generator.standard_normal(len(seeds)))[np.argmin(distance, axis=0)][..., None]
    image = image + (texture * smooth_noise(generator, size, size / 6))[..., None]
    kinds = np.zeros((size, size), np.uint8)
    for center in generator.uniform(0, size, (int(generator.integers(0, 8)), 2)):
      cover = blob(generator, size, center, size * generator.uniform(0.015, 0.05), 0.2)
      image = image + cover[..., None] * dot
      kinds[cover > 0.5] = 2
    cover = np.clip((width - gap) / 1.5 + 0.5, 0, 1)
    image = image + cover[..., None] * wall + noise * generator.standard_normal((size, size, 1))
    kinds[cover > 0.5] = 1
    images.append(image.astype(np.float32))
    labels.append(kinds)
  return Scenes(images, labels)


def layers(generator: np.random.Generator, size: int, count: int, difficulty: float) -> Scenes:
  """Draws nested layers around a core, or stacked ones from top to bottom, that differ little in gray or color."""
  num = int(generator.integers(2, 5))
  gray, stacked = generator.random() < 0.7, generator.random() < 0.3
  levels = np.sort(generator.uniform(20, 235, num)) if generator.random() < 0.3 else generator.uniform(20, 235, num)
  colors = levels[:, None] + (0 if gray else 1) * generator.normal(0, 30, (num, 3)) + np.zeros((num, 3))
  cuts = np.sort(generator.uniform(0.25, 1.0, num - 1))
  wavy, noise, texture = generator.uniform(0.02, 0.3), generator.uniform(0, 12), generator.uniform(0, 12, num)
  outside = generator.uniform(0, 40)
  y, x = coordinates(size)
  images, labels = [], []
  for _ in range(count):
    cy, cx = generator.uniform(0.3, 0.7, 2)
    ry, rx = generator.uniform(0.35, 0.6, 2)
    depth = 1.3 * y + 0 * x if stacked else np.hypot((y - cy) / ry, (x - cx) / rx)
    depth = depth + wavy * smooth_noise(generator, size, 6.0) + 0.1 * smooth_noise(generator, size, 2.0)
    kinds = (np.digitize(depth, cuts) + 1).astype(np.uint8)
    image = colors[kinds - 1] + (texture[kinds - 1] * smooth_noise(generator, size, size / 5))[..., None]
    if not stacked:
      image[depth > 1.0] = outside
      kinds[depth > 1.0] = 0
    image = (
      image + noise * generator.standard_normal((size, size, 1)) + 8 * smooth_noise(generator, size, 1.0)[..., None]
    )
    images.append(image.astype(np.float32))
    labels.append(kinds)
  return Scenes(images, labels)
