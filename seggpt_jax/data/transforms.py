"""Labeled images in, canvases of a pair out: pure functions of samples and a NumPy generator.

Image and label of a sample go through the same geometry; images are resampled smoothly, labels by nearest neighbor. A
pair carries labels and a palette. The device turns them into colors.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from seggpt_jax import canvas, palette
from seggpt_jax.data.augment import Augmentation, augment
from seggpt_jax.data.scale import assemble, make_prompts, next_class, padded, window_starts
from seggpt_jax.data.sources import Sample
from seggpt_jax.formats.labels import IGNORE, classes_in, keep_classes

Unanswerable = Literal["background", "ignore", "keep"]


class Pair(TypedDict):
  """K canvases: a query below each of its K prompts, as small integers for the device.

  The entries are `images` uint8 [K, 2S, S, 3], `labels` uint8 [K, 2S, S], `palette` uint8 [K, N, 3] and `patch_mask`
  bool [K, rows, cols]. The K palettes are equal, and so are the K patch masks.
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray


def resize(sample: Sample, size: int) -> Sample:
  """Resizes a sample to a square of `size` pixels: bicubic for the image, nearest neighbor for the label."""
  if sample["image"].shape[:2] == (size, size):
    return sample
  image = Image.fromarray(sample["image"]).resize((size, size), Image.Resampling.BICUBIC)
  label = Image.fromarray(sample["label"]).resize((size, size), Image.Resampling.NEAREST)
  return {**sample, "image": np.asarray(image), "label": np.asarray(label)}


def keep_class(sample: Sample, class_index: int | None) -> Sample:
  """Keeps one class of a label and turns the others into background. IGNORE stays; None keeps all classes."""
  return sample if class_index is None else {**sample, "label": keep_classes(sample["label"], [class_index])}


def _make_pair(
  prompts: Sequence[Sample], query: Sample, colors: UInt8[np.ndarray, "n 3"], patch_mask: Bool[np.ndarray, "rows cols"]
) -> Pair:
  """Stacks each of K prompts above the query; all canvases get the same palette and patch mask."""
  count = len(prompts)
  return {
    "images": np.stack([canvas.stack(prompt["image"], query["image"]) for prompt in prompts]),
    "labels": np.stack([canvas.stack(prompt["label"], query["label"]) for prompt in prompts]),
    "palette": np.repeat(colors[None], count, axis=0),
    "patch_mask": np.repeat(patch_mask[None], count, axis=0),
  }


