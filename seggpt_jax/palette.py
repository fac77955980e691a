"""Palettes: SegGPT reads and predicts masks as colors, people keep them as class indices.

In: label maps with values 0..N-1 and a palette `[N, 3]` of colors 0..255. Out: colored targets, or labels decoded from
predicted colors. Class 0 is always the background. The network sees `fixed_palette` or `sample_palette`; pictures for
people use `display_palette`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Num, UInt8

from seggpt_jax.typing import AnyArray

IGNORE = 255  # label of pixels whose class is unknown
PALETTE_MODES = ("random", "black_background", "fixed", "corners")
_MAX_COLORS = 256

# Black, then eight colors for the classes that occur most. Class 1 is Okabe and Ito's vermilion. The other seven were
# found by a search over a 16 x 16 x 16 lattice of colors of medium luminance, for the largest least CIELAB distance
# among the eight, both for normal vision and as people without red, green or blue cones see them (Machado et al. 2009).
_DISPLAY_COLORS = (
  *((0, 0, 0), (213, 94, 0), (51, 17, 255), (0, 221, 187), (255, 153, 255), (136, 51, 68), (0, 119, 153)),
  *((204, 187, 119), (255, 0, 255)),
)


def _color_lattice() -> Float[np.ndarray, "729 3"]:
  """Returns 9 x 9 x 9 evenly spaced colors."""
  levels = np.linspace(0, 255, 9).round()
  return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)


def _extend_palette(
  first: Iterable[tuple[int, int, int]], candidates: Float[np.ndarray, "m 3"]
) -> UInt8[np.ndarray, "256 3"]:
  """Extends a list of colors to 256: the next color is always the candidate farthest from all colors before it."""
  chosen = [np.asarray(color, np.float64) for color in first]
  nearest = np.min([np.linalg.norm(candidates - color, axis=1) for color in chosen], axis=0)
  while len(chosen) < _MAX_COLORS:
    chosen.append(candidates[np.argmax(nearest)])
    nearest = np.minimum(nearest, np.linalg.norm(candidates - chosen[-1], axis=1))
  return np.array(chosen).astype(np.uint8)


@functools.cache
def _fixed_colors() -> UInt8[np.ndarray, "256 3"]:
  # A blend of two corners of the color cube is never nearest to a third corner, so the first eight classes have no
  # seams of a third class between them. No ninth color has that property.
  corners = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 0), (255, 0, 255)]
  return _extend_palette([*corners, (0, 255, 255)], _color_lattice())


@functools.cache
def _display_colors() -> UInt8[np.ndarray, "256 3"]:
  lattice = _color_lattice()
  luminance = relative_luminance(lattice)
  return _extend_palette(_DISPLAY_COLORS, lattice[(luminance > 0.03) & (luminance < 0.64)])


def relative_luminance(colors: Num[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b"]:
  """Returns the relative luminance of sRGB colors as WCAG 2 defines it: 0 for black, 1 for white."""
  values = np.asarray(colors) / 255.0
  linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
  return linear @ np.array([0.2126, 0.7152, 0.0722])


def fixed_palette(num_classes: int) -> UInt8[np.ndarray, "n 3"]:
  """Returns the palette of inference and of mode "fixed": black, white, red, blue, and so on.

  Args:
    num_classes: number of classes, background included, up to 256. A smaller palette is the start of a larger one.
  """
  return _fixed_colors()[:num_classes].copy()


def corner_palette(num_classes: int) -> UInt8[np.ndarray, "n 3"]:
  """Returns the palette in which each channel is a mask, for networks that answer each channel alone (`Matcher`).

  One class is white. Up to three are pure red, green and blue, so that no blend of two looks like a third; up to seven
  are the corners of the color cube.

  Args:
    num_classes: number of classes, background included, up to 8.

  Raises:
    ValueError: there are more classes.
  """
  if num_classes > 8:
    raise ValueError(f"num_classes: found {num_classes}, expected at most 8 with one mask a channel")
  corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.uint8)
  return 255 * (corners[[0, 4]] if num_classes == 2 else corners[:num_classes])


def display_palette(num_classes: int) -> UInt8[np.ndarray, "n 3"]:
  """Returns colors for pictures that people look at: a black background, then colors that stand out on any image.

  No class is nearly black or nearly white. The first eight classes are also distinct for color-blind people. The
  network never sees these colors.

  Args:
    num_classes: number of classes, background included, up to 256. A smaller palette is the start of a larger one.
  """
  return _display_colors()[:num_classes].copy()


def min_distance(num_classes: int) -> float:
  """Returns the least Euclidean distance between two colors of `sample_palette`.

  N points can be placed about 255 / N^(1/3) apart in the color cube. Rejection sampling reaches 0.6 of that within a
  few dozen draws, which is still far above the noise in the colors of a trained network.
  """
  return 0.6 * 255.0 / num_classes ** (1 / 3)


def sample_palette(generator: np.random.Generator, num_classes: int, mode: str = "random") -> UInt8[np.ndarray, "n 3"]:
  """Draws the colors of one training pair.

  Random colors for all classes keep the network reading the prompt. With a fixed black and white pair, long
  fine-tunings of the released weights were found to collapse to all black.

  Args:
    generator: source of randomness.
    num_classes: number of classes N, background included.
    mode: "random" (random colors for all classes), "black_background" (black for class 0, random colors for the
      others), "fixed" (`fixed_palette`) or "corners" (`corner_palette`, its classes in random order).

  Returns:
    N colors, each two at least `min_distance(N)` apart unless the mode is "fixed" or "corners".

  Raises:
    ValueError: the mode is unknown.
  """
  if mode == "fixed":
    return fixed_palette(num_classes)
  if mode == "corners":
    background, *others = corner_palette(num_classes)
    return np.stack([background, *generator.permutation(others)])
  if mode not in PALETTE_MODES:
    raise ValueError(f"palette: found {mode!r}, expected one of {', '.join(PALETTE_MODES)}")
  least = min_distance(num_classes)
  colors = [np.zeros(3)] if mode == "black_background" else []
  while len(colors) < num_classes:
    # The first colors can leave no room for the last ones; in that case all colors are drawn again.
    candidates = generator.integers(0, 256, (32, 3)).astype(np.float64)
    distances = [np.linalg.norm(candidates - c[None], axis=1) for c in colors]
    nearest = np.min(distances, axis=0) if colors else np.full(32, np.inf)
    allowed = np.flatnonzero(nearest >= least)
    if allowed.size:
      colors.append(candidates[allowed[0]])
    else:
      colors = colors[:1] if mode == "black_background" else []
  return np.array(colors).astype(np.uint8)


def color_labels(labels: Integer[AnyArray, "b h w"], palettes: Num[AnyArray, "b n 3"]) -> Float[Array, "b h w 3"]:
  """Colors each label map with its own palette.

  Returns:
    float32 colors, 0..255.
  """
  batch = labels.shape[0]
  index = jnp.where(labels == IGNORE, 0, labels.astype(jnp.int32)).reshape(batch, -1, 1)
  colors = jnp.take_along_axis(palettes.astype(jnp.float32), index, axis=1)
  return colors.reshape(*labels.shape, 3)


def decode(
  colors: Num[AnyArray, "b h w 3"],
  palette: Num[AnyArray, "b n 3"],
  sensitivity: Float[AnyArray, "b n"] | None = None,
  shown: Bool[AnyArray, "b n"] | None = None,
) -> Integer[Array, "b h w"]:
  """Returns the index of the palette color nearest to each pixel in Euclidean distance, ties to the lower index.

  Examples:
    >>> colors = np.array([[[[250, 10, 5], [3, 2, 1]]]])  # one image of 1 x 2 pixels, nearly red and nearly black
    >>> seggpt_jax.palette.decode(colors, seggpt_jax.palette.fixed_palette(3)[None]).tolist()
    [[[2, 0]]]

  One pass over the palette keeps a running minimum. No array of size `[B, H, W, N]` exists, and the compiler fuses
  everything into one loop over the pixels.

  Args:
    colors: predicted colors, 0..255.
    palette: N colors for each sample, 0..255.
    sensitivity: divisors of the distances: with 2, a color may be twice as far away as another. None for 1.
    shown: classes that may be chosen in addition to class 0, as the network has been asked for them; None for all.

  Returns:
    int32 class indices 0..N-1.
  """

  def squared(index: int) -> Float[AnyArray, "b h w"]:
    distance = _squared_distance(colors, palette, index)
    if sensitivity is not None:
      distance = distance / sensitivity[:, None, None, index] ** 2
    return distance if shown is None or not index else jnp.where(shown[:, None, None, index], distance, jnp.inf)

  nearest, least = jnp.zeros(colors.shape[:-1], jnp.int32), squared(0)
  for index in range(1, palette.shape[1]):
    candidate = squared(index)
    nearest = jnp.where(candidate < least, index, nearest)
    least = jnp.minimum(candidate, least)
  return nearest


def shown_classes(labels: Integer[AnyArray, "b h w"], num_classes: int, group: int = 1) -> Bool[Array, "b n"]:
  """Returns which classes the labels of each canvas show, or those of the canvases of one query together.

  Args:
    labels: class indices; other values, such as IGNORE, are no class.
    num_classes: N.
    group: consecutive canvases that belong together.
  """
  shown = jnp.any(jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool), axis=(1, 2))
  return jnp.repeat(jnp.any(shown.reshape(-1, group, num_classes), axis=1), group, axis=0)


def nearest_distances(colors: Num[AnyArray, "b h w 3"], palette: Num[AnyArray, "b n 3"]) -> Float[Array, "b h w 2"]:
  """Returns each pixel's Euclidean distances to the nearest and to the second nearest palette color.

  Returns:
    float32 distances, nearest first; the two are equal where two palette colors are equally near.
  """
  least, second = _squared_distance(colors, palette, 0), jnp.full(colors.shape[:-1], jnp.inf)
  for index in range(1, palette.shape[1]):
    candidate = _squared_distance(colors, palette, index)
    second = jnp.minimum(second, jnp.maximum(least, candidate))
    least = jnp.minimum(least, candidate)
  return jnp.sqrt(jnp.stack([least, second], axis=-1))


def _squared_distance(colors, palette, index: int) -> Float[AnyArray, "b h w"]:
  """Returns the squared distance of every pixel from one color of its palette, float32."""
  # Squared differences are exact for integers, so ties are ties. The expansion |c|^2 - 2cp is not.
  colors, palette = colors.astype(jnp.float32), palette.astype(jnp.float32)
  red, green, blue = (colors[..., c] - palette[:, None, None, index, c] for c in range(3))
  return red * red + green * green + blue * blue
