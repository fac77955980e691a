"""From an image and a few labeled prompts to the image's label map.

In: images of any size and prompts, each an image with its label map. Out: a `Prediction` at the image's own size.
`InferenceOptions` say how an image is cut and turned on the way; the network sees windows of one size only (`painter`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from PIL import Image

from seggpt_jax import palette as palette_lib
from seggpt_jax.data.images import read_image, upright_pixels
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError
from seggpt_jax.inference import tiling
from seggpt_jax.inference.painter import Painter, Picture, paint
from seggpt_jax.inference.prediction import Prediction, decode_prediction
from seggpt_jax.inference.windows import seam_windows, tile_windows
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapted_model
from seggpt_jax.model.adapters import LearnedPrompt
from seggpt_jax.model.seggpt import SegGPT, SegType

Pixels = np.ndarray | Image.Image | str | os.PathLike  # an array, a Pillow image, or a file
Prompt = tuple[Pixels, Pixels]  # an image and its label map

_MAX_LABEL = 65_535  # what a 16-bit PNG holds
# A CPU is no faster with larger batches, and slower where they no longer fit into its caches.
_MAX_CANVASES = {"cpu": 4}
_MOST_WAITING = 64  # images whose windows wait for others with as many prompts
# Whether rows and columns of pixels are turned round, for each way that an image is looked at.
_VIEWS: dict[Flips, tuple[tuple[bool, bool], ...]] = {
  "none": ((False, False),),
  "horizontal": ((False, False), (False, True)),
  "vertical": ((False, False), (True, False)),
  "both": ((False, False), (False, True), (True, False), (True, True)),
}


class Predictor:
  """Segments images by example.

  Args:
    model: the network; its parameters stay where they lie.
    max_canvases: how many canvases go through the network at once. The prompts of one tile always go together, since
      the network averages over them, however many they are. 16 by default, on CPUs 4.
    learned: a learned prompt, for images that come without prompts.
  """

  def __init__(self, model: SegGPT, *, max_canvases: int | None = None, learned: StoredAdapter | None = None):
    self.config = model.config
    self.max_canvases = max_canvases or _MAX_CANVASES.get(jax.default_backend(), 16)
    self.learned = learned
    self._graph, self._params = parameters.split(model)

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
      adapter: a training run that learned a LoRA or a prompt for these weights, or what `load_adapter` read of it.
      dtype: compute dtype; by default float32 on CPUs and bfloat16 on accelerators.
      max_canvases: see the class.

    Raises:
      InputError: no weights there, weights that do not fit their configuration, or others than the adapter's.
    """
    if dtype is None:
      dtype = parameters.default_dtype()
    if adapter is not None:
      model, stored = load_adapted_model(directory, adapter, dtype=dtype)
      learned = stored if isinstance(stored.adapter, LearnedPrompt) else None
      return cls(model, max_canvases=max_canvases, learned=learned)
    return cls(weights.load_model(directory, dtype=dtype), max_canvases=max_canvases)

  @property
  def tile_size(self) -> tuple[int, int]:
    """Height and width in pixels of what the network sees at once: half a canvas."""
    height, width = self.config.canvas_size
    return height // 2, width

  def __repr__(self) -> str:
    count, (height, width) = sum(value.size for value in self._params.values()), self.tile_size
    learned = f", a learned prompt of {self.learned.num_classes} classes" if self.learned is not None else ""
    return f"Predictor({count:,} parameters, sees {height} x {width} pixels at once{learned})"

  def predict(
    self,
    image: Pixels,
    prompts: Sequence[Prompt] = (),
    *,
    palette: np.ndarray | None = None,
    split: int | Sequence[int] = 1,
    overlap: float | int = 0,
    stitch_width: int = 0,
    flips: Flips = "none",
    foreground_tiles: bool = False,
    seg_type: SegType = "semantic",
  ) -> Prediction:
    """Segments one image; `predict_many` with a single query.

    The painted colors are resized bilinearly to the image's size and decoded there, which gives smooth outlines where
    resizing labels would give steps. Only the background and the classes of the prompts are decoded to: the network
    has never seen the colors of the others.

    Args:
      image: the query: uint8 `[H, W, 3]`, a Pillow image, or a file.
      prompts: pairs of an image, likewise, and its label map, integers `[h, w]`, a Pillow image or a file of class
        indices; each of any size, all are ensembled, best first. None are needed by a predictor with a learned prompt,
        whose place they take if given.
      palette: the color of each class `[N, 3]`, 0..255; by default `palette.fixed_palette`, for up to 256 classes. A
        learned prompt has the colors that it was trained with, and no others.
      split: see `InferenceOptions`, as all that follow.
      overlap: blends tiles of the query that overlap.
      stitch_width: paints the seams between tiles again.
      flips: also looks at everything mirrored.
      foreground_tiles: leaves out tiles of prompts without foreground.
      seg_type: "semantic" or "instance".

    Returns:
      Labels and colors at the query's size.

    Raises:
      InputError: an argument is not as described above.
    """
    approach = InferenceOptions(split, overlap, stitch_width, flips, foreground_tiles, seg_type)
    (prediction,) = self.predict_many([(image, prompts)], approach, palette=palette)
    return prediction

  def predict_many(
    self,
    queries: Iterable[tuple[Pixels, Sequence[Prompt]]],
    approach: InferenceOptions | None = None,
    *,
    palette: np.ndarray | None = None,
  ) -> Iterator[Prediction]:
    """Segments many images, a batch of windows at a time, whichever images they are of.

    The device works while the next queries are read and the last ones are decoded, so `queries` may as well be a
    generator that reads files. In a batch are windows with the same number of prompts.

    Args:
      queries: pairs of an image and its prompts, as of `predict`.
      approach: how each is shown to the network; whole by default.
      palette: see `predict`.

    Yields:
      The prediction of each query, in their order, a few batches behind what was read.

    Raises:
      InputError: an argument is not as described above.
    """
    approach = approach or InferenceOptions()
    if approach.stitch_width > min(self.tile_size) // self.config.patch_size // 2:
      most = min(self.tile_size) // self.config.patch_size // 2
      raise InputError(f"stitch_width: found {approach.stitch_width}, expected at most {most}, half a tile's patches")
    palette = None if palette is None else np.asarray(palette)
    painter = Painter(
      functools.partial(paint, self._graph, self._params, seg_type=approach.seg_type), self.max_canvases
    )
    jobs: collections.deque[_Job] = collections.deque()
    for image, prompts in queries:
      job = self._prepare(_as_image("image", image), prompts, palette, approach)
      jobs.append(job)
      for look in job.looks:
        painter.add(look.picture)
      if len(jobs) > _MOST_WAITING:
        painter.flush()
      while jobs and jobs[0].is_painted():
        yield jobs.popleft().finish()
    painter.finish()
    for job in jobs:
      yield job.finish()

  def _prepare(
    self, image: np.ndarray, prompts: Sequence[Prompt], palette: np.ndarray | None, approach: InferenceOptions
  ) -> _Job:
    """Checks a query, and cuts it and its prompts into tiles in every way that is asked for."""
    if not prompts and self.learned is not None:
      if palette is not None:
        raise InputError("palette: found one without prompts, expected none: a learned prompt has colors of its own")
      if approach.foreground_tiles:
        raise InputError(
          "foreground_tiles: found without prompts, expected False: a learned prompt is not cut into tiles"
        )
      prompt, target = (np.asarray(self.learned.params[f"prompt.{part}"])[None] for part in ("image", "target"))
      classes = np.arange(self.learned.num_classes)
      looks = self._looks(image, dict.fromkeys(approach.splits, (prompt, target)), approach)
      return _Job(image.shape[:2], looks, palette_lib.fixed_palette(len(classes)), classes)
    prompts = check_prompts(prompts)
    palette = _check_palette(palette, 1 + max(int(labels.max()) for _, labels in prompts))
    tiles, classes = {}, np.zeros(1, np.int32)
    for split in approach.splits:
      images = np.concatenate([tiling.image_tiles(pixels, split, self.tile_size) for pixels, _ in prompts])
      labels = np.concatenate(
        [tiling.label_tiles(labels.astype(np.int32), split, self.tile_size) for _, labels in prompts]
      )
      classes = np.union1d(classes, labels)
      if approach.foreground_tiles:
        kept = tiling.foreground_tiles(labels)
        images, labels = images[kept], labels[kept]
      tiles[split] = images, palette[labels]
    return _Job(image.shape[:2], self._looks(image, tiles, approach), palette, classes)

  def _looks(
    self, image: np.ndarray, tiles: dict[int, tuple[np.ndarray, np.ndarray]], approach: InferenceOptions
  ) -> list[_Look]:
    """The image in every size and direction that it is looked at, with the prompts' tiles for each size."""
    (height, width), patch_size, looks = self.tile_size, self.config.patch_size, []
    for split, prompts in tiles.items():
      resized = tiling.resize_image(image, (split * height, split * width))
      rounds = [tile_windows(split, self.tile_size, patch_size, approach.overlap)]
      if approach.stitch_width and split > 1:
        rounds += seam_windows(split, self.tile_size, patch_size, approach.stitch_width)
      for view in _VIEWS[approach.flips]:
        seen = [_turned(pixels, view) for pixels in (resized, *prompts)]
        looks.append(_Look(Picture(*seen, rounds, patch_size), view))
    return looks


