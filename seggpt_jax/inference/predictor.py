"""From an image and a few labelled prompts to the image's label map.

In: a uint8 image of any size and prompts, each a uint8 image with its integer label map. Out: a `Prediction` at the
image's own size. Sizes vary from image to image, so only canvases enter compiled code. Tiles of one image or of many go
through the network together, in batches of 1, 2, 4, ... tiles: it is compiled once for each of these and each number of
prompts.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Integer, Num, UInt8

from seggpt_jax import canvas
from seggpt_jax import palette as palette_lib
from seggpt_jax.errors import InputError
from seggpt_jax.inference import tiling
from seggpt_jax.model import weights
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapted_model
from seggpt_jax.model.adapters import LearntPrompt
from seggpt_jax.model.seggpt import SegGPT, SegType
from seggpt_jax.typing import AnyArray

Prompt = tuple[np.ndarray, np.ndarray]

_MAX_LABEL = 65_535  # what a 16-bit PNG holds
_LEAST_BLOCK, _MOST_BLOCK = 2**12, 2**18  # pixels decoded at a time
# A CPU is no faster with larger batches, and slower where they no longer fit into its caches.
_MAX_CANVASES = {"cpu": 4}
_IN_FLIGHT = 2  # batches on the device: one at work, one behind it
_MOST_WAITING = 64  # images whose tiles wait for others with as many prompts


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
  """What the network says about one image; everything has the image's own size.

  Attributes:
    labels: class indices `[H, W]`, uint8, or uint16 when there are more than 256 classes.
    colours: the colours the network painted, uint8 `[H, W, 3]`.
    palette: the colour of each class, uint8 `[N, 3]`.
    classes: the classes that could be found, ascending: the background and those of the prompts.
  """

  labels: np.ndarray
  colours: np.ndarray
  palette: np.ndarray
  classes: tuple[int, ...]

  def shares(self) -> dict[int, float]:
    """The share of the image's pixels, 0..1, of each class that was found."""
    classes, counts = np.unique(self.labels, return_counts=True)
    return dict(zip(classes.tolist(), (counts / self.labels.size).tolist(), strict=True))

  def __repr__(self) -> str:
    height, width = self.labels.shape
    shares = ", ".join(f"class {index}: {share:.1%}" for index, share in self.shares().items())
    return f"Prediction({height} x {width}, {shares})"


