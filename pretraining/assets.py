"""Packs pictures for pretraining: objects with opacity become cut-outs, photographs become grounds; for maintainers.

python -m pretraining.assets FOLDER runs/assets

Finds all PNG, JPEG and WebP files below the folder. docs/small.md names the packages that the packaged weights saw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from pretraining.photographs import FILES
from seggpt_jax.cli.main import run
from seggpt_jax.errors import InputError

ARGUMENTS = ("FOLDER", "OUT")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_GROUND, _CUTOUT = 384, 96  # sides in pixels
_REGIONS = 6  # colors of a photograph, before rare ones are left out


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines no flags: the command has none."""
  return {}


def main(folder: str, out: str) -> None:
  """Writes the cut-outs, grounds and regions of all pictures below a folder."""
  paths = (path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in _ENDINGS)
  # Wallpapers lie side by side in several sizes, named by them: one of each is enough.
  found = {str(path.parent) if path.stem[:1].isdigit() else str(path): path for path in paths}
  things, grounds, left_out = [], [], 0
  for path in tqdm(list(found.values()), unit="picture"):
    try:
      with Image.open(path) as image:
        if "A" in image.getbands() or "transparency" in image.info:
          things += _cutout(np.asarray(image.convert("RGBA")))
        elif min(image.size) >= _GROUND:
          grounds += _squares(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
      left_out += 1
      tqdm.write(f"{path}: left out, {error}")
  if not things or not grounds:
    raise InputError(f"{folder}: found {len(things)} cut-outs, {len(grounds)} grounds, expected some of each")
  Path(out).mkdir(parents=True, exist_ok=True)
  regions = [_regions(ground) for ground in tqdm(grounds, unit="ground")]
  for name, arrays in zip(FILES, (grounds, regions, things), strict=True):
    target = Path(out) / f"{name}.npy"
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
      np.save(file, np.stack(arrays))
    os.replace(partial, target)
  print(f"{out}: {len(things)} cut-outs, {len(grounds)} grounds, {left_out} files left out")


def _cutout(image: UInt8[np.ndarray, "h w 4"]) -> Iterator[UInt8[np.ndarray, "side side 4"]]:
  """Yields a thing in the middle of a square, if it is neither nearly empty nor a full rectangle."""
  rows, cols = (np.flatnonzero((image[..., 3] > 127).any(axis=axis)) for axis in (1, 0))
  if not len(rows):
    return
  image = image[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
  if min(image.shape[:2]) < 24 or not 0.15 < (image[..., 3] > 127).mean() < 0.93:
    return
  height, width = image.shape[:2]
  top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
  image = cv2.copyMakeBorder(image, top, top, left, left, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
  yield cv2.resize(image, (_CUTOUT, _CUTOUT), interpolation=cv2.INTER_AREA)


def _squares(image: Image.Image) -> Iterator[UInt8[np.ndarray, "side side 3"]]:
  """Yields the square in the middle of a photograph, and parts of a large one."""
  width, height = image.size
  side = min(width, height)
  boxes = [((width - side) // 2, (height - side) // 2, side)]
  if side >= 2 * _GROUND:
    half = side // 2
    boxes += [(left, top, half) for left in (0, width // 2 - half // 2, width - half) for top in (0, height - half)]
  for left, top, length in boxes:
    square = np.asarray(
      image.resize((_GROUND, _GROUND), Image.Resampling.BOX, (left, top, left + length, top + length))
    )
    if square.std() > 8:
      yield square


def _regions(ground: UInt8[np.ndarray, "side side 3"]) -> UInt8[np.ndarray, "side side"]:
  """Divides a photograph into regions of like color, from 1; small ones become 0."""
  smooth = cv2.pyrMeanShiftFiltering(ground, 12, 24)
  colors = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
  cv2.setRNGSeed(0)
  stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
  _, labels, _ = cv2.kmeans(colors, _REGIONS, None, stop, 2, cv2.KMEANS_PP_CENTERS)
  labels = cv2.medianBlur(labels.reshape(ground.shape[:2]).astype(np.uint8) + 1, 9)
  shares = np.bincount(labels.ravel(), minlength=_REGIONS + 1) / labels.size
  labels[shares[labels] < 0.02] = 0
  return labels


if __name__ == "__main__":
  run("pretraining.assets", "python -m pretraining.assets")