@dataclasses.dataclass(frozen=True)
class TrainingPair:
  """Makes a training pair from a query and its prompts.

  Attributes:
    canvas_size: height and width of the canvas in pixels.
    patch_size: side of a patch in pixels.
    num_classes: number of classes, background included.
    palette_mode: mode of `palette.sample_palette`.
    mask_ratio: share of the patches that are hidden, 0 to 1.
    lower_half_share: probability, 0 to 1, that a pair instead hides all of the query's half, as evaluation does. Use 0
      to fine-tune the released weights. Training from random weights learns to read the prompt only with a value above
      0.
    augmentation: random changes to each sample.
    prompt_foreground: probability, 0 to 1, that a prompt's crop contains a pixel of a class that the query's crop
      shows, or of any class if it shows none of the prompt's. It replaces `foreground_crop` of the augmentation.
    unanswerable: rule for a class that the query's crop shows and no prompt's crop shows, so that nobody could know its
      color. "background": its pixels become background, as at inference, where prompts of one class ask for that class
      alone. "ignore": they do not count in the loss. "keep": they are asked for all the same.
    prompt_grid: n makes each prompt of n x n cells, crops around objects of n**2 samples, see `cells`; 0 makes each
      prompt of one sample. `prompt_foreground` does not concern cells.
  """

  canvas_size: tuple[int, int]
  patch_size: int
  num_classes: int
  palette_mode: str
  mask_ratio: float
  lower_half_share: float
  augmentation: Augmentation
  prompt_foreground: float = 0.0
  unanswerable: Unanswerable = "keep"
  prompt_grid: int = 0

  def __call__(self, prompts: Sequence[Sample], query: Sample, generator: np.random.Generator) -> Pair:
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    if generator.random() < self.lower_half_share:
      patch_mask = canvas.lower_half_mask(grid)
    else:
      patch_mask = canvas.random_patch_mask(generator, grid, self.mask_ratio)
    prompts, query = self._augment(prompts, query, generator)
    if self.unanswerable != "keep":
      shown = sorted({c for prompt in prompts for c in classes_in(prompt["label"])})
      other = IGNORE if self.unanswerable == "ignore" else 0
      query = {**query, "label": keep_classes(query["label"], shown, other)}
    return _make_pair(
      prompts, query, palette.sample_palette(generator, self.num_classes, self.palette_mode), patch_mask
    )

  def _augment(
    self, prompts: Sequence[Sample], query: Sample, generator: np.random.Generator
  ) -> tuple[list[Sample], Sample]:
    """Augments prompts and query. Crops of prompts depend on the query's crop if `prompt_foreground` says so."""
    size = self.canvas_size[1]
    if self.prompt_grid:
      query = augment(query, size, generator, self.augmentation)
      return self._augment_cells(prompts, generator), query
    if not self.prompt_foreground:
      prompts = [augment(prompt, size, generator, self.augmentation) for prompt in prompts]
      return prompts, augment(query, size, generator, self.augmentation)
    query = augment(query, size, generator, self.augmentation)
    asked = set(classes_in(query["label"]))
    augmentation = dataclasses.replace(self.augmentation, foreground_crop=self.prompt_foreground)
    shared = [sorted(asked.intersection(classes_in(prompt["label"]))) for prompt in prompts]
    return [
      augment(prompt, size, generator, augmentation, classes or None)
      for prompt, classes in zip(prompts, shared, strict=True)
    ], query

  def _augment_cells(self, samples: Sequence[Sample], generator: np.random.Generator) -> list[Sample]:
    """Returns prompts of augmented cells, each on a class that was shown least so far."""
    cell, shown = -(-self.canvas_size[1] // self.prompt_grid), collections.Counter[int]()
    augmentation = dataclasses.replace(self.augmentation, foreground_crop=1.0)
    cells = []
    for sample in samples:
      chosen = next_class(sample["label"], shown)
      cells.append(augment(sample, cell, generator, augmentation, [chosen]))
    count = self.prompt_grid**2
    return [assemble(cells[start : start + count], self.canvas_size[1]) for start in range(0, len(cells), count)]


@dataclasses.dataclass(frozen=True)
class EvaluationPair:
  """Makes a pair as inference does: one palette for all pairs, and the query's half hidden.

  Attributes:
    canvas_size: height and width of the canvas in pixels.
    patch_size: side of a patch in pixels.
    num_classes: number of classes, background included.
    prompt_grid: 0 shows whole images, resized to the square. n shows one window of the query at its size below prompts
      of n x n cells.
    windows: number of windows of each query; those of a query with more are drawn at random, and those of a query with
      fewer repeat.
    corners: whether each channel is a mask (`palette.corner_palette`), in place of the fixed palette.
  """

  canvas_size: tuple[int, int]
  patch_size: int
  num_classes: int
  prompt_grid: int = 0
  windows: int = 1
  corners: bool = False

  def __call__(self, prompts: Sequence[Sample], query: Sample, window: int = 0) -> Pair:
    size = self.canvas_size[1]
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    colors = (palette.corner_palette if self.corners else palette.fixed_palette)(self.num_classes)
    if self.prompt_grid:
      prompts, query = make_prompts(prompts, self.prompt_grid, size), self._window(query, window)
    else:
      prompts, query = [resize(prompt, size) for prompt in prompts], resize(query, size)
    return _make_pair(prompts, query, colors, canvas.lower_half_mask(grid))

  def _window(self, query: Sample, window: int) -> Sample:
    """Returns one of the windows that cover a query; the order of the windows is random but always the same."""
    size = self.canvas_size[1]
    query = padded(query, size)
    rows, cols = (window_starts(side, size) for side in query["label"].shape)
    order = np.random.default_rng(len(rows) * len(cols)).permutation(len(rows) * len(cols))
    top, left = (
      starts[place] for starts, place in zip((rows, cols), divmod(order[window % len(order)], len(cols)), strict=True)
    )
    place = np.s_[top : top + size, left : left + size]
    return {**query, "image": query["image"][place], "label": query["label"][place]}
