"""Defects of a synthetic printed-circuit board: what goes wrong when the copper is etched.

In: a NumPy generator, the layout of a board and kinds of defects. Out: the copper as made and
a label for every pixel. A defect is kept only if it means what its name says on the pixel grid:
an open cuts its trace, a short joins two nets, a mouse bite leaves its trace whole, a spur and
spurious copper join nothing, a pinhole has copper all around.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from seggpt_jax.synthetic.board_layout import FINE, Layout, fine_points, middle

DEFECTS: tuple[str, ...] = ("open", "short", "mouse_bite", "spur", "spurious_copper", "pinhole")

_MIN_AREA = 9.0  # A defect smaller than this at scale 1, in pixels, could not be seen.
_MARGIN = 4  # Pixels between a defect and the border.
_PLACEMENTS = 40  # Tries to place one defect.


class _Region(NamedTuple):
  """Region in which a defect changes the copper, within a window of whole pixels."""

  window: tuple[slice, slice]
  fine: np.ndarray  # bool, FINE samples per pixel of the window.
  inside: np.ndarray  # bool, the middle samples.


class _Site(NamedTuple):
  """A place on a trace, with coordinates along and across it in pixels."""

  center: np.ndarray
  axes: np.ndarray  # [2, 2], unit vectors along and across the trace.
  half: float  # Half the width of the trace.
  net: int

  def locate(self, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Returns x, y of points given along and across the trace."""
    return self.center + np.stack((along, across), -1) @ self.axes

  def distances(self, window: tuple[slice, slice]) -> np.ndarray:
    """Returns how far along and across the trace the pixels of the window lie, [2, h, w]."""
    y, x = np.mgrid[window] + 0.5
    return np.abs(np.tensordot(self.axes, (x - self.center[0], y - self.center[1]), 1))


def place_defects(
  generator: np.random.Generator, layout: Layout, kinds: list[str], scale: float
) -> tuple[np.ndarray, np.ndarray] | None:
  """Changes the copper by one defect for each kind listed.

  Args:
    generator: Source of all randomness.
    layout: The board as designed.
    kinds: Kinds of defects out of DEFECTS.
    scale: Magnification; defects grow with it.

  Returns:
    The copper as made, bool [fine, fine], and the labels, uint8 [size, size], 1 plus the index
    of the kind in DEFECTS where a defect changed the copper. None if a defect found no place.
  """
  copper = (layout.nets > 0) & ~layout.drills
  labels = np.zeros(layout.ids.shape, np.uint8)
  for kind in kinds:
    for _ in range(_PLACEMENTS if len(layout.segments) else 0):
      region = _PROPOSALS[kind](generator, layout, scale)
      visible = region is not None and region.inside.sum() >= _MIN_AREA * scale**2
      # Defects keep apart, or one could undo what the other means.
      if visible and not labels[region.window].any():
        break
    else:
      return None
    copper[_fine_window(region.window)] ^= region.fine
    labels[region.window][region.inside] = 1 + DEFECTS.index(kind)
  return copper, labels


def _fine_window(window: tuple[slice, slice]) -> tuple[slice, ...]:
  return tuple(slice(s.start * FINE, s.stop * FINE) for s in window)


def _fill_outline(points: np.ndarray, layout: Layout, net: int) -> _Region | None:
  """Fills a polygon where the net lies, or where no copper lies if the net is 0; None if it is near the border."""
  low = np.floor(points.min(0)).astype(int) - _MARGIN
  high = np.ceil(points.max(0)).astype(int) + _MARGIN
  if low.min() < 0 or high.max() > len(layout.ids):
    return None
  canvas = Image.new("L", tuple((FINE * (high - low)).tolist()))
  ImageDraw.Draw(canvas).polygon(fine_points(points - low), fill=1)
  window = slice(low[1], high[1]), slice(low[0], high[0])
  part = _fine_window(window)
  fine = np.array(canvas, bool) & (layout.nets[part] == net) & ~layout.drills[part]
  return _Region(window, fine, middle(fine))


def _grow(mask: np.ndarray, pixels: int) -> np.ndarray:
  """Widens a mask by some pixels in all eight directions."""
  return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0


def _random_site(generator: np.random.Generator, layout: Layout) -> _Site:
  """Picks a place on a straight piece of trace, away from its bends, facing either side."""
  x0, y0, x1, y1, width, net = generator.choice(layout.segments)
  start, step = np.array((x0, y0)), np.array((x1 - x0, y1 - y0))
  along = step / np.hypot(*step)
  across = along[::-1] * (-1, 1) * generator.choice((-1, 1))
  center = start + generator.uniform(0.3, 0.7) * step
  return _Site(center, np.stack((along, across)), width / 2, int(net))


def _band(site: _Site, sides: np.ndarray, across: np.ndarray) -> np.ndarray:
  """Outlines a strip across the trace that reaches sides [2, n] to its left and right."""
  return site.locate(np.r_[-sides[0], sides[1, ::-1]], np.r_[across, across[::-1]])


def _on_pad(region: _Region, layout: Layout) -> bool:
  return bool((layout.pads[_fine_window(region.window)] & region.fine).any())


