"""Synthetic printed-circuit boards with labelled defects, drawn with NumPy and Pillow.

In: a seed (or a NumPy generator) and the size of the picture. Out: a color picture of a bare
board, uint8 [size, size, 3], and its label, uint8 [size, size], which is 0 where the copper is as
designed and the class of the defect where copper is missing or in excess.

A board is made in four steps: conductors are routed on a lattice in 45-degree steps, drawn as a
map of net numbers, changed by defects, and rendered. A defect is kept only if it means what its
name says on the pixel grid (an open cuts its trace, a short joins two nets, ...), so the label is
exactly the set of pixels in which the copper differs from the design.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFilter

DEFECTS: tuple[str, ...] = (
    "open", "short", "mouse_bite", "spur", "spurious_copper", "pinhole"
)  # fmt: skip
SPLITS: tuple[str, ...] = ("train", "val")

# Masks are drawn this many times finer than the picture. It is odd so that every picture pixel
# has a middle sample: labels take that sample (crisp), the picture takes the mean (anti-aliased).
_FINE = 3
_PITCH = 14.0  # Mean distance between routing lanes at scale 1, in pixels.
_MIN_AREA = 9.0  # A defect smaller than this at scale 1, in pixels, could not be seen.
_PLACEMENTS = 40  # Tries to place one defect before the board is drawn anew.
_REDRAWS = 50
_HEADINGS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


class Board(NamedTuple):
    """A picture of a board, its label and the copper before and after the defects."""

    image: UInt8[np.ndarray, "size size 3"]
    labels: UInt8[np.ndarray, "size size"]  # 0 as designed, else 1 + DEFECTS.index(kind).
    design: Bool[np.ndarray, "size size"]  # Copper as designed.
    copper: Bool[np.ndarray, "size size"]  # Copper as made; differs where labels > 0.


def generate_board(
    generator: np.random.Generator,
    size: int = 256,
    defects: Sequence[str] | None = None,
    count: tuple[int, int] = (1, 3),
    scale: float = 1.0,
) -> Board:
    """Draws one random board with defects.

    Args:
      generator: Source of all randomness.
      size: Side of the picture in pixels, at least 32 * scale.
      defects: Kinds to draw from, out of DEFECTS. None means all of them.
      count: Fewest and most defects on the board, both included. (0, 0) gives flawless boards.
      scale: Magnification of the camera, at least 1. Traces, spacings and defects all grow with
        it, so the same picture shows a smaller part of the board. At scale 1 traces are 4 to 8
        pixels wide and defects span about 4 to 14 pixels.

    Returns:
      The board, which carries count[0] to count[1] defects.

    Raises:
      ValueError: An argument is out of its range.
      RuntimeError: The defects asked for do not fit on a board of this size.
    """
    defects = DEFECTS if defects is None else tuple(defects)
    _check_arguments(size, defects, count, scale)
    # Kinds are drawn before the board: were they drawn after, the kinds that are hard to place
    # would become rare.
    kinds = [str(k) for k in generator.choice(defects, generator.integers(count[0], count[1] + 1))]
    for _ in range(_REDRAWS):
        layout = _draw_layout(generator, size, scale)
        made = _place_defects(generator, layout, kinds, scale)
        if made is not None:
            copper, labels = made
            image = _render(generator, copper, layout.pads, layout.drills)
            return Board(image, labels, layout.design, _middle(copper))
    raise RuntimeError(
        f"could not place defects {kinds} on a board of size {size} at scale {scale:g} "
        f"in {_REDRAWS} boards; ask for fewer defects, a larger size or a smaller scale"
    )


def _check_arguments(
    size: int, defects: tuple[str, ...], count: tuple[int, int], scale: float
) -> None:
    if not defects or not set(defects) <= set(DEFECTS):
        raise ValueError(f"defects: found {defects}, expected one or more of {DEFECTS}")
    if len(count) != 2 or not 0 <= count[0] <= count[1]:
        raise ValueError(f"count: found {count}, expected (fewest, most), 0 <= fewest <= most")
    if not scale >= 1:
        raise ValueError(f"scale: found {scale}, expected a number of at least 1")
    if size < 32 * scale:
        raise ValueError(f"size: found {size}, expected at least 32 * scale = {32 * scale:g}")


# ---- Layout: which conductors there are and where they run. ----


class _Layout(NamedTuple):
    """The board as designed. Fine arrays have _FINE samples per pixel and axis."""

    nets: np.ndarray  # int32 [fine, fine], number of the conductor, 0 where there is none.
    pads: np.ndarray  # bool [fine, fine], copper that solder mask leaves bare.
    drills: np.ndarray  # bool [fine, fine], holes; they lie within their net.
    ids: np.ndarray  # int32 [size, size], nets at the middle of each pixel.
    design: np.ndarray  # bool [size, size], copper at the middle of each pixel.
    segments: np.ndarray  # float [n, 5], straight pieces of trace: x0, y0, x1, y1, width.
    pitch: float  # Distance between lanes in pixels.


class _Net(NamedTuple):
    path: list[tuple[int, int]]  # Lattice nodes, neighbors 45-degree steps apart.
    width: float  # Of the trace, in pitches.
    ends: tuple[str, str]  # Kind of pad at either end.


class _Lattice:
    """Routing lattice that knows which nodes are taken.

    Conductors on different nodes never touch: traces are narrower than the 0.71 pitches between
    diagonal lanes, and a wide pad and a diagonal step are not let next to each other.
    """

    def __init__(self, nodes: int):
        self.taken = np.zeros((nodes, nodes), np.int32)
        self.wide = np.zeros((nodes, nodes), bool)  # Carries a pad wider than a via.
        self.beside = np.zeros((nodes, nodes), bool)  # Lies beside a diagonal step.

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

    def pad(self, node: tuple[int, int], kind: str) -> str:
        """Returns the pad that fits on the node: the one asked for, or the narrow via."""
        if kind in ("none", "via") or self.beside[node]:
            return "via" if kind != "none" else kind
        self.wide[node] = True
        return kind


def _random_headings(generator: np.random.Generator, heading: int) -> list[int]:
    """Returns a route: straight runs, short diagonals, then the old course or a right turn."""
    headings = []
    for straight, turn, diagonal, go_on in generator.integers(
        (2, 0, 1, 0), (8, 2, 4, 3), (5, 4)
    ).tolist():
        turn = 2 * turn - 1
        headings += [heading % 8] * straight + [(heading + turn) % 8] * diagonal
        heading += 2 * turn * (go_on == 0)
    return headings


def _route_nets(generator: np.random.Generator, nodes: int) -> tuple[list[_Net], list[tuple]]:
    """Routes buses, rows of pads and single traces, and sets copper pours.

    Returns:
      The nets, numbered from 1 in order, and the pours (first row, first column, last row, last
      column), whose numbers come after those of the nets.
    """
    lattice = _Lattice(nodes)
    pours = []
    for _ in range(generator.integers(0, 2 + nodes // 8)):
        rows, cols = generator.integers(1, 4, 2)
        top, left = generator.integers(0, nodes - 3, 2)
        area = slice(top, top + rows + 1), slice(left, left + cols + 1)
        if not lattice.taken[area].any():
            lattice.taken[area] = -1
            lattice.wide[area] = True
            pours.append((top, left, top + rows, left + cols))
    width = generator.uniform(0.33, 0.44)
    nets = []
    for _ in range(int(nodes**2 * generator.uniform(0.08, 0.2))):
        lanes = max(1, generator.integers(-3, 9))
        heading = 2 * int(generator.integers(4))
        headings = _random_headings(generator, heading)
        down, right = _HEADINGS[(heading + 2) % 8]
        first_row, first_col = generator.integers(0, nodes, 2).tolist()
        start, end = generator.choice(("round", "square", "long", "via", "none"), 2).tolist()
        group_width = np.clip(width * generator.uniform(0.85, 1.15), 0.3, 0.47)
        for lane in range(lanes):
            row, col = first_row + lane * down, first_col + lane * right
            if not lattice.free(row, col):
                break
            path = lattice.follow(row, col, headings, len(nets) + 1)
            # A node on its own would be a stray dot without a pad.
            first = "round" if start == "none" and len(path) == 1 else start
            ends = lattice.pad(path[0], first), lattice.pad(path[-1], end)
            nets.append(_Net(path, group_width, ends))
    return nets, pours


def _draw_layout(generator: np.random.Generator, size: int, scale: float) -> _Layout:
    """Routes a board somewhat larger than the picture and draws the part in view."""
    pitch = _PITCH * scale * generator.uniform(0.85, 1.25)
    nodes = int(size * 1.1 / pitch) + 5
    nets, pours = _route_nets(generator, nodes)
    angle = np.deg2rad(generator.choice((0.0, generator.uniform(-5, 5))))
    across = np.array((np.cos(angle), np.sin(angle)))
    axes = np.stack((across[::-1] * (-1, 1), across))  # x, y of one row and of one column.
    shift = size / 2 + generator.uniform(-0.5, 0.5, 2) * pitch

    def locate(node: np.ndarray) -> np.ndarray:
        return (np.asarray(node, float) - (nodes - 1) / 2) @ axes * pitch + shift

    canvases = [Image.new(mode, (size * _FINE, size * _FINE)) for mode in ("I", "L", "L")]
    pens = [ImageDraw.Draw(canvas) for canvas in canvases]
    segments = [np.empty((0, 5))]
    pad_radius = generator.uniform(0.31, 0.39)
    for number, net in enumerate(nets, 1):
        points = locate(net.path)
        width = net.width * pitch
        _draw_trace(pens[0], points, width, number)
        segments.append(np.c_[points[:-1], points[1:], np.full(len(points) - 1, width)])
        for kind, point, inner in zip(net.ends, points[[0, -1]], (points[1:2], points[-2:-1])):
            axis = (inner[0] - point) / np.linalg.norm(inner[0] - point) if len(inner) else across
            _draw_pad(pens, kind, point, axis * pitch, pad_radius, number)
    for number, (top, left, bottom, right) in enumerate(pours, len(nets) + 1):
        top, left, bottom, right = top - 0.3, left - 0.3, bottom + 0.3, right + 0.3
        corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
        pens[0].polygon(_fine_points(locate(corners)), fill=number)
    fine_nets, pads, drills = (np.array(canvas) for canvas in canvases)
    ids = _middle(fine_nets)
    return _Layout(
        fine_nets, pads > 0, drills > 0, ids, (ids > 0) & (_middle(drills) == 0),
        np.concatenate(segments), pitch,
    )  # fmt: skip


def _fine_points(points: np.ndarray) -> list[tuple[float, float]]:
    """Converts x, y in pixels to Pillow's coordinates, whole at the centers of fine samples."""
    return [(x, y) for x, y in (points * _FINE - 0.5).tolist()]


