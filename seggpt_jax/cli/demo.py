"""Segments photographs by example; then circuit boards before and after fine-tuning on some of them. Draws pictures.

  seggpt demo

Uses the weights that come with the package and photographs of scikit-image. Prints every command before it runs it, so
that you can run them on your own images. Rerun to resume after an interruption.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags

from seggpt_jax.child_processes import start_command
from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.inference.outputs import write_json
from seggpt_jax.inference.pictures import overlay, titled_row, write_png
from seggpt_jax.palette import display_palette
from seggpt_jax.synthetic.boards import LABELINGS

_CLASSES = LABELINGS["etched"]
_RED = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)

# Labels of the demo's photographs, in pixels: x, y and radius of coins; corners of a polygon.
_COINS = (
  "44,54,21 100,57,19 155,51,23 216,51,22 276,52,20 335,44,29 45,124,20 103,126,19 153,127,18 206,124,20 270,118,25 "
  "337,125,19"
)
_MOTORCYCLE = (
  "92,210 100,198 140,205 138,155 150,147 165,162 220,170 240,168 255,185 285,195 345,188 357,190 400,165 440,155 "
  "470,150 465,130 490,110 495,80 515,80 540,100 520,100 535,115 560,130 575,118 582,138 562,148 555,180 550,195 "
  "580,260 600,268 645,300 670,345 685,400 678,440 640,450 600,440 560,410 530,370 510,325 505,300 515,270 495,225 "
  "475,240 475,300 470,345 440,375 400,380 345,375 335,432 325,435 330,375 290,365 270,380 230,400 190,400 150,380 "
  "125,340 120,300 130,265 150,245 110,245"
)

# XLA on CPUs asks for its memory again in every step; glibc should keep that memory (docs/performance.md).
_KEEP_MEMORY = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TOP_PAD_": "67108864",
  "MALLOC_TRIM_THRESHOLD_": "100000000000",
}


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Demo": [
      define_path("workdir", "Folder for boards, run and pictures.", default="demo_run"),
      flags.DEFINE_integer(
        "num_steps", 200, "Training steps, each below a second on two cores; half the boards.", 1, 10**6
      ),
    ]
  }


def main() -> None:
  """Runs the demo."""
  values = flags.FLAGS
  workdir, steps = Path(values.workdir), values.num_steps
  _segment_photographs(workdir / "photographs")
  boards, training = workdir / f"boards_{2 * steps}", workdir / f"run_{steps}"
  before, after = workdir / "before", workdir / "after"
  if not boards.exists():
    size = ("--num-train", str(2 * steps), "--num-val", "64", "--size", "96", "--scale", "2", "--most", "2")
    _run("boards", str(boards), *size, "--labels", "etched")
  queries, examples = ([f"{name}.png" for name in list_images(boards / split / "images")] for split in ("val", "train"))
  prompts = dict(zip(queries, itertools.cycle(examples), strict=False))
  mapping = workdir / "mapping.json"
  write_json(mapping, {query: [prompt] for query, prompt in prompts.items()})
  _infer("drawn", boards / "val", boards / "train", mapping, before)
  keys = (f"--config.data.path={boards}", f"--config.num_steps={steps}")
  _run("train", "--config", "demo", "--workdir", str(training), *keys)
  _infer(str(training), boards / "val", boards / "train", mapping, after)
  _draw_boards(workdir / "demo.png", boards, before, after, dict(itertools.islice(prompts.items(), 5)))
  print(f"\nIoU on {len(prompts)} held-out boards with one prompt each:")
  print(f"{'':<10}{'before':>8}{f'after {steps} steps':>18}")
  classes = [json.loads((results / "metrics.json").read_text())["classes"] for results in (before, after)]
  scores = [[entry["iou"] for entry in entries] for entries in classes]
  for name, *ious in zip((*_CLASSES, "mean"), *([*each, np.mean(each)] for each in scores), strict=True):
    print("{:<10}{:>8.3f}{:>18.3f}".format(name, *ious))
  print(
    "\nBefore training, the network has never seen a circuit board: all it has is the prompt, often of another color."
    "\nThe defects themselves, 2 % of the pixels, take more training than this: see docs/defects.md."
    f"\npictures: {workdir / 'photographs.png'}, {workdir / 'demo.png'}"
  )


def _run(*arguments: str) -> None:
  """Prints and runs one `seggpt` command in a process of its own."""
  line = f"seggpt {shlex.join(arguments)}"
  print(f"\n$ {line}", flush=True)
  status = start_command(arguments, _KEEP_MEMORY | os.environ).wait()
  if status:
    raise InputError(f"{line}: ended with status {status}")


def _infer(model_path: str, queries: Path, prompts: Path, mapping: Path, results: Path) -> None:
  """Segments a folder of images with prompts from another one."""
  _run(
    *("infer", "--model-path", model_path, "--dataset-dir", str(queries)),
    *("--prompt-img-dir", str(prompts / "images"), "--prompt-label-dir", str(prompts / "labels")),
    *("--mapping", str(mapping), "--outdir", str(results)),
  )


def _segment_photographs(folder: Path) -> None:
  """Labels one part of each photograph, lets the untrained network label another part, and draws both."""
  rows = photographs()
  for name, (prompt, mask, query) in rows.items():
    for kind, pixels in (("prompts/images", prompt), ("prompts/labels", mask), ("queries", query)):
      write_png(folder / kind / f"{name}.png", pixels)
  write_json(folder / "mapping.json", {f"{name}.png": [f"{name}.png"] for name in rows})
  _infer("small", folder / "queries", folder / "prompts", folder / "mapping.json", folder / "results")
  picture, parts = folder.with_suffix(".png"), []
  for name, (prompt, mask, query) in rows.items():
    found = read_labels(folder / "results" / "label" / f"{name}.png", LabelFormat())
    parts.append([prompt, overlay(prompt, mask, _RED), query, overlay(query, found, _RED)])
  _draw_rows(picture, ("prompt", "its mask", "query", "answer, without training"), parts, (192, 288))
  print(f"\nPhotographs, answered by the network as it comes: {picture}", flush=True)


def photographs() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Returns prompt, mask and query of each photograph of scikit-image that is shown."""
  try:
    from skimage import data
  except ImportError:
    raise InputError("scikit-image is not installed; pip install 'seggpt-jax[demo]' for its photographs") from None
  coins, page = (np.repeat(part[..., None], 3, axis=-1) for part in (data.coins(), data.page()))
  tissue, (left, right, _) = data.immunohistochemistry(), data.stereo_motorcycle()
  coins_mask, left_mask = np.zeros(coins.shape[:2], np.uint8), np.zeros(left.shape[:2], np.uint8)
  for x, y, radius in _points(_COINS):
    cv2.circle(coins_mask, (x, y), radius, 1, cv2.FILLED)
  cv2.fillPoly(left_mask, [np.asarray(_points(_MOTORCYCLE))], 1)
  # Tissue that took the brown stain absorbs blue and lets red pass; ink is darker than the paper around it.
  density = -np.log((tissue.astype(np.float32) + 1) / 256)
  stained = (cv2.GaussianBlur(density[..., 2] - density[..., 0], (0, 0), 3) > 0.25).astype(np.uint8)
  stained = cv2.morphologyEx(stained, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
  ink = cv2.adaptiveThreshold(page[..., 0], 1, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV, 25, 18)
  return {
    "motorcycle": (left, left_mask, right[:, ::-1]),
    "coins": (coins[:152], coins_mask[:152], coins[152:]),
    "tissue": (tissue[:, :256], stained[:, :256], tissue[:, 256:]),
    "page": (page[:, :192], ink[:, :192], page[:, 192:]),
  }


def _points(text: str) -> list[list[int]]:
  return [[int(value) for value in point.split(",")] for point in text.split()]


def _draw_boards(path: Path, boards: Path, before: Path, after: Path, prompts: dict[str, str]) -> None:
  """Draws one row for each query: prompt, its mask, query, truth, and both predictions."""
  colors = display_palette(len(_CLASSES))

  def labels(path: Path) -> np.ndarray:
    return colors[read_labels(path, LabelFormat())]

  rows = []
  for query, prompt in prompts.items():
    shown = (boards / "train", prompt), (boards / "val", query)
    pairs = [(read_image(folder / "images" / name), labels(folder / "labels" / name)) for folder, name in shown]
    rows.append([*pairs[0], *pairs[1], labels(before / "label" / query), labels(after / "label" / query)])
  _draw_rows(path, ("prompt", "its mask", "query", "truth", "before training", "after training"), rows, (128, 128))


def _draw_rows(path: Path, titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], shape: tuple[int, int]) -> None:
  """Draws a table of pictures, each resized to a height and width."""

  def tile(part: np.ndarray) -> np.ndarray:
    part = cv2.resize(np.ascontiguousarray(part), shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.pad(part, ((0, 6), (0, 6), (0, 0)), constant_values=255)

  first, *others = [[tile(part) for part in parts] for parts in rows]
  table = [titled_row(list(zip(titles, first, strict=True))), *(np.concatenate(row, axis=1) for row in others)]
  write_png(path, np.concatenate(table))
