"""Colors and labels: SegGPT reads and paints masks as colors, people keep them as class indices.

In: label maps with values 0..N-1 and a palette `[N, 3]` of colors 0..255. Out: colored targets, or labels decoded
from the colors a network painted. Class 0 is the background everywhere.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num, UInt8

from seggpt_jax.typing import AnyArray

IGNORE = 255  # the label of pixels whose class is not known; palettes have at most 255 colors

PALETTE_MODES = ("random", "black_background", "fixed")


@functools.cache
def _spread_colors() -> UInt8[np.ndarray, "256 3"]:
  """The corners of the color cube, then always the color of a 9 x 9 x 9 lattice that is farthest from all before.

  A blend of two corners is never nearest to a third: soft edges between two classes decode to one of the two. From the
  ninth color on that cannot be had.
  """
  levels = np.linspace(0, 255, 9).round()
  lattice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
  # Black and white first, then red, blue, green, yellow, magenta, cyan.
  chosen = [255.0 * np.array(c) for c in np.array([0, 7, 4, 1, 2, 6, 5, 3])[:, None] >> np.array([2, 1, 0]) & 1]
  nearest = np.min([np.linalg.norm(lattice - color, axis=1) for color in chosen], axis=0)
  while len(chosen) < 256:
    chosen.append(lattice[np.argmax(nearest)])
    nearest = np.minimum(nearest, np.linalg.norm(lattice - chosen[-1], axis=1))
  return np.array(chosen).astype(np.uint8)


def fixed_palette(num_classes: int) -> UInt8[np.ndarray, "n 3"]:
  """The palette of inference and of mode "fixed": black, white for the first class, red for the next.

  A palette of fewer classes is the beginning of one of more; 256 at most.
  """
  return _spread_colors()[:num_classes].copy()


def display_palette(num_classes: int) -> UInt8[np.ndarray, "n 3"]:
  """Returns colors for pictures that people look at: black background, then colors that are visible on any image.

  The network never sees these colors; it is shown `fixed_palette` or `sample_palette`.

  Args:
    num_classes: number of classes, background included, 1 to 256.
  """
  # Okabe and Ito, "Color Universal Design" (2008), ordered so that the first few differ most.
  first = [(0, 0, 0), (230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233)]
  rest = [color for color in _spread_colors()[2:].tolist() if 90 < sum(color) < 675]
  colors = np.array(first + rest, np.uint8)
  return np.resize(colors, (max(num_classes, len(colors)), 3))[:num_classes].copy()


def min_distance(num_classes: int) -> float:
  """The least Euclidean distance between two colors that `sample_palette` asks for.

  N points can be spread over the color cube about 255 / N^(1/3) apart; 0.6 of that is reached by rejection
  sampling within a few dozen draws and is still far above the noise of a trained network's colors.
  """
  return 0.6 * 255.0 / num_classes ** (1 / 3)


def sample_palette(generator: np.random.Generator, num_classes: int, mode: str = "random") -> UInt8[np.ndarray, "n 3"]:
  """Draws the colors of one training pair.

  Random colors for all classes keep the network reading the prompt; a fixed black and white pair was found to
  collapse to all black in long fine-tunings of the released weights.

  Args:
    generator: source of randomness.
    num_classes: N, background included.
    mode: "random" (all classes), "black_background" (black for class 0, random for the others) or "fixed".

  Returns:
    N colors, any two at least `min_distance(N)` apart unless the mode is "fixed".

  Raises:
    ValueError: unknown mode.
  """
  if mode == "fixed":
    return fixed_palette(num_classes)
  if mode not in PALETTE_MODES:
    raise ValueError(f"palette: found {mode!r}, expected one of {', '.join(PALETTE_MODES)}")
  least = min_distance(num_classes)
  colors = [np.zeros(3)] if mode == "black_background" else []
  while len(colors) < num_classes:
    # Early colors can leave no room for the last ones: then all are drawn anew.
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
  """Paints label maps, each with its own palette: the colored target, 0..255 as float32. IGNORE looks like class 0."""
  batch = labels.shape[0]
  index = jnp.where(labels == IGNORE, 0, labels.astype(jnp.int32)).reshape(batch, -1, 1)
  painted = jnp.take_along_axis(palettes.astype(jnp.float32), index, axis=1)
  return painted.reshape(*labels.shape, 3)


def decode(colors: Num[AnyArray, "b h w 3"], palette: Num[AnyArray, "b n 3"]) -> Integer[Array, "b h w"]:
  """The index of the nearest palette color in Euclidean distance, ties to the lower index.

  One pass over the palette with a running minimum: nothing of size `[B, H, W, N]` is ever held, and the compiler
  fuses all of it into one loop over the pixels.

  Args:
    colors: painted colors, 0..255.
    palette: N colors for each sample, 0..255.

  Returns:
    int32 class indices 0..N-1.
  """
  nearest, least = jnp.zeros(colors.shape[:-1], jnp.int32), _squared_distance(colors, palette, 0)
  for index in range(1, palette.shape[1]):
    candidate = _squared_distance(colors, palette, index)
    nearest = jnp.where(candidate < least, index, nearest)
    least = jnp.minimum(candidate, least)
  return nearest


def nearest_distances(colors: Num[AnyArray, "b h w 3"], palette: Num[AnyArray, "b n 3"]) -> Float[Array, "b h w 2"]:
  """The Euclidean distances to the nearest palette color and to the second nearest; equal where two are as near.

  Args:
    colors: painted colors, 0..255.
    palette: N >= 2 colors for each sample, 0..255.
  """
  least, second = _squared_distance(colors, palette, 0), jnp.full(colors.shape[:-1], jnp.inf)
  for index in range(1, palette.shape[1]):
    candidate = _squared_distance(colors, palette, index)
    second = jnp.minimum(second, jnp.maximum(least, candidate))
    least = jnp.minimum(least, candidate)
  return jnp.sqrt(jnp.stack([least, second], axis=-1))


def _squared_distance(colors, palette, index: int) -> Float[AnyArray, "b h w"]:
  """Of every pixel from one color of its palette, float32."""
  # Squared differences, not |c|^2 - 2cp: exact for whole numbers, so that ties are ties.
  colors, palette = colors.astype(jnp.float32), palette.astype(jnp.float32)
  red, green, blue = (colors[..., c] - palette[:, None, None, index, c] for c in range(3))
  return red * red + green * green + blue * blue
