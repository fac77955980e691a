"""Prompts as the predictor takes them: arrays, Pillow images or files in, checked arrays of the network's size out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax import palette as palette_lib
from seggpt_jax.data.cells import make_prompts, zoomed
from seggpt_jax.data.images import read_image, upright_pixels
from seggpt_jax.data.labels import LabelFormat, classes_in, keep_classes, read_labels
from seggpt_jax.data.sources import Sample, check_size
from seggpt_jax.errors import InputError
from seggpt_jax.files import expand
from seggpt_jax.inference import tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.palette import IGNORE

Pixels = np.ndarray | Image.Image | str | os.PathLike  # an array, a Pillow image, or a file
Prompt = tuple[Pixels, Pixels]  # an image and its label map

_MAX_LABEL = 65_535  # the largest value of a 16-bit PNG


class PreparedPrompt(NamedTuple):
  """A checked prompt; made by `Predictor.prepare_prompt`.

  Attributes:
    image: uint8 `[H, W, 3]`.
    labels: class indices `[H, W]`, uint8 or uint16. Ignored pixels are background.
  """

  image: np.ndarray
  labels: np.ndarray

  def resized(self, size: tuple[int, int]) -> PreparedPrompt:
    """Returns the prompt at a size: height and width in pixels."""
    return PreparedPrompt(tiling.resize_image(self.image, size), tiling.resize_labels(self.labels, size))

  def zoomed(self, zoom: float | int) -> PreparedPrompt:
    """Returns the prompt at a scale, see `InferenceOptions.zoom`.

    Raises:
      InputError: it has more than 255 classes.
    """
    if self.labels.max() >= IGNORE:
      raise InputError(f"prompts: found label {self.labels.max()}, expected at most {IGNORE - 1} with a zoom")
    sample = zoomed({"image": self.image, "label": self.labels.astype(np.uint8)}, zoom)
    return ZoomedPrompt(sample["image"], sample["label"])


class ZoomedPrompt(PreparedPrompt):
  """A checked prompt at the scale of the network, made by `Predictor.prepare_prompt` with a zoom."""

  def zoomed(self, zoom: float | int) -> PreparedPrompt:
    """Returns the prompt itself."""
    return self


def cells_of(
  prompts: Sequence[PreparedPrompt], options: InferenceOptions, size: int, zoom: float | int | None = None
) -> tuple[UInt8[np.ndarray, "k s s 3"], UInt8[np.ndarray, "k s s"]]:
  """Returns prompts of cells around the objects of prompts, see `InferenceOptions.prompt_grid`.

  Args:
    prompts: the prompts, best first.
    options: zoom and grid.
    size: side S in pixels of the network's square.
    zoom: one of `options.zooms`, which shows only the classes that are looked for at this zoom; by default the first.

  Returns:
    Images and labels of K prompts.
  """
  zoom = options.zoom if zoom is None else zoom
  grid = options.grid_at(zoom)
  count = grid**2 * -(-len(prompts) // options.cells)
  samples: list[Sample] = []
  for scaled in (prompt.zoomed(options.zoom) for prompt in prompts):
    sample: Sample = {"image": scaled.image, "label": scaled.labels}
    if zoom != options.zoom:
      sample = zoomed(sample, zoom / options.zoom)  # prompts are kept at the first zoom
    if options.coarse_zoom:
      coarse = zoom == options.coarse_zoom
      known = [value for value in classes_in(sample["label"]) if (value in options.coarse_classes) == coarse]
      sample = {**sample, "label": keep_classes(sample["label"], known)}
    samples.append(sample)
  # Images that show no class of this zoom would waste cells.
  samples = [sample for sample in samples if sample["label"].any()] or samples
  samples = [samples[place % len(samples)] for place in range(count)]
  made = make_prompts(samples, grid, size)
  return np.stack([prompt["image"] for prompt in made]), np.stack([prompt["label"] for prompt in made])


def load_prompt(prompt: Prompt, name: str) -> PreparedPrompt:
  """Reads and checks a prompt, and turns ignored pixels (label 255) into background. Its size stays.

  Args:
    prompt: image and label map; a `PreparedPrompt` is returned as it is.
    name: name of the prompt, for error messages.

  Raises:
    InputError: the prompt is not an image with an integer label map of the same size.
  """
  if isinstance(prompt, PreparedPrompt):
    return prompt
  if len(prompt) != 2:
    raise InputError(f"{name}: found {len(prompt)} arrays, expected a pair of image and label map")
  image, labels = as_image(prompt[0], f"{name} image"), _as_labels(prompt[1], f"{name} labels")
  if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool) or labels.shape != image.shape[:2]:
    expected = f"integers {list(image.shape[:2])} as its image has"
    raise InputError(f"{name} labels: found {labels.dtype} {list(labels.shape)}, expected {expected}")
  if labels.min() < 0 or labels.max() > _MAX_LABEL:
    raise InputError(f"{name} labels: found values {labels.min()}..{labels.max()}, expected 0..{_MAX_LABEL}")
  known = np.where(labels == IGNORE, 0, labels).astype(np.uint8 if labels.max() <= 255 else np.uint16)
  if labels.max() == IGNORE and not known.any():
    logging.warning(
      "%s labels: found only 0 and %d, which marks ignored pixels, so nothing is foreground; pass a mask as labels > 0",
      *(name, IGNORE),
    )
  return PreparedPrompt(image, known)


def load_prompts(prompts: Sequence[Prompt]) -> list[PreparedPrompt]:
  """Reads and checks prompts; see `load_prompt`.

  Raises:
    InputError: there are none, or one is not an image with an integer label map of the same size.
  """
  if not len(prompts):
    raise InputError("prompts: found none, expected at least one pair of image and label map")
  return [load_prompt(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]


def as_image(image: Pixels, name: str) -> np.ndarray:
  """Returns the pixels, uint8 `[H, W, 3]`, of an array, a Pillow image or a file.

  Args:
    image: the image.
    name: name of the argument, for error messages.

  Raises:
    InputError: the file cannot be read, or the array is not uint8 `[H, W, 3]`.
  """
  if isinstance(image, str | os.PathLike):
    return read_image(Path(expand(image)))
  if isinstance(image, Image.Image):
    return upright_pixels(image, name)
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
    raise InputError(f"{name}: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
  return image


def _as_labels(labels: Pixels, name: str) -> np.ndarray:
  if isinstance(labels, str | os.PathLike):
    return read_labels(Path(expand(labels)), LabelFormat())
  if isinstance(labels, Image.Image):
    return LabelFormat().decode_image(labels, name)
  return np.asarray(labels)


def read_label_map(path: str | os.PathLike, image: np.ndarray, label_format: LabelFormat) -> np.ndarray:
  """Reads the label map of an image, uint8 `[H, W]`. Ignored pixels keep the label 255.

  Args:
    path: label file.
    image: the image `[H, W, 3]`.
    label_format: format of the label file.

  Raises:
    InputError: the file cannot be read, or its size is not the image's.
  """
  labels = read_labels(path, label_format)
  check_size(labels, image.shape[:2], str(path))
  return labels


def check_palette(palette: np.ndarray | None, num_classes: int) -> np.ndarray:
  """Returns the colors of the classes as uint8 `[N, 3]`.

  Args:
    palette: the user's colors `[N, 3]`, 0..255; None for `palette.fixed_palette`.
    num_classes: number of classes that need a color, background included.

  Raises:
    InputError: there are too few colors, two are the same, or a value is outside 0..255.
  """
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