def _turned(pixels: np.ndarray, view: tuple[bool, bool]) -> np.ndarray:
  """`[..., H, W, 3]` with rows and columns turned round or not."""
  axes = tuple(axis for axis, turn in zip((-3, -2), view, strict=True) if turn)
  return np.flip(pixels, axes) if axes else pixels


@dataclasses.dataclass(frozen=True, eq=False)
class _Look:
  """An image as it is shown to the network once.

  Attributes:
    picture: in one of the sizes, in one direction.
    view: whether its rows and columns are turned round.
  """

  picture: Picture
  view: tuple[bool, bool]


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
  """What becomes a prediction.

  Attributes:
    size: height and width of the image.
    looks: at it.
    palette: the color of each class.
    classes: those that are decoded to.
  """

  size: tuple[int, int]
  looks: list[_Look]
  palette: np.ndarray
  classes: np.ndarray

  def is_painted(self) -> bool:
    return all(look.picture.is_painted() for look in self.looks)

  def finish(self) -> Prediction:
    """Puts together and decodes what was painted."""
    prediction = self._decoded([look.picture.colors for look in self.looks])
    if all(look.picture.colors is look.picture.first_colors for look in self.looks):
      return prediction
    unstitched = self._decoded([look.picture.first_colors for look in self.looks])
    return dataclasses.replace(prediction, unstitched=unstitched)

  def _decoded(self, painted: list[np.ndarray]) -> Prediction:
    upright = [_turned(colors, look.view) for look, colors in zip(self.looks, painted, strict=True)]
    colors = [tiling.resize_colors(pixels, self.size) for pixels in upright]
    fused = colors[0] if len(colors) == 1 else np.round(np.mean(colors, axis=0)).astype(np.uint8)
    return decode_prediction(fused, self.palette, self.classes)


