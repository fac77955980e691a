"""Random-access sources of labelled images: files in, `Sample`s of NumPy arrays out.

A source has a length and gives the i-th sample; nothing is read before it is asked for. Training, inference and
preparation all read pixels through `read_image` and `read_labels`, so a file means the same thing everywhere.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from seggpt_jax.errors import InputError

LabelMode = Literal["index", "binary"]
LABEL_MODES = ("index", "binary")


class Sample(TypedDict):
  """One labelled image: `image` uint8 [H, W, 3], `label` uint8 class indices [H, W], `name`."""

  image: np.ndarray
  label: np.ndarray
  name: str


@runtime_checkable
class Source(Protocol):
  """Random access to labelled images."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample: ...


@functools.cache
def _extensions() -> frozenset[str]:
  return frozenset(ext for ext, plugin in Image.registered_extensions().items() if plugin in Image.OPEN)


def list_images(directory: str | Path) -> dict[str, Path]:
  """The image files of a folder by name without ending, sorted.

  Raises:
    InputError: no such folder, no images in it, or two files that differ only in their ending.
  """
  directory = Path(directory)
  if not directory.is_dir():
    raise InputError(f"{directory}: folder not found, expected a folder of images")
  found: dict[str, Path] = {}
  for path in sorted(directory.iterdir()):
    if path.suffix.lower() not in _extensions() or path.name.startswith(".") or not path.is_file():
      continue
    if path.stem in found:
      raise InputError(f"{path}: found {found[path.stem].name} beside it, expected one file for each name")
    found[path.stem] = path
  if not found:
    raise InputError(f"{directory}: found no images, expected files that Pillow can read, such as .png or .jpg")
  return found


def _open(path: Path) -> Image.Image:
  try:
    image = Image.open(path)
    image.load()
    return ImageOps.exif_transpose(image)
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected an image") from error
  except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise InputError(f"{path}: cannot be read as an image: {error}") from error


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
  """Pixels of an image file as RGB, upright.

  Greyscale is repeated over the channels, 16-bit is scaled to 8, alpha is dropped.

  Raises:
    InputError: the file is missing or unreadable; names it.
  """
  image = _open(Path(path))
  if image.mode.startswith("I") or image.mode == "F":
    # Pillow's own conversion would clip 16-bit values at 255.
    values = np.asarray(image, np.float64)
    scale = 257.0 if image.mode != "F" and values.max(initial=0) > 255 else 1.0
    image = Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8))
  return np.array(image.convert("RGB"))


_BINARY_HINT = "masks of 0 and 255 are read with labels=binary, and 127 as the threshold if they are JPEG"


def read_labels(path: str | Path, mode: LabelMode = "index", threshold: int = 0) -> UInt8[np.ndarray, "h w"]:
  """Class indices of a label file.

  Args:
    path: a single-channel image: greyscale of 1, 8 or 16 bits, or palette indices.
    mode: "index" takes values as class indices 0..254; "binary" makes class 1 of everything above the threshold.
    threshold: for "binary", 0..255. Masks stored as JPEG hold values near 0 and near 255: 127 tells them apart.

  Raises:
    InputError: the file is missing or unreadable, has several channels, or for "index" a value beyond 254 or the
      lossy JPEG format; names it.
  """
  path = Path(path)
  image = _open(path)
  if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
    raise InputError(f"{path}: found mode {image.mode}, expected a single-channel label image of class indices")
  values: Integer[np.ndarray, "h w"] = np.asarray(image).astype(np.int64)
  if mode == "binary":
    return (values > threshold).astype(np.uint8)
  if path.suffix.lower() in (".jpg", ".jpeg"):
    # Compression changes values by a few: class 1 is not 1 any more.
    raise InputError(f"{path}: found JPEG, expected class indices in a format without loss; {_BINARY_HINT}")
  if values.max(initial=0) > 254:
    raise InputError(f"{path}: found label value {values.max()}, expected class indices 0..254; {_BINARY_HINT}")
  return values.astype(np.uint8)


class FolderSource:
  """A folder with `images/` and `labels/`, files matched by name without ending.

  Args:
    directory: the folder, for example DATASET/train.
    num_classes: N, background included; labels must lie in 0..N-1.
    labels: how label files are read, see `read_labels`.
    threshold: likewise.
    limit: take only the first so many images by name; -1 takes all.

  Raises:
    InputError: a folder or a partner is missing; and, when a sample is read, whatever is wrong with its files.
  """

  def __init__(
    self,
    directory: str | Path,
    num_classes: int,
    labels: LabelMode = "index",
    threshold: int = 0,
    limit: int = -1,
  ):
    directory = Path(directory)
    images, label_files = list_images(directory / "images"), list_images(directory / "labels")
    for name, path in images.items():
      if name not in label_files:
        raise InputError(f"{path}: found no label for it, expected {directory / 'labels' / name}.* beside it")
    for name, path in label_files.items():
      if name not in images:
        raise InputError(f"{path}: found no image for it, expected {directory / 'images' / name}.* beside it")
    names = list(images) if limit < 0 else list(images)[:limit]
    self._files = [(name, images[name], label_files[name]) for name in names]
    self.num_classes = num_classes
    self._labels, self._threshold = labels, threshold

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Sample:
    name, image_path, label_path = self._files[index]
    image = read_image(image_path)
    label = read_labels(label_path, self._labels, self._threshold)
    if label.shape != image.shape[:2]:
      (found_h, found_w), (h, w) = label.shape, image.shape[:2]
      raise InputError(f"{label_path}: found {found_w} x {found_h} pixels, expected {w} x {h} as its image has")
    if label.max() >= self.num_classes:
      raise InputError(
        f"{label_path}: found label value {label.max()}, expected 0..{self.num_classes - 1} "
        f"(data.num_classes={self.num_classes}); {_BINARY_HINT}"
      )
    return {"image": image, "label": label, "name": name}
