"""Trains a tiny SegGPT on synthetic circuit boards for a few minutes, segments held-out boards, draws a picture.

  make demo

It runs the commands a user would run and prints each of them. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from seggpt_jax.data.boards import LABELINGS
from seggpt_jax.data.sources import list_images, read_image, read_labels
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.palette import fixed_palette

_WORKDIR = flags.DEFINE_string("workdir", "demo_run", "Where boards, run and pictures go.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 500, "Training steps; a quarter of a second each on two cores.", 1)
_NUM_BOARDS = flags.DEFINE_integer("num_boards", 1500, "Boards to train on.", 2)

_CLASSES = LABELINGS["copper"]
_EXPLANATION = """
What you see: a network of 1.1 million parameters that knew nothing when this began. A few minutes teach it to tell
copper from board, which is what most pixels are about. They do not teach it to find the defects, which cover 2 % of
the pixels, nor to read the prompt: it paints what all these boards have in common. Segmenting by example takes far
more training, or the released weights: convert them with convert_torch_weights.py (see README).
"""


def run(*command: str) -> None:
  """Runs a Python command as a user would, and shows it."""
  print(f"\n$ python {shlex.join(command)}", flush=True)
  status = subprocess.run([sys.executable, *command], check=False).returncode
  if status:
    raise InputError(f"python {shlex.join(command)}: ended with status {status}")


def picture(boards: Path, results: Path, names: list[str], prompt: str, side: int = 128) -> Image.Image:
  """One row for each query: prompt, its mask, query, prediction, truth."""
  colours, title, gap = fixed_palette(len(_CLASSES)), 16, 6

  def labels(path: Path) -> np.ndarray:
    return colours[read_labels(path)]

  prompt_image = read_image(boards / "train" / "images" / f"{prompt}.png")
  prompt_mask = labels(boards / "train" / "labels" / f"{prompt}.png")
  rows = []
  for name in names:
    query = read_image(boards / "val" / "images" / f"{name}.png")
    prediction = labels(results / "label" / f"{name}.png")
    rows.append([prompt_image, prompt_mask, query, prediction, labels(boards / "val" / "labels" / f"{name}.png")])
  sheet = Image.new("RGB", (5 * (side + gap) - gap, title + len(rows) * (side + gap) - gap), "white")
  draw = ImageDraw.Draw(sheet)
  for column, text in enumerate(("prompt", "its mask", "query", "prediction", "truth")):
    draw.text((column * (side + gap), 2), text, fill="black")
    for row, parts in enumerate(rows):
      tile = Image.fromarray(parts[column]).resize((side, side), Image.Resampling.NEAREST)
      sheet.paste(tile, (column * (side + gap), title + row * (side + gap)))
  return sheet


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  workdir = Path(_WORKDIR.value)
  boards = workdir / f"boards_{_NUM_BOARDS.value}"
  training = workdir / f"run_{_NUM_BOARDS.value}_{_NUM_STEPS.value}"
  results = workdir / "results"
  if not boards.exists():
    size = ("--num_train", str(_NUM_BOARDS.value), "--num_val", "64", "--size", "64", "--scale", "1.5", "--most", "2")
    run("-m", "seggpt_jax.data.boards", str(boards), *size, "--labels", "copper")
  steps = str(_NUM_STEPS.value)
  run(
    *("train.py", "--config", "configs/demo.py", "--workdir", str(training), f"--config.data.path={boards}"),
    *(f"--config.num_steps={steps}", f"--config.optim.first_cycle={int(steps) + 50}"),
  )
  prompts = boards / "train"
  run(
    *("infer.py", "--model-path", str(training), "--dataset-dir", str(boards / "val")),
    *("--prompt-img-dir", str(prompts / "images"), "--prompt-label-dir", str(prompts / "labels")),
    *("--outdir", str(results)),
  )
  scores = json.loads((results / "metrics.json").read_text())
  names = list(list_images(boards / "val" / "images"))
  sheet = picture(boards, results, names[:4], prompt=next(iter(list_images(prompts / "images"))))
  sheet.save(workdir / "demo.png")
  print(f"\nIoU on {len(names)} held-out boards, one prompt, after {steps} steps from random weights:")
  for name, entry in zip(_CLASSES, scores["classes"], strict=True):
    print(f"  {name:<8} {entry['iou']:.3f}")
  print(_EXPLANATION)
  print(f"picture: {workdir / 'demo.png'}")


if __name__ == "__main__":
  run_main(main)