def _draw_disk(pen: ImageDraw.ImageDraw, center: np.ndarray, radius: float, fill: int) -> None:
    x, y = _fine_points(center[None])[0]
    radius *= _FINE
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _draw_trace(pen: ImageDraw.ImageDraw, points: np.ndarray, width: float, net: int) -> None:
    pen.line(_fine_points(points), fill=net, width=round(width * _FINE), joint="curve")
    for end in points[[0, -1]]:
        _draw_disk(pen, end, width / 2, net)


def _draw_pad(
    pens: list[ImageDraw.ImageDraw],
    kind: str,
    center: np.ndarray,
    axis: np.ndarray,
    radius: float,
    net: int,
) -> None:
    """Draws a pad on nets, pads and drills; axis is one pitch long, radius is in pitches."""
    pitch = float(np.hypot(*axis))
    side = axis[::-1] * (-1, 1) * radius
    if kind in ("square", "long"):
        axis = axis * (0.47 if kind == "long" else radius)
        corners = center + np.stack((axis + side, axis - side, -axis - side, side - axis))
        for pen, fill in zip(pens[:2], (net, 1)):
            pen.polygon(_fine_points(corners), fill=fill)
    elif kind != "none":
        radius = 0.3 if kind == "via" else radius
        for pen, fill in zip(pens[:2], (net, 1)):
            _draw_disk(pen, center, radius * pitch, fill)
        if kind == "via":
            _draw_disk(pens[2], center, 0.13 * pitch, 1)


