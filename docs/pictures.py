"""Draws the pictures of the tutorial from the files that notebooks/start.ipynb leaves behind.

  python docs/pictures.py FOLDER

FOLDER is where the notebook was run. Writes docs/images/{first,inspect,panel,before_after}.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = Path(__file__).parent / "images"
_GAP = 4  # pixels


def main(folder: Path) -> None:
  """Writes all pictures."""
  before, after = (
    json.loads((folder / name / "metrics.json").read_text())["per_image"] for name in ("before", "after")
  )
  ranked = sorted(before, key=lambda name: before[name]["miou"])
  shown = [*ranked[-1:-4:-1], ranked[0]]
  _write("first", _column([_open(folder / "before" / "concat" / f"{name}.png") for name in shown]))
  sheet = _open(folder / "inspect" / "inspect.png")
  _write("inspect", sheet[: sheet.shape[0] * 36 // 100], width=1000)
  panels = sorted((folder / "run" / "panels").glob("*.png"))
  _write("panel", _open(panels[-1])[:390])
  gained = sorted(before, key=lambda name: before[name]["miou"] - after[name]["miou"])[:3]
  rows = [_before_and_after(folder, name) for name in gained]
  _write("before_after", _column(rows), scale=2)


def _before_and_after(folder: Path, name: str) -> np.ndarray:
  """Returns a row of query, ground truth in white, and both predictions over the query."""
  data = next(path.parent for path in folder.glob("*/val"))
  truth = 255 * _open(data / "val" / "labels" / f"{name}.png")
  overlays = [_open(folder / run / "overlay" / f"{name}.png") for run in ("before", "after")]
  return _row([_open(data / "val" / "images" / f"{name}.png"), truth, *overlays])


def _open(path: Path) -> np.ndarray:
  return np.asarray(Image.open(path).convert("RGB"))


def _row(pictures: list[np.ndarray]) -> np.ndarray:
  gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
  return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def _column(pictures: list[np.ndarray]) -> np.ndarray:
  gap = np.full((_GAP, pictures[0].shape[1], 3), 255, np.uint8)
  return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=0)


def _write(name: str, pixels: np.ndarray, scale: int = 1, width: int = 0) -> None:
  """Writes a picture of at most 256 colors, which keeps it small."""
  image = Image.fromarray(pixels)
  if width:
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
  image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
  image.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
  main(Path(sys.argv[1]))
