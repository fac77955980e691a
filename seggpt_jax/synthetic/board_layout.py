"""Layout of a synthetic printed-circuit board: routes conductors and draws them as masks.

In: a NumPy generator, the size of the picture and its magnification. Out: a Layout, whose arrays
say which conductor (net) lies where. Nets are routed on a lattice in 45-degree steps, and no two
of them touch.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

# Masks are drawn this many times finer than the picture. It is odd so that every picture pixel
# has a middle sample: labels take that sample (crisp), the picture takes the mean (anti-aliased).
FINE = 3

_PITCH = 14.0  # Mean distance between routing lanes at scale 1, in pixels.
_HEADINGS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


class Layout(NamedTuple):
  """The board as designed. Fine arrays have FINE samples per pixel and axis."""

  nets: np.ndarray  # int32 [fine, fine], number of the conductor, 0 without one.
  pads: np.ndarray  # bool [fine, fine], copper that solder mask leaves bare.
  drills: np.ndarray  # bool [fine, fine], holes; they lie within their net.
  ids: np.ndarray  # int32 [size, size], nets at the middle of each pixel.
  design: np.ndarray  # bool [size, size], copper at the middle of each pixel.
  segments: np.ndarray  # float [n, 6], straight pieces of trace: x0, y0, x1, y1, width, net.
  pitch: float  # Distance between lanes in pixels.


class _Net(NamedTuple):
  path: list[tuple[int, int]]  # Lattice nodes (row, column), 45-degree steps apart.
  width: float  # Of the trace, in pitches.
  pads: dict[tuple[int, int], str]  # Kind of pad at the first and the last node.
  heading: int  # Index of the first step in _HEADINGS; even, along a row or column.


class _Lattice:
  """Routing lattice that knows which nodes are taken.

  Conductors on different nodes never touch: traces are narrower than the 0.71 pitches between
  diagonal lanes, and a wide pad and a diagonal step are not let next to each other.
  """

  def __init__(self, nodes: int):
    self.taken = np.zeros((nodes, nodes), np.int32)
    self.wide = np.zeros((nodes, nodes), bool)  # Carries a pad wider than a via.
    self.beside = np.zeros((nodes, nodes), bool)  # Lies next to a diagonal step.

  def free(self, row: int, col: int) -> bool:
    nodes = len(self.taken)
    return 0 <= row < nodes and 0 <= col < nodes and not self.taken[row, col]

  def follow(self, row: int, col: int, headings: list[int], net: int) -> list[tuple[int, int]]:
    """Walks along the headings until blocked and takes the nodes walked over."""
    path = [(row, col)]
    self.taken[row, col] = net
    for heading in headings:
      down, right = _HEADINGS[heading]
      if not self.free(row + down, col + right):
        break
      if down and right:
        sides = (row + down, col), (row, col + right)
        crossed = self.taken[sides[0]] and self.taken[sides[0]] == self.taken[sides[1]]
        if crossed or self.wide[sides[0]] or self.wide[sides[1]]:
          break
        self.beside[sides[0]] = self.beside[sides[1]] = True
      row, col = row + down, col + right
      self.taken[row, col] = net
      path.append((row, col))
    return path

  def fit_pad(self, node: tuple[int, int], kind: str) -> str:
    """Returns the kind of pad that fits on the node: the one asked for, or the narrow via."""
    if self.beside[node]:
      return "via"
    self.wide[node] |= kind != "via"
    return kind

  def take_pour(self, top: int, left: int, bottom: int, right: int) -> bool:
    """Takes a rectangle of nodes, last row and column included, if all of them are free."""
    area = slice(top, bottom + 1), slice(left, right + 1)
    if self.taken[area].any() or self.beside[area].any():
      return False
    self.taken[area], self.wide[area] = -1, True
    return True


def _random_headings(generator: np.random.Generator, heading: int) -> list[int]:
  """Returns a route: straight runs, each followed by a jog aside or by a right-angle bend."""
  headings = []
  legs = generator.integers((2, 0, 1, 0), (8, 2, 4, 3), (5, 4)).tolist()
  for straight, side, diagonal, bend in legs:
    turn = 2 * side - 1
    headings += [heading % 8] * straight + [(heading + turn) % 8] * diagonal
    heading += 2 * turn * (bend == 0)
  return headings


def _route_nets(generator: np.random.Generator, lattice: _Lattice) -> list[_Net]:
  """Routes buses and single traces, side by side where they start in a row of pads."""
  nodes = len(lattice.taken)
  width = generator.uniform(0.33, 0.44)
  nets = []
  for _ in range(int(nodes**2 * generator.uniform(0.08, 0.2))):
    lanes = max(1, generator.integers(-3, 9))
    heading = 2 * int(generator.integers(4))
    headings = _random_headings(generator, heading)
    down, right = _HEADINGS[(heading + 2) % 8]
    first_row, first_col = generator.integers(0, nodes, 2).tolist()
    start, end = generator.choice(("round", "square", "long", "via"), 2).tolist()
    bus_width = width * generator.uniform(0.9, 1.15)
    for lane in range(lanes):
      row, col = first_row + lane * down, first_col + lane * right
      if not lattice.free(row, col):
        break
      path = lattice.follow(row, col, headings, len(nets) + 1)
      # A round pad with neither trace nor drill would look like spurious copper.
      alone = len(path) == 1 and start == "round"
      pads = {path[0]: lattice.fit_pad(path[0], "via" if alone else start)}
      if len(path) > 1:
        pads[path[-1]] = lattice.fit_pad(path[-1], end)
      nets.append(_Net(path, bus_width, pads, heading))
  return nets


def draw_layout(generator: np.random.Generator, size: int, scale: float) -> Layout:
  """Routes a board somewhat larger than the picture and draws the part in view.

  Args:
    generator: Source of all randomness.
    size: Side of the picture in pixels.
    scale: Magnification; lanes are about 14 * scale pixels apart.

  Returns:
    The layout.
  """
  pitch = _PITCH * scale * generator.uniform(0.85, 1.25)
  nodes = int(size * 1.1 / pitch) + 4
  lattice = _Lattice(nodes)
  corners = generator.integers(0, nodes - 3, (generator.integers(0, 2 + nodes // 8), 2))
  pours = np.c_[corners, corners + generator.integers(1, 4, corners.shape)].tolist()
  pours = [pour for pour in pours if lattice.take_pour(*pour)]
  nets = _route_nets(generator, lattice)
  angle = np.deg2rad(generator.choice((0.0, generator.uniform(-5, 5))))
  axes = pitch * np.array(((-np.sin(angle), np.cos(angle)), (np.cos(angle), np.sin(angle))))
  origin = size / 2 + generator.uniform(-0.5, 0.5, 2) * pitch - (nodes - 1) / 2 * axes.sum(0)
  canvases = [Image.new(mode, (size * FINE, size * FINE)) for mode in ("I", "L", "L")]
  pens = [ImageDraw.Draw(canvas) for canvas in canvases]
  radius = generator.uniform(0.31, 0.39)
  segments = [np.empty((0, 6))]
  for number, net in enumerate(nets, 1):
    points = np.array(net.path) @ axes + origin
    if not ((points > -pitch) & (points < size + pitch)).all(1).any():
      continue
    pens[0].line(fine_points(points), fill=number, width=round(net.width * pitch * FINE), joint="curve")
    for end in points[[0, -1]]:
      _draw_disk(pens[0], end, net.width * pitch / 2, number)
    widths = np.full((len(points) - 1, 2), (net.width * pitch, number))
    segments.append(np.c_[points[:-1], points[1:], widths])
    for node, kind in net.pads.items():
      center, axis = node @ axes + origin, _HEADINGS[net.heading] @ axes
      _draw_pad(pens, kind, center, axis, radius, number)
  for number, (top, left, bottom, right) in enumerate(pours, len(nets) + 1):
    top, left, bottom, right = top - 0.3, left - 0.3, bottom + 0.3, right + 0.3
    outline = np.array(((top, left), (top, right), (bottom, right), (bottom, left)))
    pens[0].polygon(fine_points(outline @ axes + origin), fill=number)
  fine_nets, pads, drills = (np.array(canvas) for canvas in canvases)
  ids, pieces = middle(fine_nets), np.concatenate(segments)
  in_view = ((pieces[:, :4] > 0) & (pieces[:, :4] < size)).reshape(-1, 2, 2).all(2).any(1)
  design = (ids > 0) & (middle(drills) == 0)
  return Layout(fine_nets, pads > 0, drills > 0, ids, design, pieces[in_view], pitch)


def fine_points(points: np.ndarray) -> list[tuple[float, float]]:
  """Converts x, y in pixels to Pillow's coordinates, whole at the centers of fine samples."""
  return [(x, y) for x, y in (points * FINE - 0.5).tolist()]


def _draw_disk(pen: ImageDraw.ImageDraw, center: np.ndarray, radius: float, fill: int) -> None:
  x, y = fine_points(center[None])[0]
  radius *= FINE
  pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _draw_pad(
  pens: list[ImageDraw.ImageDraw], kind: str, center: np.ndarray, axis: np.ndarray, radius: float, net: int
) -> None:
  """Draws a pad on nets, pads and drills; axis is one pitch long, radius is in pitches."""
  pitch = float(np.hypot(*axis))
  for pen, fill in ((pens[0], net), (pens[1], 1)):
    if kind in ("square", "long"):
      front = axis * (0.43 if kind == "long" else radius)
      side = axis[::-1] * (-radius, radius)
      corners = np.stack((front + side, front - side, -front - side, side - front))
      pen.polygon(fine_points(center + corners), fill=fill)
    else:
      _draw_disk(pen, center, pitch * (0.3 if kind == "via" else radius), fill)
  if kind == "via":
    _draw_disk(pens[2], center, 0.13 * pitch, 1)


def middle(fine: np.ndarray) -> np.ndarray:
  """Returns the middle sample of every pixel."""
  return fine[FINE // 2 :: FINE, FINE // 2 :: FINE]