def _middle(fine: np.ndarray) -> np.ndarray:
    """Returns the middle sample of every pixel."""
    return fine[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]


# ---- Defects: what goes wrong when the board is etched. ----


class _Region(NamedTuple):
    """A shape on the board within a window of whole pixels."""

    window: tuple[slice, slice]
    fine: np.ndarray  # bool, _FINE samples per pixel of the window.
    inside: np.ndarray  # bool, the middle samples.


class _Site(NamedTuple):
    """A place on a trace: coordinates along and across it, in pixels."""

    center: np.ndarray
    axes: np.ndarray  # [2, 2], unit vectors along and across the trace.
    half: float  # Half the width of the trace.

    def locate(self, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        return self.center + np.stack((along, across), -1) @ self.axes

    def coordinates(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Returns how far along and across the trace the pixels of the window lie."""
        y, x = np.mgrid[window] + 0.5
        x, y = x - self.center[0], y - self.center[1]
        return x * self.axes[0, 0] + y * self.axes[0, 1], x * self.axes[1, 0] + y * self.axes[1, 1]


def _place_defects(
    generator: np.random.Generator, layout: _Layout, kinds: list[str], scale: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Changes the copper by one defect of each kind listed.

    Returns:
      Fine copper mask and labels, or None where a defect found no place.
    """
    copper = (layout.nets > 0) & ~layout.drills
    labels = np.zeros(layout.ids.shape, np.uint8)
    for kind in kinds:
        for _ in range(_PLACEMENTS):
            region = _PROPOSALS[kind](generator, layout, scale)
            # Defects keep apart, or one could undo what the other means.
            if region is not None and not labels[region.window].any():
                break
        else:
            return None
        rows, cols = (slice(s.start * _FINE, s.stop * _FINE) for s in region.window)
        copper[rows, cols] ^= region.fine
        labels[region.window][region.inside] = 1 + DEFECTS.index(kind)
    return copper, labels


def _outline_region(points: np.ndarray, layout: _Layout, margin: int = 4) -> _Region | None:
    """Fills a polygon; None where it comes within the margin, in pixels, of the border."""
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
    low, high = low - margin, high + margin
    if low.min() < 0 or high.max() > len(layout.ids):
        return None
    width, height = (high - low).tolist()
    canvas = Image.new("L", (width * _FINE, height * _FINE))
    ImageDraw.Draw(canvas).polygon(_fine_points(points - low), fill=1)
    fine = np.array(canvas, bool)
    return _Region((slice(low[1], high[1]), slice(low[0], high[0])), fine, _middle(fine))


def _changed(region: _Region, layout: _Layout, adds: bool, scale: float) -> _Region | None:
    """Reduces a region to the copper it adds or removes; None where too little can be seen."""
    rows, cols = (slice(s.start * _FINE, s.stop * _FINE) for s in region.window)
    nets = layout.nets[rows, cols]
    fine = region.fine & ((nets == 0) if adds else (nets > 0) & ~layout.drills[rows, cols])
    inside = _middle(fine)
    return _Region(region.window, fine, inside) if inside.sum() >= _MIN_AREA * scale**2 else None


def _grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Widens a mask by some pixels in all eight directions."""
    for _ in range(pixels):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        mask = grown.copy()
        mask[:, 1:] |= grown[:, :-1]
        mask[:, :-1] |= grown[:, 1:]
    return mask


def _random_site(generator: np.random.Generator, layout: _Layout) -> _Site | None:
    """Picks a place on a straight piece of trace, away from its bends, facing either side."""
    middle = (layout.segments[:, 0:2] + layout.segments[:, 2:4]) / 2
    inside = ((middle > 0) & (middle < len(layout.ids))).all(1)
    segments = layout.segments[inside]
    if not len(segments):
        return None
    x0, y0, x1, y1, width = segments[generator.integers(len(segments))]
    along = np.array((x1 - x0, y1 - y0)) / np.hypot(x1 - x0, y1 - y0)
    part = generator.uniform(0.3, 0.7)
    center = np.array((x0 + part * (x1 - x0), y0 + part * (y1 - y0)))
    across = along[::-1] * (-1, 1) * generator.choice((-1, 1))
    return _Site(center, np.stack((along, across)), width / 2)


def _propose_open(
    generator: np.random.Generator, layout: _Layout, scale: float
) -> _Region | None:
    """A gap over the whole width of a trace, with ragged ends."""
    site = _random_site(generator, layout)
    if site is None:
        return None
    gap = max(2 * site.half * generator.uniform(0.6, 1.4), 4 * scale)
    across = np.linspace(-site.half - 2, site.half + 2, 6)
    bulge = generator.uniform(-0.25, 0.25) * (across / across[-1]) ** 2
    ends = gap / 2 * (1 + bulge + generator.uniform(-0.2, 0.2, (2, 6)))
    outline = site.locate(np.r_[-ends[0], ends[1, ::-1]], np.r_[across, across[::-1]])
    region = _outline_region(outline, layout)
    if region is None:
        return None
    # Copper left beside the gap would mean that the gap does not span the trace.
    along, _ = site.coordinates(region.window)
    beside = _grow(region.inside, 2) & ~region.inside & (np.abs(along) < gap * 0.3)
    if (beside & (layout.ids[region.window] > 0)).any():
        return None
    return _changed(region, layout, adds=False, scale=scale)


def _propose_short(
    generator: np.random.Generator, layout: _Layout, scale: float
) -> _Region | None:
    """A bridge from a trace to the conductor next to it, wider where it meets them."""
    site = _random_site(generator, layout)
    if site is None:
        return None
    reach = np.arange(0, 1.3 * layout.pitch, 0.5)
    x, y = site.locate(0 * reach, reach).astype(int).T
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) >= len(layout.ids):
        return None
    met = layout.ids[y, x]
    other = np.flatnonzero((met > 0) & (met != met[0]))
    if not len(other):
        return None
    half = generator.uniform(1.3, 2.6) * scale
    across = np.linspace(site.half / 2, reach[other[0]] + 1.5 * scale, 6)
    flare = 0.8 + generator.uniform(0.3, 0.9) * np.linspace(-1, 1, 6) ** 2
    sides = half * flare * generator.uniform(0.8, 1.2, (2, 6))
    outline = site.locate(np.r_[-sides[0], sides[1, ::-1]], np.r_[across, across[::-1]])
    region = _outline_region(outline, layout)
    region = region and _changed(region, layout, adds=True, scale=scale)
    if region is None:
        return None
    joined = np.unique(layout.ids[region.window][_grow(region.inside, 1)])
    return region if set(joined) == {0, met[0], met[other[0]]} else None


def _propose_mouse_bite(
    generator: np.random.Generator, layout: _Layout, scale: float
) -> _Region | None:
    """A rough bite out of the edge of a trace that leaves part of its width."""
    site = _random_site(generator, layout)
    # At least two pixels of trace remain, so that it still conducts on the pixel grid.
    if site is None or 2 * site.half < 4.5:
        return None
    depth = min(2 * site.half * generator.uniform(0.45, 0.65), 2 * site.half - 2)
    turns = np.linspace(0, np.pi, 9)
    half_length = site.half * generator.uniform(0.9, 1.6)
    rough = generator.uniform(0.7, 1.0, 9)
    across = site.half + 1 - (depth + 1) * np.sin(turns) ** 0.7 * rough
    region = _outline_region(site.locate(half_length * np.cos(turns), across), layout)
    if region is None:
        return None
    # Every copper pixel around the bite belongs to the bitten trace, not to a pad or a bend.
    _, distance = site.coordinates(region.window)
    copper = layout.ids[region.window] > 0
    if (_grow(region.inside, 1) & copper & (np.abs(distance) > site.half + 1)).any():
        return None
    return _changed(region, layout, adds=False, scale=scale)


def _propose_spur(
    generator: np.random.Generator, layout: _Layout, scale: float
) -> _Region | None:
    """A protrusion from the edge of a trace that ends in open space."""
    site = _random_site(generator, layout)
    if site is None:
        return None
    length = generator.uniform(3.5, 6.5) * scale
    half = generator.uniform(1.6, 3.0) * scale
    turns = np.linspace(0, np.pi, 9)
    rough = generator.uniform(0.75, 1.0, 9)
    lean = generator.uniform(-0.3, 0.3)
    across = np.sin(turns) ** generator.uniform(0.8, 1.6) * rough * (length + 1)
    along = half * np.cos(turns) + lean * across
    region = _outline_region(site.locate(along, site.half - 1 + across), layout)
    if region is None:
        return None
    # The only copper near it is the trace it grows from.
    _, distance = site.coordinates(region.window)
    copper = layout.ids[region.window] > 0
    if (_grow(region.inside, 2) & copper & (np.abs(distance) > site.half + 1)).any():
        return None
    return _changed(region, layout, adds=True, scale=scale)


def _blob(generator: np.random.Generator, center: np.ndarray, radius: float) -> np.ndarray:
    """Returns the outline of a rough disk that stays within the radius."""
    turns = generator.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, 10, endpoint=False)
    stretch = radius * generator.uniform(0.75, 1.0, (10, 1))
    return center + np.stack((np.cos(turns), np.sin(turns)), -1) * stretch


def _random_pixel(generator: np.random.Generator, mask: np.ndarray) -> np.ndarray | None:
    """Returns x, y of the center of a random pixel of the mask, None where it is empty."""
    pixels = np.flatnonzero(mask)
    if not len(pixels):
        return None
    y, x = divmod(int(pixels[generator.integers(len(pixels))]), mask.shape[1])
    return np.array((x + 0.5, y + 0.5))


def _propose_spurious_copper(
    generator: np.random.Generator, layout: _Layout, scale: float
) -> _Region | None:
    """An island in open space."""
    radius = generator.uniform(2.2, 4.5) * scale
    near = _grow(layout.ids > 0, int(np.ceil(radius + 2 * scale)))
    center = _random_pixel(generator, ~near)
    if center is None:
        return None
    region = _outline_region(_blob(generator, center, radius), layout)
    return region and _changed(region, layout, adds=True, scale=scale)


def _propose_pinhole(
    generator: np.random.Generator, layout: _Layout, scale: float
) -> _Region | None:
    """A hole in a trace, a pad or a pour with copper all around it."""
    radius = generator.uniform(1.9, 3.0) * scale
    near = _grow(~layout.design, int(np.ceil(radius + 0.5 * scale)))
    center = _random_pixel(generator, ~near)
    if center is None:
        return None
    region = _outline_region(_blob(generator, center, radius), layout)
    return region and _changed(region, layout, adds=False, scale=scale)


_PROPOSALS: dict[str, Callable[..., _Region | None]] = {
    "open": _propose_open,
    "short": _propose_short,
    "mouse_bite": _propose_mouse_bite,
    "spur": _propose_spur,
    "spurious_copper": _propose_spurious_copper,
    "pinhole": _propose_pinhole,
}


# ---- Rendering: what the camera sees. ----

_MASKS = ((18, 84, 44), (16, 44, 104), (122, 22, 28), (30, 30, 34), (66, 26, 92), (30, 96, 100))
_METALS = ((196, 112, 66), (188, 190, 186), (214, 174, 84))  # Copper, tin, gold.
_LAMINATES = ((96, 92, 52), (58, 48, 34), (24, 62, 40), (28, 40, 66))


def _random_colors(generator: np.random.Generator) -> np.ndarray:
    """Returns the colors of substrate, trace, pad and drill, float32 [4, 3], about 0 to 255."""
    style = generator.choice(("mask", "bare", "bright", "dark"), p=(0.45, 0.3, 0.15, 0.1))
    metal = np.array(_METALS[generator.integers(3)], float)
    if style == "mask":  # Solder mask covers the traces, which shine through; pads are bare.
        board = np.array(_MASKS[generator.integers(len(_MASKS))], float)
        trace = board * generator.uniform(1.3, 1.6) + generator.uniform(24, 40)
    elif style == "bare":
        board = np.array(_LAMINATES[generator.integers(len(_LAMINATES))], float)
        trace = metal
    else:  # Grey as in optical inspection: bright copper on dark, or the inverse.
        low, high = np.full(3, generator.uniform(25, 70)), np.full(3, generator.uniform(165, 225))
        board, trace = (low, high) if style == "bright" else (high, low)
    if style in ("bright", "dark"):
        return np.stack((board, trace, trace, board)).astype(np.float32)
    drill = np.full(3, generator.uniform(5, 25))
    colors = np.stack((board, trace, metal, drill)) + generator.uniform(-10, 10, (4, 3))
    return colors.astype(np.float32)


def _coverage(fine: np.ndarray) -> np.ndarray:
    """Returns which part of each pixel a fine mask covers, float32 in [0, 1]."""
    image = Image.fromarray(fine.astype(np.uint8) * 255).reduce(_FINE)
    return np.asarray(image, np.float32) / 255


def _random_texture(generator: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Returns smooth noise with about that many cells per side, float32 [size, size]."""
    cells = generator.standard_normal((cells, cells), np.float32)
    return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))


