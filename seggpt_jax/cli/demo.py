"""Finds the defects of synthetic circuit boards: by example alone, then fine-tuned, with a picture of both.

  seggpt demo

Starts from the small weights that come with the package, and prints every command before it runs it, so that you can
run them on your own images. Rerun to resume after an interruption.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

import seggpt_jax
from seggpt_jax.cli.path_flags import define_path
from seggpt_jax.data.images import list_images, read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError
from seggpt_jax.inference import pictures
from seggpt_jax.metrics import inspection
from seggpt_jax.palette import display_palette

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
      flags.DEFINE_integer("num_steps", 450, "Training steps, about half a second each on two cores.", 1),
      flags.DEFINE_integer("num_boards", 400, "Number of boards to train on.", 2),
    ]
  }


def main() -> None:
  """Runs the demo."""
  values = flags.FLAGS
  workdir, steps = Path(values.workdir), values.num_steps
  boards = workdir / f"boards_{values.num_boards}"
  training = workdir / f"run_{values.num_boards}_{steps}"
  before, after = workdir / "before", workdir / "after"
  if not boards.exists():
    size = ("--num-train", str(values.num_boards), "--num-val", "32", "--size", "192", "--scale", "2", "--most", "2")
    _run("boards", str(boards), *size)
  _infer("small", boards, before)
  _run(
    *("train", "--config", "defects_small", "--workdir", str(training), f"--config.data.path={boards}"),
    *("--config.data.num_classes=2", f"--config.num_steps={steps}", "--config.eval_every=150"),
  )
  _infer(str(training), boards, after)
  _picture(boards, before, after).save(workdir / "demo.png")
  print(f"\nDefects of {len(list_images(boards / 'val' / 'images'))} boards that no training has seen:")
  print(f"{'':<34}{'before':>8}{f'after {steps} steps':>18}")
  rates = [_rates(boards, folder) for folder in (before, after)]
  for name in rates[0]:
    print("{:<34}{:>8.2f}{:>18.2f}".format(name, *(rate[name] for rate in rates)))
  print(f"\npicture: {workdir / 'demo.png'}")


def _run(*arguments: str) -> None:
  """Prints and runs one `seggpt` command in a process of its own."""
  line = f"seggpt {shlex.join(arguments)}"
  print(f"\n$ {line}", flush=True)
  paths = [str(Path(seggpt_jax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
  environment = _KEEP_MEMORY | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
  status = subprocess.run([sys.executable, "-m", "seggpt_jax", *arguments], env=environment, check=False).returncode
  if status:
    raise InputError(f"{line}: ended with status {status}")


def _infer(model_path: str, boards: Path, results: Path) -> None:
  """Segments the held-out boards, prompted by boards of the training part."""
  prompts = boards / "train"
  _run(
    *("infer", "--model-path", model_path, "--dataset-dir", str(boards / "val")),
    *("--prompt-img-dir", str(prompts / "images"), "--prompt-label-dir", str(prompts / "labels")),
    *("--outdir", str(results)),
  )


def _rates(boards: Path, results: Path) -> dict[str, float]:
  """Returns how many boards' defects were found, and how well."""
  names = [f"{name}.png" for name in list_images(boards / "val" / "images")]
  ious = [inspection.foreground_iou(_labels(results / "label" / n), _labels(boards / "val/labels" / n)) for n in names]
  found = inspection.judge(ious)
  return {"boards caught, IoU at least 0.3": found.catch_rate, "mean IoU of a board's defects": found.mean_iou}


def _labels(path: Path) -> np.ndarray:
  return read_labels(path, LabelFormat())


def _picture(boards: Path, before: Path, after: Path, rows: int = 5, side: int = 192) -> Image.Image:
  """Draws one row for each of the first boards: the board, its defects, and those found before and after training."""
  title, gap, color = 16, 6, display_palette(2)
  titles = ("board", "its defects", "found before training", "found after training")
  sheet = Image.new("RGB", (len(titles) * (side + gap) - gap, title + rows * (side + gap) - gap), "white")
  draw = ImageDraw.Draw(sheet)
  for column, text in enumerate(titles):
    draw.text((column * (side + gap), 2), text, fill="black")
  for row, (name, path) in enumerate(list(list_images(boards / "val" / "images").items())[:rows]):
    board = read_image(path)
    parts = (boards / "val" / "labels", before / "label", after / "label")
    panels = [board, *(pictures.overlay(board, _labels(part / f"{name}.png"), color) for part in parts)]
    for column, panel in enumerate(panels):
      tile = Image.fromarray(panel).resize((side, side), Image.Resampling.NEAREST)
      sheet.paste(tile, (column * (side + gap), title + row * (side + gap)))
  return sheet