class Predictor:
  """Segments images by example.

  Args:
    model: the network; its parameters stay where they lie.
    max_canvases: how many canvases go through the network at once. The prompts of one tile always go together, since
      the network averages over them, however many they are. 16 by default, on CPUs 4.
    learnt: a learnt prompt, for images that come without prompts.
  """

  def __init__(self, model: SegGPT, *, max_canvases: int | None = None, learnt: StoredAdapter | None = None):
    self.config = model.config
    self.max_canvases = max_canvases or _MAX_CANVASES.get(jax.default_backend(), 16)
    self.learnt = learnt
    self._graph, self._params = weights.split(model)

  @classmethod
  def from_checkpoint(
    cls,
    directory: str | os.PathLike,
    *,
    adapter: str | os.PathLike | StoredAdapter | None = None,
    dtype=None,
    max_canvases: int | None = None,
  ) -> Predictor:
    """Loads the weights of convert_torch_weights.py or train.py.

    Args:
      directory: a weights directory, or a training run (its best weights, else its newest).
      adapter: a training run that learnt a LoRA or a prompt for these weights, or what `load_adapter` read of it.
      dtype: compute dtype; by default float32 on CPUs and bfloat16 on accelerators.
      max_canvases: see the class.

    Raises:
      InputError: no weights there, weights that do not fit their configuration, or others than the adapter's.
    """
    if dtype is None:
      dtype = weights.default_dtype()
    if adapter is not None:
      model, stored = load_adapted_model(directory, adapter, dtype=dtype)
      learnt = stored if isinstance(stored.adapter, LearntPrompt) else None
      return cls(model, max_canvases=max_canvases, learnt=learnt)
    return cls(weights.load_model(directory, dtype=dtype), max_canvases=max_canvases)

  @property
  def tile_size(self) -> tuple[int, int]:
    """Height and width in pixels of what the network sees at once: half a canvas."""
    height, width = self.config.canvas_size
    return height // 2, width

  def predict(
    self,
    image: np.ndarray,
    prompts: Sequence[Prompt] = (),
    *,
    palette: np.ndarray | None = None,
    split: int | Sequence[int] = 1,
    seg_type: SegType = "semantic",
  ) -> Prediction:
    """Segments one image; `predict_many` with a single query.

    The painted colours are resized bilinearly to the image's size and decoded there, which gives smooth outlines where
    resizing labels would give steps. Only the background and the classes of the prompts are decoded to: the network
    has never seen the colours of the others.

    Args:
      image: the query, uint8 `[H, W, 3]`.
      prompts: pairs of a uint8 image `[h, w, 3]` and its integer label map `[h, w]`, each of any size; all are
        ensembled, best first. None are needed by a predictor with a learnt prompt, whose place they take if given.
      palette: the colour of each class `[N, 3]`, 0..255; by default `palette.fixed_palette`, for up to 256 classes. A
        learnt prompt has the colours that it was trained with, and no others.
      split: cuts the query and every prompt into `split x split` tiles. Each tile of each prompt is a prompt for each
        tile of the query: small things come out larger, at `split**4` times the work. Of several splits the painted
        colours are averaged before they are decoded: the whole image for what is large, tiles for what is small.
      seg_type: "semantic" or "instance".

    Returns:
      Labels and colours at the query's size.

    Raises:
      InputError: an argument is not as described above.
    """
    (prediction,) = self.predict_many([(image, prompts)], palette=palette, split=split, seg_type=seg_type)
    return prediction

  def predict_many(
    self,
    queries: Iterable[tuple[np.ndarray, Sequence[Prompt]]],
    *,
    palette: np.ndarray | None = None,
    split: int | Sequence[int] = 1,
    seg_type: SegType = "semantic",
  ) -> Iterator[Prediction]:
    """Segments many images, a batch of tiles at a time, whichever images they are of.

    The device works while the next queries are read and the last ones are decoded, so `queries` may as well be a
    generator that reads files. In a batch are tiles with the same number of prompts.

    Args:
      queries: pairs of an image and its prompts, as of `predict`.
      palette: see `predict`.
      split: likewise.
      seg_type: likewise.

    Yields:
      The prediction of each query, in their order, a few batches behind what was read.

    Raises:
      InputError: an argument is not as described above.
    """
    splits = (split,) if isinstance(split, int) else tuple(split)
    if not splits or len(set(splits)) < len(splits) or not all(isinstance(n, int) and n >= 1 for n in splits):
      raise InputError(f"split: found {split}, expected a whole number of at least 1, or several that differ")
    if seg_type not in ("semantic", "instance"):
      raise InputError(f"seg_type: found {seg_type!r}, expected 'semantic' or 'instance'")
    palette = None if palette is None else np.asarray(palette)
    painter = _Painter(functools.partial(paint, self._graph, self._params, seg_type=seg_type), self.max_canvases)
    jobs: collections.deque[_Job] = collections.deque()
    for image, prompts in queries:
      job = self._prepare(np.asarray(image), prompts, palette, splits)
      jobs.append(job)
      for part in job.parts:
        painter.add(part)
      if len(jobs) > _MOST_WAITING:
        painter.flush()
      while jobs and jobs[0].is_painted():
        yield jobs.popleft().finish()
    painter.flush()
    painter.wait()
    for job in jobs:
      yield job.finish()

  def _prepare(
    self, image: np.ndarray, prompts: Sequence[Prompt], palette: np.ndarray | None, splits: tuple[int, ...]
  ) -> _Job:
    """Checks a query and cuts it and its prompts into tiles."""
    prompts = [tuple(np.asarray(array) for array in prompt) for prompt in prompts]
    _check_image("image", image)
    queries = [tiling.image_tiles(image, split, self.tile_size) for split in splits]
    if not prompts and self.learnt is not None:
      if palette is not None:
        raise InputError("palette: found one without prompts, expected none: a learnt prompt has colours of its own")
      prompt, target = (np.asarray(self.learnt.params[f"prompt.{part}"])[None] for part in ("image", "target"))
      classes = np.arange(self.learnt.num_classes)
      parts = [_Part(tiles, prompt, target) for tiles in queries]
      return _Job(image.shape[:2], parts, palette_lib.fixed_palette(len(classes)), classes)
    check_prompts(prompts)
    palette = _check_palette(palette, 1 + max(int(labels.max()) for _, labels in prompts))
    parts, classes = [], np.zeros(1, np.int32)
    for split, tiles in zip(splits, queries, strict=True):
      images = np.concatenate([tiling.image_tiles(pixels, split, self.tile_size) for pixels, _ in prompts])
      labels = np.concatenate(
        [tiling.label_tiles(labels.astype(np.int32), split, self.tile_size) for _, labels in prompts]
      )
      parts.append(_Part(tiles, images, palette[labels]))
      classes = np.union1d(classes, labels)
    return _Job(image.shape[:2], parts, palette, classes)