def _render(
    generator: np.random.Generator, copper: np.ndarray, pads: np.ndarray, drills: np.ndarray
) -> np.ndarray:
    """Paints the materials, then lights, blurs and adds the noise of a camera."""
    colors = _random_colors(generator)
    metal, bare, hole = _coverage(copper), _coverage(copper & pads), _coverage(drills)
    size = len(metal)
    parts = np.stack((1 - metal - hole, metal - bare, bare, hole), -1)
    image = parts @ colors
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j].astype(np.float32)
    slope = generator.uniform(-0.3, 0.3, 2).astype(np.float32)
    light = generator.uniform(0.85, 1.12) + slope[0] * x + slope[1] * y
    light += generator.uniform(0.01, 0.05) * _random_texture(generator, size, 2 + size // 40)
    grain = generator.uniform(0.01, 0.06) * _random_texture(generator, size, size // 2)
    light += grain * (1 - 0.6 * metal)
    # Etched copper stands above the board: its edges catch the light on one side.
    edge = metal - np.roll(metal, generator.choice((-1, 1), 2), (0, 1))
    light += generator.uniform(0, 0.12) * edge
    image *= light[..., None]
    noise = generator.standard_normal((size, size, 3), np.float32)
    blurred = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(generator.uniform(0.2, 0.8))
    )
    image = np.asarray(blurred, np.float32) + noise * generator.uniform(1, 6)
    return np.clip(image, 0, 255).astype(np.uint8)


# ---- Data: boards as a source for training and as files. ----


class BoardSource:
    """Random-access source of boards that are drawn when asked for.

    Item i depends only on the arguments and i, so any number of workers may read it.

    Attributes:
      classes: Names of the labels; the class index is the position.
    """

    def __init__(
        self,
        num_boards: int,
        seed: int,
        size: int = 256,
        defects: Sequence[str] | None = None,
        count: tuple[int, int] = (1, 3),
        scale: float = 1.0,
        merge: bool = True,
        one_kind: bool = False,
        split: str = "train",
    ):
        """Creates a source.

        Args:
          num_boards: Number of boards, at least 1.
          seed: Seed of all boards, at least 0.
          size: Side of a board in pixels.
          defects: Kinds of defects to draw from; None means all of DEFECTS.
          count: Fewest and most defects on a board.
          scale: Magnification; see generate_board.
          merge: Whether all kinds share label 1. Otherwise a kind keeps its label
            1 + DEFECTS.index(kind), whichever kinds are drawn.
          one_kind: Whether a board carries one kind only: board i the kind i modulo their number.
          split: "train" or "val"; the boards of the two are independent of each other.

        Raises:
          ValueError: An argument is out of its range.
        """
        self._defects = DEFECTS if defects is None else tuple(defects)
        _check_arguments(size, self._defects, count, scale)
        if num_boards < 1:
            raise ValueError(f"num_boards: found {num_boards}, expected at least 1")
        if seed < 0:
            raise ValueError(f"seed: found {seed}, expected at least 0")
        if split not in SPLITS:
            raise ValueError(f"split: found {split!r}, expected one of {SPLITS}")
        self._num_boards, self._seed, self._split = num_boards, seed, split
        self._size, self._count, self._scale = size, count, scale
        self._merge, self._one_kind = merge, one_kind
        self.classes = ("board", "defect") if merge else ("board", *DEFECTS)

    def __len__(self) -> int:
        return self._num_boards

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Returns "image" uint8 [size, size, 3], "label" uint8 [size, size] and "name" str."""
        if not 0 <= index < self._num_boards:
            raise IndexError(f"index: found {index}, expected 0 to {self._num_boards - 1}")
        key = (SPLITS.index(self._split), index)
        generator = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))
        defects, prefix = self._defects, "board"
        if self._one_kind:
            defects = (self._defects[index % len(self._defects)],)
            prefix = defects[0]
        board = generate_board(generator, self._size, defects, self._count, self._scale)
        label = (board.labels > 0).astype(np.uint8) if self._merge else board.labels
        return {"image": board.image, "label": label, "name": f"{prefix}_{index:05d}"}


def write_boards(
    directory: str | os.PathLike[str], num_train: int, num_val: int, seed: int, **options
) -> None:
    """Writes boards as PNG files {train,val}/{images,labels}/NAME.png.

    Labels are grey-scale files that hold class indices. The directory appears only once all
    files are written.

    Args:
      directory: Where to write; it must not exist or be empty.
      num_train: Number of boards for training, at least 1.
      num_val: Number of boards for validation, at least 1.
      seed: Seed of all boards.
      **options: size, defects, count, scale, merge and one_kind of BoardSource.

    Raises:
      FileExistsError: The directory holds something.
      ValueError: An argument is out of its range.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"directory: found {directory} in use, expected none or an empty one")
    numbers = dict(zip(SPLITS, (num_train, num_val)))
    sources = {s: BoardSource(numbers[s], seed, split=s, **options) for s in SPLITS}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        whole = pathlib.Path(temporary) / "boards"
        for split, source in sources.items():
            images, labels = whole / split / "images", whole / split / "labels"
            images.mkdir(parents=True)
            labels.mkdir()
            for index in range(len(source)):
                item = source[index]
                Image.fromarray(item["image"]).save(images / f"{item['name']}.png")
                Image.fromarray(item["label"]).save(labels / f"{item['name']}.png")
        os.replace(whole, directory)
