"""From labeled images to a training pair: pure functions of samples and a NumPy generator.

Image and label of a sample go through the same geometry: images are resampled smoothly, labels by nearest neighbor.
Colors are not painted here: a pair carries its labels and its palette, and the device does the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from seggpt_jax import canvas, palette
from seggpt_jax.data.augment import Augmentation, augment
from seggpt_jax.data.labels import IGNORE
from seggpt_jax.data.sources import Sample


class Pair(TypedDict):
  """A query with each of its K prompts over it: K canvases before they are painted, small integers for the device.

  `images` uint8 [K, 2S, S, 3], `labels` uint8 [K, 2S, S], `palette` uint8 [K, N, 3], `patch_mask` bool [K, rows, cols];
  palette and patch mask are the same K times.
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray


def resize(sample: Sample, size: int) -> Sample:
  """Resizes to a square of `size` pixels, bicubic for the image and nearest for the label."""
  if sample["image"].shape[:2] == (size, size):
    return sample
  image = Image.fromarray(sample["image"]).resize((size, size), Image.Resampling.BICUBIC)
  label = Image.fromarray(sample["label"]).resize((size, size), Image.Resampling.NEAREST)
  return {**sample, "image": np.asarray(image), "label": np.asarray(label)}


def ask(sample: Sample, asked: int | None) -> Sample:
  """Leaves one class of a label and makes background of the others; None leaves them all.

  What is to be ignored stays so.
  """
  if asked is None:
    return sample
  label = sample["label"]
  return {**sample, "label": np.where((label == asked) | (label == IGNORE), label, np.uint8(0))}


def make_pair(
  prompts: Sequence[Sample],
  query: Sample,
  colors: UInt8[np.ndarray, "n 3"],
  patch_mask: Bool[np.ndarray, "rows cols"],
) -> Pair:
  """Stacks each prompt over the query; all halves are painted with the same palette.

  Args:
    prompts: K samples of the canvas square's size.
    query: likewise.
    colors: palette.
    patch_mask: True where the target is hidden.
  """
  count = len(prompts)
  return {
    "images": np.stack([canvas.stack(prompt["image"], query["image"]) for prompt in prompts]),
    "labels": np.stack([canvas.stack(prompt["label"], query["label"]) for prompt in prompts]),
    "palette": np.repeat(colors[None], count, axis=0),
    "patch_mask": np.repeat(patch_mask[None], count, axis=0),
  }


@dataclasses.dataclass(frozen=True)
class TrainingPair:
  """Makes a training pair of a query and its prompts.

  Attributes:
    canvas_size: height and width in pixels.
    patch_size: in pixels.
    num_classes: N, background included.
    palette_mode: see `palette.sample_palette`.
    mask_ratio: share of all patches that is hidden.
    lower_half_share: probability that a pair hides the query's half instead, as evaluation does. The released weights
      are best fine-tuned with 0; a start from random weights needs it to learn to read the prompt at all.
    augmentation: how samples are varied.
  """

  canvas_size: tuple[int, int]
  patch_size: int
  num_classes: int
  palette_mode: str
  mask_ratio: float
  lower_half_share: float
  augmentation: Augmentation

  def __call__(self, prompts: Sequence[Sample], query: Sample, generator: np.random.Generator) -> Pair:
    size = self.canvas_size[1]
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    if generator.random() < self.lower_half_share:
      patch_mask = canvas.lower_half_mask(grid)
    else:
      patch_mask = canvas.random_patch_mask(generator, grid, self.mask_ratio)
    return make_pair(
      [augment(prompt, size, generator, self.augmentation) for prompt in prompts],
      augment(query, size, generator, self.augmentation),
      palette.sample_palette(generator, self.num_classes, self.palette_mode),
      patch_mask,
    )


@dataclasses.dataclass(frozen=True)
class EvaluationPair:
  """Makes a pair as inference does: whole images, the fixed palette, the query's half hidden."""

  canvas_size: tuple[int, int]
  patch_size: int
  num_classes: int

  def __call__(self, prompts: Sequence[Sample], query: Sample) -> Pair:
    size = self.canvas_size[1]
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    colors = palette.fixed_palette(self.num_classes)
    prompts = [resize(prompt, size) for prompt in prompts]
    return make_pair(prompts, resize(query, size), colors, canvas.lower_half_mask(grid))