@dataclasses.dataclass(eq=False)
class _Part:
  """An image on its way through the network, cut into tiles in one way.

  Attributes:
    queries: its tiles, `[tiles, h, w, 3]`.
    prompts: the prompts of each of them, `[k, h, w, 3]`.
    targets: their coloured masks.
    painted: what the network made of the tiles so far, by their place.
  """

  queries: np.ndarray
  prompts: np.ndarray
  targets: np.ndarray
  painted: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

  def joined(self) -> np.ndarray:
    return tiling.join(np.stack([self.painted[index] for index in range(len(self.queries))]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
  """What becomes a prediction.

  Attributes:
    size: height and width of the image.
    parts: one for each split.
    palette: the colour of each class.
    classes: those that are decoded to.
  """

  size: tuple[int, int]
  parts: list[_Part]
  palette: np.ndarray
  classes: np.ndarray

  def is_painted(self) -> bool:
    return all(len(part.painted) == len(part.queries) for part in self.parts)

  def finish(self) -> Prediction:
    """Joins and decodes what was painted."""
    colours = [tiling.resize_colours(part.joined(), self.size) for part in self.parts]
    fused = colours[0] if len(colours) == 1 else np.round(np.mean(colours, axis=0)).astype(np.uint8)
    return _decoded(fused, self.palette, self.classes)


class _Painter:
  """Sends tiles through the network in batches.

  Args:
    run: `paint`, but for queries, prompts and targets.
    max_canvases: how many go through at once.
  """

  def __init__(self, run: Callable[[Array, Array, Array], Array], max_canvases: int):
    self._run, self._max_canvases = run, max_canvases
    # By number and kind of prompts, which have to be the same in a batch.
    self._waiting: dict[tuple[int, np.dtype], list[tuple[_Part, int]]] = {}
    self._running: collections.deque[tuple[list[tuple[_Part, int]], Array]] = collections.deque()

  def add(self, part: _Part) -> None:
    """Takes the tiles of an image; those that fill a batch go at once."""
    kind = len(part.prompts), part.prompts.dtype
    waiting = self._waiting.setdefault(kind, [])
    waiting += [(part, index) for index in range(len(part.queries))]
    most = _power_of_two(max(self._max_canvases // kind[0], 1))
    while len(waiting) >= most:
      self._send(waiting, most)

  def flush(self) -> None:
    """Sends what still waits for a full batch."""
    for waiting in self._waiting.values():
      while waiting:
        self._send(waiting, _power_of_two(len(waiting)))

  def wait(self, leave: int = 0) -> None:
    """Takes back what was painted, but for the last so many batches."""
    while len(self._running) > leave:
      tiles, painted = self._running.popleft()
      for (part, index), colours in zip(tiles, np.asarray(painted), strict=True):
        part.painted[index] = colours

  def _send(self, waiting: list[tuple[_Part, int]], count: int) -> None:
    tiles = waiting[:count]
    del waiting[:count]
    queries = np.stack([part.queries[index] for part, index in tiles])
    prompts, targets = np.stack([part.prompts for part, _ in tiles]), np.stack([part.targets for part, _ in tiles])
    self._running.append((tiles, self._run(queries, prompts, targets)))
    self.wait(leave=_IN_FLIGHT)


def _power_of_two(count: int) -> int:
  """The largest that is no larger."""
  return 1 << (count.bit_length() - 1)


@functools.partial(jax.jit, static_argnames=("graph", "seg_type"))
def paint(
  graph: nnx.GraphDef,
  params: weights.Params,
  queries: UInt8[AnyArray, "q h w 3"],
  prompts: Num[AnyArray, "q k h w 3"],
  targets: Num[AnyArray, "q k h w 3"],
  seg_type: SegType,
) -> UInt8[Array, "q h w 3"]:
  """Runs the network on every query with the ensemble of its prompts.

  Args:
    graph: structure of the model.
    params: its parameters.
    queries: Q images of half a canvas.
    prompts: K images for each, likewise, 0..255; or normalised already, if they are not integers.
    targets: their coloured masks, likewise.
    seg_type: "semantic" or "instance".

  Returns:
    The colours of the queries, 0..255.
  """
  model = weights.merge(graph, params)
  config, (q, k) = model.config, prompts.shape[:2]

  def normalised(pixels: Array) -> Array:
    is_learnt = jnp.issubdtype(pixels.dtype, jnp.floating)
    return pixels if is_learnt else canvas.normalise(pixels, config.image_mean, config.image_std)

  prompts, targets = (normalised(pixels.reshape(q * k, *pixels.shape[2:])) for pixels in (prompts, targets))
  images = jnp.concatenate([prompts, jnp.repeat(normalised(queries), k, axis=0)], axis=1)
  targets = jnp.concatenate([targets, jnp.zeros_like(targets)], axis=1)
  patch_mask = jnp.broadcast_to(canvas.lower_half_mask(config.grid)[None], (q * k, *config.grid))
  colours = canvas.query_half(model(images, targets, patch_mask, seg_type=seg_type, prompts_per_query=k))
  # The ensemble makes the query halves of the K canvases alike, but for the one row of pixels where the decoder's
  # convolution sees the prompt; as the original does, take that of the first, best prompt.
  colours = colours.reshape(q, k, *colours.shape[1:])[:, 0]
  return jnp.round(canvas.unnormalise(colours, config.image_mean, config.image_std)).astype(jnp.uint8)


_decode_block = jax.jit(palette_lib.decode)


def decode(colours: UInt8[np.ndarray, "h w 3"], palette: Num[np.ndarray, "n 3"]) -> Integer[np.ndarray, "h w"]:
  """`palette.decode` for one image of any size without compiling for that size.

  Args:
    colours: painted colours, 0..255.
    palette: N colours, 0..255.

  Returns:
    int32 class indices 0..N-1.
  """
  # As few shapes as there are powers of two: the first colour repeated is never the answer, ties go to the lower index.
  rows = 1 << (len(palette) - 1).bit_length()
  filled = np.concatenate([palette, np.repeat(palette[:1], rows - len(palette), axis=0)])[None].astype(np.float32)
  height, width, _ = colours.shape
  size = min(max(1 << (height * width - 1).bit_length(), _LEAST_BLOCK), _MOST_BLOCK)
  blocks = tiling.pixel_blocks(colours.reshape(-1, 3), size, fill=0)
  labels = [_decode_block(block[None, None], filled) for block in blocks]
  return np.concatenate([np.ravel(block) for block in labels])[: height * width].reshape(height, width)


def _decoded(colours: np.ndarray, palette: np.ndarray, classes: np.ndarray) -> Prediction:
  """The nearest of the colours of those classes, for each pixel."""
  labels = classes[decode(colours, palette[classes])].astype(np.uint8 if len(palette) <= 256 else np.uint16)
  return Prediction(labels, colours, palette, tuple(classes.tolist()))


def _check_image(name: str, image: np.ndarray) -> None:
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
    raise InputError(f"{name}: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")


def check_prompts(prompts: Sequence[Prompt]) -> None:
  """Raises an InputError unless there are prompts, each an image with a label map of its size."""
  if not len(prompts):
    raise InputError("prompts: found none, expected at least one pair of image and label map")
  for index, prompt in enumerate(prompts):
    if len(prompt) != 2:
      raise InputError(f"prompts[{index}]: found {len(prompt)} arrays, expected a pair of image and label map")
    image, labels = prompt
    _check_image(f"prompts[{index}] image", image)
    name = f"prompts[{index}] labels"
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool) or labels.shape != image.shape[:2]:
      expected = f"integers {list(image.shape[:2])} as its image has"
      raise InputError(f"{name}: found {labels.dtype} {list(labels.shape)}, expected {expected}")
    if labels.min() < 0 or labels.max() > _MAX_LABEL:
      raise InputError(f"{name}: found values {labels.min()}..{labels.max()}, expected 0..{_MAX_LABEL}")


def _check_palette(palette: np.ndarray | None, num_classes: int) -> np.ndarray:
  if palette is None:
    palette = palette_lib.fixed_palette(max(num_classes, 2))
    if len(palette) < num_classes:
      raise InputError(f"palette: found none for {num_classes} classes, the fixed one has {len(palette)} colours")
    return palette
  if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) < num_classes:
    raise InputError(f"palette: found {list(palette.shape)}, expected [N, 3] with N >= {num_classes} classes")
  if palette.min() < 0 or palette.max() > 255:
    raise InputError(f"palette: found values {palette.min()}..{palette.max()}, expected 0..255")
  palette = np.round(palette).astype(np.uint8)
  if len(np.unique(palette, axis=0)) < len(palette):
    raise InputError("palette: found two classes of the same colour, expected colours 0..255 that differ")
  return palette