def _as_image(name: str, image: Pixels) -> np.ndarray:
  """uint8 `[H, W, 3]` of an array, a Pillow image or a file."""
  if isinstance(image, str | os.PathLike):
    return read_image(image)
  if isinstance(image, Image.Image):
    return upright_pixels(image, name)
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
    raise InputError(f"{name}: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
  return image


def _as_labels(labels: Pixels) -> np.ndarray:
  return read_labels(labels, LabelFormat()) if isinstance(labels, str | os.PathLike) else np.asarray(labels)


def check_prompts(prompts: Sequence[Prompt]) -> list[tuple[np.ndarray, np.ndarray]]:
  """The prompts as arrays.

  Raises:
    InputError: there are none, or one is not an image with integer labels of its size.
  """
  if not len(prompts):
    raise InputError("prompts: found none, expected at least one pair of image and label map")
  checked = []
  for index, prompt in enumerate(prompts):
    if len(prompt) != 2:
      raise InputError(f"prompts[{index}]: found {len(prompt)} arrays, expected a pair of image and label map")
    image, labels = _as_image(f"prompts[{index}] image", prompt[0]), _as_labels(prompt[1])
    name = f"prompts[{index}] labels"
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool) or labels.shape != image.shape[:2]:
      expected = f"integers {list(image.shape[:2])} as its image has"
      raise InputError(f"{name}: found {labels.dtype} {list(labels.shape)}, expected {expected}")
    if labels.min() < 0 or labels.max() > _MAX_LABEL:
      raise InputError(f"{name}: found values {labels.min()}..{labels.max()}, expected 0..{_MAX_LABEL}")
    checked.append((image, labels))
  return checked


def _check_palette(palette: np.ndarray | None, num_classes: int) -> np.ndarray:
  if palette is None:
    palette = palette_lib.fixed_palette(max(num_classes, 2))
    if len(palette) < num_classes:
      raise InputError(f"palette: found none for {num_classes} classes, the fixed one has {len(palette)} colors")
    return palette
  if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) < num_classes:
    raise InputError(f"palette: found {list(palette.shape)}, expected [N, 3] with N >= {num_classes} classes")
  if palette.min() < 0 or palette.max() > 255:
    raise InputError(f"palette: found values {palette.min()}..{palette.max()}, expected 0..255")
  palette = np.round(palette).astype(np.uint8)
  if len(np.unique(palette, axis=0)) < len(palette):
    raise InputError("palette: found two classes of the same color, expected colors 0..255 that differ")
  return palette
