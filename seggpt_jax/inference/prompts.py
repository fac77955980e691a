"""Prompts as the predictor takes them: arrays, Pillow images or files in, checked arrays of the network's size out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer
from PIL import Image

from seggpt_jax import palette as palette_lib
from seggpt_jax.data.scale import Scale, make_prompts
from seggpt_jax.data.sources import Sample
from seggpt_jax.errors import InputError, warn_once
from seggpt_jax.files import expand
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_bytes, read_image, upright_pixels
from seggpt_jax.formats.labels import LabelFormat, check_size, classes_in, read_labels
from seggpt_jax.inference import heads, tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.model.adapter_files import StoredAdapter
from seggpt_jax.palette import IGNORE

Pixels = np.ndarray | Image.Image | str | os.PathLike  # an array, a Pillow image, or a file
Prompt = tuple[Pixels, Pixels]  # an image and its label map
_PIXELS = (np.ndarray, Image.Image, str, os.PathLike)

_MAX_LABEL = 65_535  # the largest value of a 16-bit PNG
# By scale: images and label maps of the prompts' tiles, or a learned prompt and its target.
PromptTiles = dict[Scale, tuple[np.ndarray, np.ndarray]]


class _Pair(NamedTuple):
  """An image and its label map."""

  image: np.ndarray
  labels: np.ndarray


class PreparedPrompt(_Pair):
  """A checked prompt; made by `Predictor.prepare_prompt`.

  Attributes:
    image: uint8 `[H, W, 3]`.
    labels: class indices `[H, W]`, uint8 or uint16. Ignored pixels are background.
    original: image and labels before any resizing, 255 where ignored, for a head (`heads.fit`); None without a head.
    zoom: the zoom that the pair is at.
  """

  original: heads.Labeled | None = None
  zoom: float | int = 1

  def __repr__(self) -> str:
    return f"{type(self).__name__}({self.labels.shape[0]} x {self.labels.shape[1]}, classes {classes_in(self.labels)})"

  def _keeping(self, original: heads.Labeled | None, zoom: float | int = 1) -> PreparedPrompt:
    """Keeps the original and the zoom with the pair, so that a prompt still unpacks into two."""
    self.original, self.zoom = original, zoom
    return self

  def at(self, scale: Scale, tile: tuple[int, int]) -> PreparedPrompt:
    """Returns the prompt at a scale.

    Args:
      scale: the scale.
      tile: height and width of the network's square.

    Raises:
      InputError: there is a zoom, and the prompt has more than 255 classes.
    """
    if not scale.zoom:
      size = scale.size(self.labels.shape, tile)
      image, labels = tiling.resize_image(self.image, size), tiling.resize_labels(self.labels, size)
      return PreparedPrompt(image, labels)._keeping(self.original)
    if self.labels.max() >= IGNORE:
      raise InputError(f"prompts: found label {self.labels.max()}, expected at most {IGNORE - 1} with a zoom")
    sample: Sample = {"image": self.image, "label": self.labels.astype(np.uint8, copy=False)}
    sample = Scale(scale.zoom / self.zoom).zoomed_sample(sample)
    return PreparedPrompt(sample["image"], sample["label"])._keeping(self.original, scale.zoom)


def tiles_of(prompts: Sequence[PreparedPrompt], scale: Scale, tile: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns what the network is shown of prompts: tiles of them, or cells around their objects.

  Args:
    prompts: the prompts, best first.
    scale: the scale.
    tile: height and width of the network's square.

  Returns:
    Images `[K, H, W, 3]` and labels `[K, H, W]`.
  """
  shown = [prompt.at(scale, tile) for prompt in prompts]
  if not scale.zoom:
    images, labels = (np.concatenate([tiling.cut(each, scale.split) for each in a]) for a in zip(*shown, strict=True))
    return images, labels
  samples: list[Sample] = [{"image": prompt.image, "label": prompt.labels} for prompt in shown]
  # Images that show no class would waste cells.
  samples = [sample for sample in samples if sample["label"].any()] or samples
  count = scale.cells * -(-len(prompts) // scale.cells)
  made = make_prompts([samples[place % len(samples)] for place in range(count)], scale.prompt_grid, min(tile))
  return np.stack([prompt["image"] for prompt in made]), np.stack([prompt["label"] for prompt in made])


def load_prompt(prompt: Prompt, name: str) -> PreparedPrompt:
  """Reads and checks a prompt, and turns ignored pixels (label 255) into background. Its size stays.

  Args:
    prompt: image and label map; a `PreparedPrompt` is returned as it is.
    name: name of the prompt, for error messages and warnings.

  Raises:
    InputError: the prompt is not an image with an integer label map of the same size.
  """
  if isinstance(prompt, PreparedPrompt):
    return prompt
  if not isinstance(prompt, tuple | list) or len(prompt) != 2:
    found = f"{len(prompt)} arrays" if isinstance(prompt, tuple | list) else _kind(prompt)
    raise InputError(f"{name}: found {found}, expected a pair of image and label map")
  image = as_image(prompt[0], f"{name} image")
  labels = _as_labels(prompt[1], image.shape[:2], f"{name} labels")
  known = without_ignored(labels).astype(np.uint8 if labels.max() <= 255 else np.uint16)
  if not known.any():
    warn_once(f"{_file_or(prompt, name)}: no foreground in the label map, so the prompt shows no class")
  return PreparedPrompt(image, known)._keeping(heads.shrunk(image, labels))


def without_ignored(labels: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
  """Returns a label map with background in place of ignored pixels, as prompts need it."""
  return np.where(labels == IGNORE, np.zeros((), labels.dtype), labels)


def load_prompts(prompts: Sequence[Prompt]) -> list[tuple[str, PreparedPrompt]]:
  """Reads and checks prompts; see `load_prompt`.

  Returns:
    The name of each prompt for warnings, which is the label file or such as `prompts[0]`, and the prompt.

  Raises:
    InputError: the list is empty, or a prompt is not an image with an integer label map of the same size.
  """
  check_pairs(prompts)
  if not len(prompts):
    raise InputError("prompts: found none, expected at least one pair of image and label map")
  names = [f"prompts[{index}]" for index in range(len(prompts))]
  loaded = [load_prompt(prompt, name) for name, prompt in zip(names, prompts, strict=True)]
  return [(_file_or(prompt, name), each) for name, prompt, each in zip(names, prompts, loaded, strict=True)]


def _file_or(prompt: Prompt, name: str) -> str:
  """Returns the label file of a prompt, if it has one, or else a name."""
  return os.fspath(prompt[1]) if len(prompt) == 2 and isinstance(prompt[1], str | os.PathLike) else name


def check_pairs(prompts: Any) -> None:
  """Refuses a single pair, or a single image, in place of a list of pairs.

  Raises:
    InputError: the prompts are not a list of pairs.
  """
  single = (
    isinstance(prompts, tuple | list) and len(prompts) == 2 and all(isinstance(each, _PIXELS) for each in prompts)
  )
  if single or isinstance(prompts, (PreparedPrompt, *_PIXELS)):
    found = _kind(prompts) if isinstance(prompts, _PIXELS) else "one pair of image and label map"
    raise InputError(f"prompts: found {found}, expected a list of pairs, such as [(image, labels)]")


def _kind(value: Any) -> str:
  return f"an array {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def as_image(image: Pixels, name: str) -> np.ndarray:
  """Returns the pixels, uint8 `[H, W, 3]`, of an array, a Pillow image or a file.

  Raises:
    InputError: the file cannot be read, or the array is not uint8 `[H, W, 3]` or `[H, W]`.
  """
  if isinstance(image, str | os.PathLike):
    return read_image(expand(image))
  if isinstance(image, Image.Image):
    return upright_pixels(image, name)
  image = np.asarray(image)
  if image.ndim == 2 or image.shape[2:] == (1,):
    image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
    raise InputError(f"{name}: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
  return image


def list_several(images: Any) -> tuple[list[Pixels], bool]:
  """Returns the images of a list, of a folder, or a single one, and whether it is single.

  Raises:
    InputError: the folder has no images.
  """
  if isinstance(images, str | os.PathLike) and os.path.isdir(folder := expand(images)):
    return list(list_images(folder).values()), False
  return (list(images), False) if isinstance(images, list | tuple) else ([images], True)


def _as_labels(labels: Pixels, shape: tuple[int, ...], name: str) -> Integer[np.ndarray, "h w"]:
  """Returns the class indices of an array, a Pillow image or a file, of the height and width of its image."""
  if not isinstance(labels, str | os.PathLike | Image.Image):
    return _class_indices(np.asarray(labels), shape, name)
  data = read_bytes(labels) if not isinstance(labels, Image.Image) else None
  try:
    found = LabelFormat().decode_image(labels, name) if data is None else LabelFormat().decode(data, os.fspath(labels))
  except InputError as error:
    # The message names the settings of the commands, which a caller in Python has not.
    raise InputError(f"{error}; in Python, pass an array of class indices instead, such as mask > 0") from error
  check_size(found, shape, name if data is None else os.fspath(labels))
  return found


def _class_indices(labels: np.ndarray, shape: tuple[int, ...], name: str) -> Integer[np.ndarray, "h w"]:
  """Checks an array of class indices of any number type, which may have an axis of length 1 or equal channels."""
  found = f"{labels.dtype} {list(labels.shape)}"
  if labels.ndim == 3 and labels.shape == (1, *shape):
    labels = labels[0]
  elif labels.ndim == 3 and labels.shape in {(*shape, 1), (*shape, 3)}:
    if (labels != labels[..., :1]).any():
      raise InputError(f"{name}: found colors {list(labels.shape)}, expected class indices [H, W]")
    labels = labels[..., 0]
  if labels.dtype.kind not in "biuf" or labels.shape != tuple(shape):
    raise InputError(f"{name}: found {found}, expected integers {list(shape)} as its image has")
  if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
    raise InputError(f"{name}: found {found} with fractions, expected integers; pass a mask as labels > 0.5")
  if labels.min() < 0 or labels.max() > _MAX_LABEL:
    raise InputError(f"{name}: found values {labels.min():g}..{labels.max():g}, expected 0..{_MAX_LABEL}")
  labels = labels.astype(np.uint16)
  if labels.max() == IGNORE and not without_ignored(labels).any():
    raise InputError(
      f"{name}: found label value {IGNORE} and no class, expected class indices 0..{IGNORE - 1}: {IGNORE} marks "
      "ignored pixels; pass a mask of 0 and 255 as labels > 0"
    )
  return labels


def read_label_map(path: str | os.PathLike, image: np.ndarray, label_format: LabelFormat) -> np.ndarray:
  """Reads the label map of an image, uint8 `[H, W]`. Ignored pixels keep the label 255.

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


def learned_tiles(
  learned: StoredAdapter, palette: np.ndarray | None, options: InferenceOptions
) -> tuple[PromptTiles, np.ndarray, np.ndarray]:
  """Returns the learned prompt for each scale, its palette and its classes."""
  if palette is not None:
    raise InputError("palette cannot be combined with a learned prompt, which has its own colors")
  if options.foreground_tiles:
    raise InputError("foreground_tiles cannot be combined with a learned prompt, which is not cut into tiles")
  image, target = (np.asarray(learned.params[f"prompt.{part}"])[None] for part in ("image", "target"))
  classes = np.arange(learned.num_classes)
  return dict.fromkeys(options.scales, (image, target)), palette_lib.fixed_palette(len(classes)), classes