def _propose_open(generator: np.random.Generator, layout: Layout, scale: float) -> _Region | None:
  """A gap over the whole width of a trace, with ragged ends."""
  site = _random_site(generator, layout)
  gap = max(2 * site.half * generator.uniform(0.6, 1.4), 4 * scale)
  across = np.linspace(-site.half - 2, site.half + 2, 6)
  bulge = generator.uniform(-0.25, 0.25) * np.linspace(-1, 1, 6) ** 2
  sides = gap / 2 * (1 + bulge + generator.uniform(-0.2, 0.2, (2, 6)))
  region = _fill_outline(_band(site, sides, across), layout, site.net)
  if region is None:
    return None
  # Copper left next to the gap would mean that the gap does not span the conductor.
  ring = _grow(region.inside, 2) & ~region.inside & layout.design[region.window]
  beside = ring & (site.distances(region.window)[0] < 0.3 * gap)
  return None if beside.any() or _on_pad(region, layout) else region


def _propose_short(generator: np.random.Generator, layout: Layout, scale: float) -> _Region | None:
  """A bridge from a trace to the conductor next to it, wider where it meets them."""
  site = _random_site(generator, layout)
  reach = np.arange(0, 1.3 * layout.pitch, 0.5)
  x, y = site.locate(0 * reach, reach).astype(int).clip(0, len(layout.ids) - 1).T
  others = np.flatnonzero((layout.ids[y, x] > 0) & (layout.ids[y, x] != site.net))
  if not len(others):
    return None
  across = np.linspace(site.half / 2, reach[others[0]] + 1.5 * scale, 6)
  flare = 0.8 + generator.uniform(0.3, 0.9) * np.linspace(-1, 1, 6) ** 2
  sides = flare * generator.uniform(1.3, 2.6) * scale * generator.uniform(0.8, 1.2, (2, 6))
  region = _fill_outline(_band(site, sides, across), layout, 0)
  if region is None:
    return None
  touched = set(layout.ids[region.window][_grow(region.inside, 1)].tolist()) - {0}
  return region if len(touched) == 2 and site.net in touched else None


def _alone(region: _Region, layout: Layout, site: _Site) -> bool:
  """Tells whether the straight trace of the site is the only copper near the region."""
  near = _grow(region.inside, 2) & (layout.ids[region.window] > 0)
  return not (near & (site.distances(region.window)[1] > site.half + 1)).any()


def _propose_mouse_bite(generator: np.random.Generator, layout: Layout, scale: float) -> _Region | None:
  """A rough bite out of the edge of a trace that leaves part of its width."""
  site = _random_site(generator, layout)
  # A trace thinner than about two pixels would no longer conduct on the pixel grid.
  depth = min(2 * site.half * generator.uniform(0.45, 0.65), 2 * site.half - 2.6)
  turns = np.linspace(0, np.pi, 9)
  along = site.half * generator.uniform(0.9, 1.6) * np.cos(turns)
  across = (depth + 1) * np.sin(turns) ** 0.7 * generator.uniform(0.7, 1.0, 9)
  region = _fill_outline(site.locate(along, site.half + 1 - across), layout, site.net)
  if region is None or _on_pad(region, layout) or not _alone(region, layout, site):
    return None
  return region


def _propose_spur(generator: np.random.Generator, layout: Layout, scale: float) -> _Region | None:
  """A protrusion from the edge of a trace that ends in open space."""
  site = _random_site(generator, layout)
  length, half = generator.uniform((4.0, 1.9), (7.0, 3.2)) * scale
  turns = np.linspace(0, np.pi, 9)
  across = np.sin(turns) ** generator.uniform(0.8, 1.6) * generator.uniform(0.75, 1.0, 9)
  across *= length + 1
  along = half * np.cos(turns) + generator.uniform(-0.3, 0.3) * across
  region = _fill_outline(site.locate(along, site.half - 1 + across), layout, 0)
  return region if region is not None and _alone(region, layout, site) else None


def _fill_blob(generator: np.random.Generator, layout: Layout, radius: float, room: np.ndarray) -> _Region | None:
  """Fills a rough disk of at most the radius around a random pixel of the mask room."""
  pixels = np.flatnonzero(room)
  if not len(pixels):
    return None
  y, x = divmod(int(generator.choice(pixels)), len(room))
  turns = generator.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, 10, endpoint=False)
  stretch = radius * generator.uniform(0.75, 1.0, (10, 1))
  outline = np.stack((np.cos(turns), np.sin(turns)), -1) * stretch + (x + 0.5, y + 0.5)
  return _fill_outline(outline, layout, int(layout.ids[y, x]))


def _propose_spurious_copper(generator: np.random.Generator, layout: Layout, scale: float) -> _Region | None:
  """An island in open space."""
  radius = generator.uniform(2.2, 4.5) * scale
  near = _grow(layout.ids > 0, int(np.ceil(radius + 2 * scale)))
  return _fill_blob(generator, layout, radius, ~near)


def _propose_pinhole(generator: np.random.Generator, layout: Layout, scale: float) -> _Region | None:
  """A hole in a trace, a pad or a pour with copper all around it."""
  radius = generator.uniform(1.9, 3.0) * scale
  near = _grow(~layout.design, int(np.ceil(radius + 0.5 * scale)))
  return _fill_blob(generator, layout, radius, ~near)


_PROPOSALS: dict[str, Callable[..., _Region | None]] = {
  "open": _propose_open,
  "short": _propose_short,
  "mouse_bite": _propose_mouse_bite,
  "spur": _propose_spur,
  "spurious_copper": _propose_spurious_copper,
  "pinhole": _propose_pinhole,
}
