"""Draws the pictures of the guides.

  python docs/pictures.py [FOLDER]

Without FOLDER: photographs of scikit-image and the small network: docs/images/{classes,how,saved,tiles,video}.png.
FOLDER is where notebooks/start.ipynb was run: docs/images/{before_after,first,inspect,panel}.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from skimage import data
from skimage.color import rgb2hed

import seggpt_jax
from seggpt_jax.cli import demo
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.written import RECORD

IMAGES = Path(__file__).parent / "images"
_GAP = 4  # pixels


def draw_photographs() -> None:
  """Draws the pictures with photographs."""
  predictor = seggpt_jax.Predictor.from_checkpoint("small")

  def ask(prompt: np.ndarray, mask: np.ndarray, query: np.ndarray, **options: int) -> Prediction:
    return predictor.predict(query, [(prompt, mask)], **options)

  motorcycle, coins = (demo.photographs()[name] for name in ("motorcycle", "coins"))
  prompt, mask, query = coins
  found = ask(*coins)
  confidence = np.repeat((255 * found.confidence()).astype(np.uint8)[..., None], 3, axis=-1)
  row = [prompt, demo._painted(prompt, mask), query, found.colored(), found.overlay(), confidence]
  _table("saved", ("prompt", "its label", "query", "color", "overlay", "confidence"), row, (126, 200))

  hubble = data.hubble_deep_field()[:430]
  galaxies = (cv2.GaussianBlur(hubble.max(-1).astype(np.float32), (0, 0), 1.5) > 90).astype(np.uint8)
  galaxies = cv2.morphologyEx(galaxies, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
  prompt, mask, query = hubble[:, :500], galaxies[:, :500], hubble[:, 500:]
  answers = [demo._painted(query, ask(prompt, mask, query, split=split).labels) for split in (1, 2, 4)]
  row = [demo._painted(prompt, mask), *answers]
  row = [picture[230:400, 130:330] for picture in row]  # small things need a close look
  _table("tiles", ("prompt and its label", "whole image", "--split 2", "--split 4"), row, (272, 320))

  tissue = data.immunohistochemistry()
  blue, _, brown = np.moveaxis(cv2.GaussianBlur(rgb2hed(tissue).astype(np.float32), (0, 0), 2.5), -1, 0)
  empty = (cv2.GaussianBlur(tissue.min(-1).astype(np.float32), (0, 0), 2) > 190).astype(np.uint8)
  empty = cv2.morphologyEx(empty, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
  labels = cv2.medianBlur(np.select([empty > 0, brown > 0.1, blue > 0.036], [3, 1, 2], 0).astype(np.uint8), 7)
  prompt, mask, query = tissue[:, :256], labels[:, :256], tissue[:, 256:]
  row = []
  for image, shown in ((prompt, mask), (query, ask(prompt, mask, query).labels)):
    colored = 0.35 * image + 0.65 * demo.display_palette(4)[shown]
    row += [image, np.where(shown[..., None] > 0, colored, image).astype(np.uint8)]
  _table("classes", ("prompt", "its label", "query", "prediction"), row, (400, 200))

  first, mask, other = motorcycle
  row = [demo._painted(first, mask)]
  for step, image in enumerate((other[:, ::-1], first, other[:, ::-1]), 1):  # the camera comes nearer and tilts
    moved = cv2.getRotationMatrix2D((370, 300), 5 * step, 1 + 0.1 * step) - [[0, 0, 32 * step], [0, 0, 0]]
    frame = cv2.warpAffine(image, moved, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    row.append(demo._painted(frame, ask(first, mask, frame).labels))
  _table("video", ("first frame and its label", "later frames", "", ""), row, (200, 296))
  _draw_idea(motorcycle, demo._painted(other, ask(*motorcycle).labels))


def _draw_idea(question: tuple[np.ndarray, np.ndarray, np.ndarray], answer: np.ndarray) -> None:
  """Draws how a prompt and a query become an answer."""
  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  prompt, mask, query = question
  figure = plt.figure(figsize=(10, 3.6))
  for left, bottom, picture, title in (
    (0.01, 0.53, prompt, "prompt: an image ..."),
    (0.25, 0.53, demo._painted(prompt, mask), "... and what you mark in it"),
    (0.13, 0.02, query, "query: the next image"),
    (0.77, 0.28, answer, "prediction"),
  ):
    axis = figure.add_axes((left, bottom, 0.22, 0.4))
    axis.imshow(picture)
    axis.set_title(title, fontsize=10)
    axis.axis("off")
  canvas = figure.add_axes((0, 0, 1, 1), zorder=-1)
  canvas.set(xlim=(0, 1), ylim=(0, 1))
  canvas.axis("off")
  canvas.add_patch(FancyBboxPatch((0.57, 0.36), 0.12, 0.26, boxstyle="round,pad=0.01", fc="#dce9f7", ec="#3b6ea5"))
  canvas.text(0.63, 0.49, "network\nno training", ha="center", va="center", fontsize=11)
  for start, end in (((0.48, 0.7), (0.555, 0.56)), ((0.36, 0.22), (0.555, 0.42)), ((0.705, 0.49), (0.765, 0.49))):
    canvas.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#3b6ea5", "lw": 1.8})
  figure.savefig(IMAGES / "how.png", dpi=100)
  _write("how", _open(IMAGES / "how.png"))


def draw_tutorial(folder: Path) -> None:
  """Draws the pictures of the tutorial."""
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


def _table(name: str, titles: tuple[str, ...], row: list[np.ndarray], shape: tuple[int, int]) -> None:
  """Writes pictures in a row, each under its title and of one height and width."""
  demo._draw_rows(IMAGES / f"{name}.new.png", titles, [row], shape)
  _write(name, _open(IMAGES / f"{name}.new.png"))
  (IMAGES / f"{name}.new.png").unlink()
  (IMAGES / RECORD).unlink()


def _write(name: str, pixels: np.ndarray, scale: int = 1, width: int = 0) -> None:
  """Writes a picture of at most 256 colors, which keeps it small."""
  image = Image.fromarray(pixels)
  if width:
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
  image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
  image.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
  draw_tutorial(Path(sys.argv[1])) if sys.argv[1:] else draw_photographs()
