"""From labelled images to a training pair: pure functions of samples and a NumPy generator.

Image and label of a sample go through the same geometry: images are resampled smoothly, labels by nearest neighbour.
Colours are not painted here: a pair carries its labels and its palette, and the device does the rest.
"""

from __future__ import annotations

import dataclasses
from typing import TypedDict

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from seggpt_jax import canvas, palette
from seggpt_jax.data.sources import Sample


class Pair(TypedDict):
  """A canvas before it is painted, all of it small integers for the way to the device.

  `images` uint8 [2S, S, 3], `labels` uint8 [2S, S], `palette` uint8 [N, 3], `patch_mask` bool [rows, cols].
  """

  images: np.ndarray
  labels: np.ndarray
  palette: np.ndarray
  patch_mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How strongly training samples are varied; every value at 0 or False switches its part off.

  Attributes:
    resize: side in pixels that samples are resized to before the crop; the canvas square if 0.
    flip_horizontal: mirror left and right with probability 1/2.
    flip_vertical: mirror top and bottom with probability 1/2.
    brightness: factor drawn from 1 - b .. 1 + b.
    contrast: likewise.
    saturation: likewise.
    blur: Gaussian radius in pixels drawn from 0..blur.
  """

  resize: int = 0
  flip_horizontal: bool = False
  flip_vertical: bool = False
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  blur: float = 0.0


def resize(sample: Sample, size: int) -> Sample:
  """Resizes to a square of `size` pixels, bicubic for the image and nearest for the label."""
  if sample["image"].shape[:2] == (size, size):
    return sample
  image = Image.fromarray(sample["image"]).resize((size, size), Image.Resampling.BICUBIC)
  label = Image.fromarray(sample["label"]).resize((size, size), Image.Resampling.NEAREST)
  return {**sample, "image": np.asarray(image), "label": np.asarray(label)}


def random_crop(sample: Sample, size: int, generator: np.random.Generator) -> Sample:
  """Cuts a random square of `size` pixels out of a sample that is at least as large."""
  height, width = sample["label"].shape
  top, left = generator.integers(height - size + 1), generator.integers(width - size + 1)
  window = np.s_[top : top + size, left : left + size]
  return {**sample, "image": sample["image"][window], "label": sample["label"][window]}


def random_flip(sample: Sample, generator: np.random.Generator, horizontal: bool, vertical: bool) -> Sample:
  """Mirrors image and label alike."""
  step_y = -1 if vertical and generator.random() < 0.5 else 1
  step_x = -1 if horizontal and generator.random() < 0.5 else 1
  return {**sample, "image": sample["image"][::step_y, ::step_x], "label": sample["label"][::step_y, ::step_x]}


def random_appearance(sample: Sample, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """Varies brightness, contrast, saturation and sharpness of the image; the label stays."""
  image = Image.fromarray(np.ascontiguousarray(sample["image"]))
  for enhance, strength in (
    (ImageEnhance.Brightness, augmentation.brightness),
    (ImageEnhance.Contrast, augmentation.contrast),
    (ImageEnhance.Color, augmentation.saturation),
  ):
    if strength:
      image = enhance(image).enhance(generator.uniform(1.0 - strength, 1.0 + strength))
  if augmentation.blur:
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.0, augmentation.blur)))
  return {**sample, "image": np.asarray(image)}


def augment(sample: Sample, size: int, generator: np.random.Generator, augmentation: Augmentation) -> Sample:
  """The whole chain for one training sample: resize, crop to the canvas square, flip, vary its appearance."""
  sample = resize(sample, augmentation.resize or size)
  sample = random_crop(sample, size, generator)
  sample = random_flip(sample, generator, augmentation.flip_horizontal, augmentation.flip_vertical)
  return random_appearance(sample, generator, augmentation)


def make_pair(
  prompt: Sample,
  query: Sample,
  colours: np.ndarray,
  patch_mask: np.ndarray,
) -> Pair:
  """Stacks the prompt over the query; both halves are painted with the same palette.

  Args:
    prompt: sample of the canvas square's size.
    query: likewise.
    colours: palette, uint8 [N, 3].
    patch_mask: bool [rows, cols], True where the target is hidden.
  """
  return {
    "images": canvas.stack(prompt["image"], query["image"]),
    "labels": canvas.stack(prompt["label"], query["label"]),
    "palette": colours,
    "patch_mask": patch_mask,
  }


@dataclasses.dataclass(frozen=True)
class TrainingPair:
  """Makes a training pair of two samples.

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

  def __call__(self, prompt: Sample, query: Sample, generator: np.random.Generator) -> Pair:
    size = self.canvas_size[1]
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    if generator.random() < self.lower_half_share:
      patch_mask = canvas.lower_half_mask(grid)
    else:
      patch_mask = canvas.random_patch_mask(generator, grid, self.mask_ratio)
    return make_pair(
      augment(prompt, size, generator, self.augmentation),
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

  def __call__(self, prompt: Sample, query: Sample) -> Pair:
    size = self.canvas_size[1]
    grid = canvas.grid_size(self.canvas_size, self.patch_size)
    colours = palette.fixed_palette(self.num_classes)
    return make_pair(resize(prompt, size), resize(query, size), colours, canvas.lower_half_mask(grid))
