"""From an image and a few labelled prompts to the image's label map.

In: a uint8 image of any size and prompts, each a uint8 image with its integer label map. Out: a `Prediction` at the
image's own size. Sizes vary from image to image, so only canvases enter compiled code: the network is compiled once
for each number of prompts and tiles, decoding once for all image sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

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

Prompt = tuple[np.ndarray, np.ndarray]

_MAX_LABEL = 65_535  # what a 16-bit PNG holds
_BLOCK = (512, 512)  # pixels decoded at a time


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
    max_canvases: how many canvases go through the network at once while an image is cut into tiles. The prompts of one
      tile always go together, since the network averages over them, however many they are.
    learnt: a learnt prompt, for images that come without prompts.
  """

  def __init__(self, model: SegGPT, *, max_canvases: int = 16, learnt: StoredAdapter | None = None):
    self.config = model.config
    self.max_canvases = max_canvases
    self.learnt = learnt
    self._graph, self._params = weights.split(model)

  @classmethod
  def from_checkpoint(
    cls,
    directory: str | os.PathLike,
    *,
    adapter: str | os.PathLike | StoredAdapter | None = None,
    dtype=None,
    max_canvases: int = 16,
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
    split: int = 1,
    seg_type: SegType = "semantic",
  ) -> Prediction:
    """Segments one image.

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
        tile of the query: small things come out larger, at `split**4` times the work.
      seg_type: "semantic" or "instance".

    Returns:
      Labels and colours at the query's size.

    Raises:
      InputError: an argument is not as described above.
    """
    image, palette = np.asarray(image), None if palette is None else np.asarray(palette)
    prompts = [tuple(np.asarray(array) for array in prompt) for prompt in prompts]
    _check_image("image", image)
    if prompts or self.learnt is None:
      _check_prompts(prompts)
    if not isinstance(split, int) or split < 1:
      raise InputError(f"split: found {split}, expected a whole number of at least 1")
    if seg_type not in ("semantic", "instance"):
      raise InputError(f"seg_type: found {seg_type!r}, expected 'semantic' or 'instance'")
    if not prompts:
      if palette is not None:
        raise InputError("palette: found one without prompts, expected none: a learnt prompt has colours of its own")
      return self._predict_by_learnt(image, split, seg_type)
    num_classes = 1 + max(int(labels.max()) for _, labels in prompts)
    palette = _check_palette(palette, num_classes)

    prompt_images = np.concatenate([tiling.image_tiles(pixels, split, self.tile_size) for pixels, _ in prompts])
    prompt_labels = np.concatenate(
      [tiling.label_tiles(labels.astype(np.int32), split, self.tile_size) for _, labels in prompts]
    )
    colours = self._paint_image(image, split, prompt_images, palette[prompt_labels], seg_type)
    return _decoded(colours, palette, np.union1d(prompt_labels, [0]))

  def _predict_by_learnt(self, image: np.ndarray, split: int, seg_type: SegType) -> Prediction:
    """Segments with the learnt prompt, whose colours are those of the fixed palette."""
    learnt, num_classes = self.learnt.params, self.learnt.num_classes
    prompt, target = (learnt[f"prompt.{part}"][None] for part in ("image", "target"))
    colours = self._paint_image(image, split, prompt, target, seg_type)
    return _decoded(colours, palette_lib.fixed_palette(num_classes), np.arange(num_classes))

  def _paint_image(
    self, image: np.ndarray, split: int, prompts: np.ndarray, targets: np.ndarray, seg_type: SegType
  ) -> np.ndarray:
    """The painted colours at the image's own size."""
    painted = self._paint(tiling.image_tiles(image, split, self.tile_size), prompts, targets, seg_type)
    return tiling.resize_colours(tiling.join(painted), image.shape[:2])

  def _paint(self, queries: np.ndarray, prompts: np.ndarray, targets: np.ndarray, seg_type: SegType) -> np.ndarray:
    """Paints query tiles `[tiles, h, w, 3]`, a few at a time, each with all prompt tiles."""
    count = _tiles_at_once(len(queries), len(prompts), self.max_canvases)
    prompts, targets = jnp.asarray(prompts), jnp.asarray(targets)
    painted = [
      paint(self._graph, self._params, jnp.asarray(queries[start : start + count]), prompts, targets, seg_type)
      for start in range(0, len(queries), count)
    ]
    return np.concatenate([np.asarray(tiles) for tiles in painted])


@functools.partial(jax.jit, static_argnames=("graph", "seg_type"))
def paint(
  graph: nnx.GraphDef,
  params: weights.Params,
  queries: UInt8[Array, "q h w 3"],
  prompts: Num[Array, "k h w 3"],
  targets: Num[Array, "k h w 3"],
  seg_type: SegType,
) -> UInt8[Array, "q h w 3"]:
  """Runs the network on every query with the ensemble of all prompts.

  Args:
    graph: structure of the model.
    params: its parameters.
    queries: Q images of half a canvas.
    prompts: K images likewise, 0..255; or normalised already, if they are not integers.
    targets: their coloured masks, likewise.
    seg_type: "semantic" or "instance".

  Returns:
    The colours of the queries, 0..255.
  """
  model = weights.merge(graph, params)
  config, q, k = model.config, queries.shape[0], prompts.shape[0]

  def normalised(pixels: Array) -> Array:
    is_learnt = jnp.issubdtype(pixels.dtype, jnp.floating)
    return pixels if is_learnt else canvas.normalise(pixels, config.image_mean, config.image_std)

  queries, prompts, targets = (normalised(pixels) for pixels in (queries, prompts, targets))
  images = jnp.concatenate([jnp.tile(prompts, (q, 1, 1, 1)), jnp.repeat(queries, k, axis=0)], axis=1)
  targets = jnp.tile(targets, (q, 1, 1, 1))
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
  blocks = tiling.pixel_blocks(colours.reshape(-1, 3), _BLOCK[0] * _BLOCK[1], fill=0)
  labels = [_decode_block(block.reshape(1, *_BLOCK, 3), filled) for block in blocks]
  height, width, _ = colours.shape
  return np.concatenate([np.ravel(block) for block in labels])[: height * width].reshape(height, width)


def _decoded(colours: np.ndarray, palette: np.ndarray, classes: np.ndarray) -> Prediction:
  """The nearest of the colours of those classes, for each pixel."""
  labels = classes[decode(colours, palette[classes])].astype(np.uint8 if len(palette) <= 256 else np.uint16)
  return Prediction(labels, colours, palette, tuple(classes.tolist()))


def _tiles_at_once(tiles: int, prompts: int, max_canvases: int) -> int:
  """The largest number of query tiles that divides their total, so that all calls have one shape, and keeps to
  `max_canvases`; one at least."""
  return max(n for n in range(1, tiles + 1) if n == 1 or (tiles % n == 0 and n * prompts <= max_canvases))


def _check_image(name: str, image: np.ndarray) -> None:
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
    raise InputError(f"{name}: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")


def _check_prompts(prompts: Sequence[Prompt]) -> None:
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
