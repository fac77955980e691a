"""Pictures on their way through the network, window by window, whichever pictures the windows are of.

In: pictures with their prompts. Out: the same pictures, painted. Windows of one picture or of many go through the
network together, in batches of 1, 2, 4, ...: it is compiled once for each of these and each number of prompts.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Num, UInt8

from seggpt_jax import canvas
from seggpt_jax.compilation import jit
from seggpt_jax.inference.windows import Window, blend, paste
from seggpt_jax.model import parameters
from seggpt_jax.model.ensemble import predict_queries
from seggpt_jax.model.seggpt import SegType
from seggpt_jax.typing import AnyArray

_IN_FLIGHT = 2  # batches on the device: one at work, one behind it


@jit(static_argnames=("graph", "seg_type"))
def paint(
  graph: nnx.GraphDef,
  params: parameters.Params,
  queries: UInt8[AnyArray, "q h w 3"],
  prompts: Num[AnyArray, "q k h w 3"],
  targets: Num[AnyArray, "q k h w 3"],
  painted: UInt8[AnyArray, "q h w 3"],
  patch_mask: Bool[AnyArray, "q rows cols"],
  seg_type: SegType,
) -> UInt8[Array, "q h w 3"]:
  """Runs the network on every query with the ensemble of its prompts.

  Args:
    graph: structure of the model.
    params: its parameters.
    queries: Q images of half a canvas.
    prompts: K images for each, likewise, 0..255; or normalized already, if they are not integers.
    targets: their colored masks, likewise.
    painted: colors of the queries that are known already, where they are not masked.
    patch_mask: True for patches of the queries that are to be painted.
    seg_type: "semantic" or "instance".

  Returns:
    The colors of the queries, 0..255.
  """
  model = parameters.merge(graph, params)
  config = model.config

  def normalized(pixels: Array) -> Array:
    is_learned = jnp.issubdtype(pixels.dtype, jnp.floating)
    return pixels if is_learned else canvas.normalize(pixels, config.image_mean, config.image_std)

  arrays = (normalized(pixels) for pixels in (queries, prompts, targets, painted))
  colors = predict_queries(model, *arrays, patch_mask, seg_type)
  return jnp.round(canvas.unnormalize(colors, config.image_mean, config.image_std)).astype(jnp.uint8)


class Picture:
  """A picture that is painted in rounds: the windows of a round see what the rounds before have painted.

  Args:
    pixels: the picture, `[H, W, 3]` uint8.
    prompts: K pictures of a tile's size, `[K, h, w, 3]`, uint8 or normalized.
    targets: their colored masks, likewise.
    rounds: windows that together cover the picture, and in later rounds those that are painted over them.
    patch_size: side of a patch in pixels.

  Attributes:
    prompts: as given.
    targets: as given.
    rounds_left: those that are not painted yet.
    colors: of the picture after the last round that is done, `[H, W, 3]` uint8.
    first_colors: of the picture after the first round.
  """

  def __init__(
    self,
    pixels: UInt8[np.ndarray, "h w 3"],
    prompts: Num[np.ndarray, "k th tw 3"],
    targets: Num[np.ndarray, "k th tw 3"],
    rounds: Sequence[Sequence[Window]],
    patch_size: int,
  ):
    self._pixels, self._patch_size = pixels, patch_size
    self.prompts, self.targets = prompts, targets
    self.rounds_left = [list(windows) for windows in rounds]
    self._tiles: dict[int, np.ndarray] = {}
    self.colors = np.zeros_like(pixels)
    self.first_colors: np.ndarray | None = None

  def is_painted(self) -> bool:
    return not self.rounds_left

  def windows(self) -> Sequence[Window]:
    """Those of the round that is being painted."""
    return self.rounds_left[0]

  def view(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the network is shown of a window: its pixels, its colors so far, and the patches to paint."""
    window, (height, width) = self.windows()[index], self.prompts.shape[1:3]
    place = np.s_[window.top : window.top + height, window.left : window.left + width]
    return self._pixels[place], self.colors[place], window.mask

  def put(self, index: int, tile: UInt8[np.ndarray, "th tw 3"]) -> bool:
    """Takes what was painted in a window; whether that ends the round."""
    self._tiles[index] = tile
    if len(self._tiles) < len(self.windows()):
      return False
    windows = self.rounds_left.pop(0)
    tiles = [self._tiles[index] for index in range(len(windows))]
    self._tiles = {}
    if self.first_colors is None:
      self.colors = blend(np.stack(tiles), windows, self.colors.shape[:2])
      self.first_colors = self.colors
    else:
      self.colors = self.colors.copy()
      for window, tile in zip(windows, tiles, strict=True):
        paste(self.colors, tile, window, self._patch_size)
    return True


class Painter:
  """Sends windows of pictures through the network in batches.

  Args:
    run: `paint`, but for queries, prompts, targets, painted colors and patch masks.
    max_canvases: how many go through at once; the prompts of one window always go together.
  """

  def __init__(self, run: Callable[..., Array], max_canvases: int):
    self._run, self._max_canvases = run, max_canvases
    # By number and kind of prompts, which have to be the same in a batch.
    self._waiting: dict[tuple[int, np.dtype], list[tuple[Picture, int]]] = {}
    self._running: collections.deque[tuple[list[tuple[Picture, int]], Array]] = collections.deque()

  def add(self, picture: Picture) -> None:
    """Takes the windows of a picture's next round; those that fill a batch go at once."""
    kind = len(picture.prompts), picture.prompts.dtype
    waiting = self._waiting.setdefault(kind, [])
    waiting += [(picture, index) for index in range(len(picture.windows()))]
    most = _power_of_two(max(self._max_canvases // kind[0], 1))
    while len(waiting) >= most:
      self._send(waiting, most)

  def flush(self) -> None:
    """Sends what still waits for a full batch."""
    for waiting in self._waiting.values():
      while waiting:
        self._send(waiting, _power_of_two(len(waiting)))

  def finish(self) -> None:
    """Paints all that was taken to its end."""
    while self._running or any(self._waiting.values()):
      self.flush()
      self._take(leave=0)

  def _take(self, leave: int) -> None:
    """Takes back what was painted, but for the last so many batches; a next round joins those that wait."""
    while len(self._running) > leave:
      views, painted = self._running.popleft()
      for (picture, index), tile in zip(views, np.asarray(painted), strict=True):
        if picture.put(index, tile) and not picture.is_painted():
          self.add(picture)

  def _send(self, waiting: list[tuple[Picture, int]], count: int) -> None:
    views = waiting[:count]
    del waiting[:count]
    queries, painted, masks = (
      np.stack(arrays) for arrays in zip(*(picture.view(index) for picture, index in views), strict=True)
    )
    prompts, targets = (np.stack([getattr(picture, name) for picture, _ in views]) for name in ("prompts", "targets"))
    self._running.append((views, self._run(queries, prompts, targets, painted, masks)))
    self._take(leave=_IN_FLIGHT)


def _power_of_two(count: int) -> int:
  """The largest that is no larger."""
  return 1 << (count.bit_length() - 1)
