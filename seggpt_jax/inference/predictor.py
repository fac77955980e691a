"""Segmentation by example: an image and a few labeled prompts in, the image's label map out.

In: images of any size and prompts, each an image with its label map. Out: a `Prediction` of the image's own size.
`InferenceOptions` choose tiles, overlap and mirrored copies. The network sees windows of one size only (`batching`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np
from absl import logging

from seggpt_jax.compilation import default_device
from seggpt_jax.data.scale import Scale, padded_image
from seggpt_jax.errors import InputError
from seggpt_jax.inference import heads, tiling
from seggpt_jax.inference import prompts as prompts_lib
from seggpt_jax.inference.forward import (
  BatchedForward,
  HeadPrediction,
  MaskForward,
  PendingPrediction,
  TiledImage,
  View,
  answer_of,
  predict_colors,
)
from seggpt_jax.inference.options import MIRRORED_AXES, InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.prompts import Pixels, PreparedPrompt, Prompt, PromptTiles
from seggpt_jax.inference.tiling import image_windows, seam_windows
from seggpt_jax.inference.trained import measure_objects
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapted_model
from seggpt_jax.model.seggpt import SegGPT

# A CPU is no faster with larger batches, and slower once they exceed its caches.
_MAX_CANVASES = {"cpu": 4}
_MAX_PENDING = 64  # images whose windows wait for others with as many prompts


class Predictor:
  """Segments images by example.

  Examples:
    >>> predictor = seggpt_jax.Predictor.from_checkpoint("small")  # weights that come with the package
    >>> prompts = [("prompt.jpg", "prompt_label.png")]  # or arrays, or Pillow images; class 0 is the background
    >>> prediction = predictor.predict("query.jpg", prompts)
    >>> prediction.labels.shape  # the class index of each pixel
    (64, 64)

  Args:
    model: the network. Its parameters stay on their current devices.
    max_canvases: largest number of canvases that go through the network at once; 16 by default, on CPUs 4. The prompts
      of one tile always go together, because the network averages over them.
    learned: a learned prompt, for images that come without prompts.
    head: what `InferenceOptions.head` "auto" means.
  """

  def __init__(
    self, model: SegGPT, *, max_canvases: int | None = None, learned: StoredAdapter | None = None, head: bool = False
  ):
    self.config = model.config
    self.max_canvases = max_canvases or _MAX_CANVASES.get(default_device().platform, 16)
    self.learned = learned
    self._graph, self._params = parameters.split(model)
    self._forward = MaskForward(self._graph, self._params)
    self._unseen: set[int] = set()  # classes that a warning has named
    self._auto_head, self._heads = head, heads.ContentCache()
    if self.config.head_classes:
      self._trained = answer_of(self._graph, self._params, self.config.head_side)

  @classmethod
  def from_checkpoint(
    cls,
    directory: str | os.PathLike | weights.Weights,
    *,
    adapter: str | os.PathLike | StoredAdapter | None = None,
    dtype=None,
    max_canvases: int | None = None,
    device: Any = None,
  ) -> Predictor:
    """Loads weights from disk, or weights that come with the package.

    Examples:
      >>> seggpt_jax.Predictor.from_checkpoint("runs/mine", device="cpu")
      Predictor(... parameters, sees ... pixels at once)

    Args:
      directory: a weights directory, a training run (its best weights, or else its newest), or a packaged name.
      adapter: a training run that learned a LoRA or a prompt for these weights, or the result of `load_adapter`.
      dtype: compute dtype; by default float32 on CPUs and bfloat16 on accelerators.
      max_canvases: largest number of canvases that go through the network at once; 16 by default, on CPUs 4.
      device: a device of JAX, or the name of a platform, such as "cpu"; by default that of new arrays.

    Raises:
      InputError: there are no weights, they do not fit their configuration, or they are not those of the adapter.
    """
    with contextlib.nullcontext() if device is None else jax.default_device(parameters.find_device(device)):
      options, learned = {"dtype": parameters.default_dtype() if dtype is None else dtype, "training": False}, None
      found = weights.resolve(directory)
      if adapter is None:
        model = weights.load_model(found, **options)
      else:
        model, stored = load_adapted_model(found, adapter, **options)
        learned = stored if stored.is_prompt else None
      if device is not None:
        graph, params = parameters.split(model)  # committed, so that the network runs there
        model = parameters.merge(graph, jax.device_put(params, default_device()))
      head = adapter is None and found.path.is_file()  # that is: packaged
      return cls(model, max_canvases=max_canvases, learned=learned, head=head)

  @property
  def model(self) -> SegGPT:
    """The network, with the parameters of this predictor."""
    return parameters.merge(self._graph, self._params)

  @property
  def tile_size(self) -> tuple[int, int]:
    """Height and width in pixels of the network's input: half a canvas."""
    height, width = self.config.canvas_size
    return height // 2, width

  @property
  def needs_prompts(self) -> bool:
    """False with a learned prompt or a trained head, which answer without."""
    return self.learned is None and not self.config.head_classes

  @property
  def _asks_masks(self) -> bool:
    """True if the network answers one mask for each class, not colors."""
    return bool(self.config.backbone) and self.learned is None

  def __repr__(self) -> str:
    count, (height, width) = sum(value.size for value in self._params.values()), self.tile_size
    learned = f", a learned prompt of {self.learned.num_classes} classes" if self.learned is not None else ""
    learned += f", a trained head of {self.config.head_classes} classes" if self.config.head_classes else ""
    return f"Predictor({count:,} parameters, sees {height} x {width} pixels at once{learned})"

  def prepare_prompt(
    self,
    image: Pixels,
    labels: Pixels,
    options: InferenceOptions | None = None,
    *,
    name: str = "prompt",
    **changes: Any,
  ) -> PreparedPrompt:
    """Checks a prompt and resizes it to the network's input, so that it can serve many images at little memory.

    `predict` and `predict_many` prepare the prompts that they are given, so this is never required.

    Args:
      image: the prompt's image: uint8 `[h, w, 3]`, a Pillow image, or a file.
      labels: its label map: integers or bool `[h, w]`, a Pillow image, or a file; 255 becomes background.
      options: how images are shown that it is used with; whole ones by default.
      name: name of the prompt, for error messages and warnings.
      **changes: attributes of `InferenceOptions`, such as `split=2`, in place of those of `options`.

    Raises:
      InputError: the prompt is not an image with an integer label map of the same size.
    """
    prompt = prompts_lib.load_prompt((image, labels), name)
    scale = dataclasses.replace(options or InferenceOptions(), **changes).scale
    self.warn_of_small(prompt, scale, name)
    return prompt.at(scale, self.tile_size)

  def _warn_once(self, index: int, message: str, *values: Any) -> None:
    """Warns about a class, unless a warning has named it before."""
    if index not in self._unseen:
      self._unseen.add(index)
      logging.warning(message, *values)

  def warn_of_small(self, prompt: PreparedPrompt, scale: Scale, name: str) -> None:
    """Warns about each class that a prompt shows too small for the network's input."""
    height, width = size = scale.size(prompt.labels.shape, self.tile_size)
    for index, area in {} if scale.zoom else tiling.small_classes(prompt.labels, size).items():
      self._warn_once(
        index,
        "%s: class %d is too small: it covers %.2g of the %d x %d pixels that the network sees; use a larger split "
        "(--split), or crop the prompt around it",
        *(name, index, area, width, height),
      )

  @overload
  def predict(self, image: Pixels, prompts: Sequence[Prompt] = (), **arguments: Any) -> Prediction: ...
  @overload
  def predict(self, image: Sequence[Pixels], prompts: Sequence[Prompt] = (), **arguments: Any) -> list[Prediction]: ...

  def predict(
    self,
    image: Pixels | Sequence[Pixels],
    prompts: Sequence[Prompt] = (),
    *,
    palette: np.ndarray | None = None,
    options: InferenceOptions | None = None,
    class_names: Sequence[str] = (),
    **changes: Any,
  ) -> Prediction | list[Prediction]:
    """Segments one image, or several with the same prompts.

    The predicted colors are resized bilinearly to the image's size and decoded there, which gives smooth outlines, to
    the background and the classes of the prompts only: the network has not seen the colors of other classes.

    Examples:
      >>> predictor.predict(["query.jpg", "prompt.jpg"], prompts, class_names=["part"])
      [Prediction(64 x 64, class 0: ...%, part: ...%), Prediction(64 x 64, class 0: ...%, part: ...%)]

    Args:
      image: the query: uint8 `[H, W, 3]` or gray `[H, W]`, a Pillow image, or a file; or a list of these; or a folder
        of images, in the order of their names. `predict_many` keeps fewer of them in memory.
      prompts: pairs of an image and its label map, best first; the network averages over them. The image is given as
        the query is; the label map as integers or bool `[h, w]`, a Pillow image, or a file of class indices.
        Ignored pixels (label 255) are background. Each pair has any size, or comes from `prepare_prompt`. Optional with
        a learned prompt or a trained head; explicit prompts override both.
      palette: the color of each class `[N, 3]`, 0..255; by default `palette.fixed_palette`, for up to 256 classes. Not
        allowed with a learned prompt, which has the colors it was trained with.
      options: tiles, overlap and mirrored copies; one tile for the whole image by default.
      class_names: names of classes 1, 2, ..., which the prediction keeps.
      **changes: attributes of `InferenceOptions`, such as `split=2`, in place of those of `options`; `split="objects"`
        chooses the scale at which the prompts' objects are large enough.

    Returns:
      Labels and colors of the query's size; a list with one prediction for each image of a list or folder.

    Raises:
      InputError: an argument is not as described above.
    """
    if isinstance(changes.get("split"), str):
      if changes.pop("split") != "objects" or not prompts:
        raise InputError('split: expected an integer, several that differ, or "objects" and prompts that show some')
      prompts = [prompt for _, prompt in prompts_lib.load_prompts(prompts)]
      changes = measure_objects([prompt.labels for prompt in prompts]).scale(self.config) | changes
    options = dataclasses.replace(options or InferenceOptions(), **changes)
    images, single = prompts_lib.list_several(image)
    found = self.predict_many([(each, prompts) for each in images], options, palette=palette)
    found = [dataclasses.replace(each, class_names=tuple(class_names)) for each in found]
    return found[0] if single else found

  def predict_many(
    self,
    queries: Iterable[tuple[Pixels, Sequence[Prompt]]],
    options: InferenceOptions | None = None,
    *,
    palette: np.ndarray | None = None,
  ) -> Iterator[Prediction]:
    """Segments many images. Tiles of different images share batches if they have the same number of prompts.

    The device works while the next queries are read and the last predictions are decoded, so `queries` may be a
    generator that reads files.

    Args:
      queries: pairs of an image and its prompts; see `predict`.
      options: tiles, overlap and mirrored copies; one tile for the whole image by default.
      palette: the color of each class; see `predict`.

    Yields:
      The prediction for each query, in order, a few batches after it was read.

    Raises:
      InputError: an argument is not as described above.
    """
    options = options or InferenceOptions()
    max_width = min(self.tile_size) // self.config.patch_size // 2
    if options.stitch_width > max_width:
      raise InputError(
        f"stitch_width: found {options.stitch_width}, expected at most {max_width}, half a tile's patches"
      )
    palette = None if palette is None else np.asarray(palette)
    if self._asks_masks:
      run = self._forward
    else:
      run = functools.partial(predict_colors, self._graph, self._params, seg_type=options.seg_type)
    batches = BatchedForward(run, self.max_canvases)
    pending: collections.deque[PendingPrediction | HeadPrediction] = collections.deque()
    for image, prompts in queries:
      pending.append(self._start(prompts_lib.as_image(image, "image"), prompts, palette, options))
      for view in pending[-1].views:
        batches.add(view.tiled)
      if len(pending) > _MAX_PENDING:
        batches.flush()
      while pending and pending[0].finished:
        yield pending.popleft().decode()
    batches.finish()
    for prediction in pending:
      yield prediction.decode()

  def _start(
    self, image: np.ndarray, prompts: Sequence[Prompt], palette: np.ndarray | None, options: InferenceOptions
  ) -> PendingPrediction | HeadPrediction:
    """Checks a query, and cuts it and its prompts into tiles for every split and mirrored copy."""
    prompts_lib.check_pairs(prompts)
    if not prompts and self.config.head_classes:
      colors = prompts_lib.check_palette(palette, self.config.head_classes)
      return HeadPrediction(image, self._trained, colors, options)
    head = None
    if not prompts and self.learned is not None:
      tiles, palette, classes = prompts_lib.learned_tiles(self.learned, palette, options)
    else:
      named = prompts_lib.load_prompts(prompts)
      tiles, palette, classes = self._prompt_tiles(named, palette, options)
      if options.head == "on" or (options.head == "auto" and self._auto_head):
        pairs = [prompt.original for _, prompt in named if prompt.original is not None]
        head = self._heads.get(itertools.chain.from_iterable(pairs), lambda: heads.fit(pairs))
    views = self._views(image, tiles, palette, classes, options)
    return PendingPrediction(image, views, palette, classes, options, head)

  def _prompt_tiles(
    self, named: Sequence[tuple[str, PreparedPrompt]], palette: np.ndarray | None, options: InferenceOptions
  ) -> tuple[PromptTiles, np.ndarray, np.ndarray]:
    """Returns the prompts' tiles and their labels for each scale, the palette, and the classes to decode to."""
    loaded = [prompt for _, prompt in named]
    palette = prompts_lib.check_palette(palette, 1 + max(int(prompt.labels.max()) for prompt in loaded))
    for name, prompt in named:
      self.warn_of_small(prompt, options.scale, name)
    tiles = {scale: prompts_lib.tiles_of(loaded, scale, self.tile_size) for scale in options.scales}
    classes = np.zeros(1, np.int32)
    for _, labels in tiles.values():
      classes = np.union1d(classes, labels)
    if options.foreground_tiles:
      kept = {scale: tiling.foreground_tiles(labels) for scale, (_, labels) in tiles.items()}
      tiles = {scale: (images[kept[scale]], labels[kept[scale]]) for scale, (images, labels) in tiles.items()}
    for index in np.setdiff1d(np.concatenate([np.unique(prompt.labels) for prompt in loaded]), classes).tolist():
      self._warn_once(
        index,
        "prompts: class %d is in none of the tiles that the network is shown, so it cannot be found; use more "
        "prompts (--top-k), or fewer classes",
        index,
      )
    return tiles, palette, classes

  def _questions(
    self, targets: np.ndarray, palette: np.ndarray, classes: np.ndarray
  ) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """Returns targets that the network is asked for one by one, and the class of each channel if they are masks."""
    if targets.ndim == 4:  # a learned prompt's
      return [(targets, ())]
    if not self._asks_masks:
      return [(palette[targets], ())]
    asked = [index for index in classes.tolist() if index] or [1]
    groups = [tuple(asked[start : start + 3]) for start in range(0, len(asked), 3)]
    return [(np.where(targets[..., None] == group, np.uint8(255), np.uint8(0)), group) for group in groups]

  def _views(
    self, image: np.ndarray, tiles: PromptTiles, palette: np.ndarray, classes: np.ndarray, options: InferenceOptions
  ) -> list[View]:
    """Returns the image at every scale, with every mirroring and question, each with its prompts."""
    patch_size, views = self.config.patch_size, []
    for scale, (images, targets) in tiles.items():
      shape = scale.size(image.shape, self.tile_size)
      resized = scale.zoomed(image) if scale.zoom else tiling.resize_image(image, shape)
      resized = padded_image(resized, min(self.tile_size))
      rounds = [image_windows(resized.shape[:2], self.tile_size, patch_size, options.overlap)]
      if options.stitch_width and scale.split > 1:
        rounds += seam_windows(scale.split, self.tile_size, patch_size, options.stitch_width)
      for question, asked in self._questions(targets, palette, classes):
        for axes in MIRRORED_AXES[options.flips]:
          pixels, shown, masks = (np.flip(array, axes) for array in (resized, images, question))
          views.append(View(TiledImage(pixels, shown, masks, rounds, patch_size), axes, shape, asked))
    return views
