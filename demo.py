"""Segments synthetic circuit boards by example, fine-tunes on some of them, segments again, draws a picture.

  make demo

It starts from the small weights that come with the package, runs the commands a user would run and prints each of
them. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from seggpt_jax.compilation import keep_programs
from seggpt_jax.data.images import list_images, read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.palette import fixed_palette
from seggpt_jax.synthetic.boards import LABELINGS

_WORKDIR = flags.DEFINE_string("workdir", "demo_run", "Where boards, run and pictures go.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 200, "Training steps; less than a second each on two cores.", 1)
_NUM_BOARDS = flags.DEFINE_integer("num_boards", 400, "Boards to train on.", 2)

_CLASSES = LABELINGS["etched"]

# XLA on CPUs asks for its memory anew in every step; glibc had better keep it than give it back (docs/training.md).
_KEEP_MEMORY = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TOP_PAD_": "67108864",
  "MALLOC_TRIM_THRESHOLD_": "100000000000",
}


def run(*command: str) -> None:
  """Runs a Python command as a user would, and shows it."""
  print(f"\n$ python {shlex.join(command)}", flush=True)
  status = subprocess.run([sys.executable, *command], env=_KEEP_MEMORY | os.environ, check=False).returncode
  if status:
    raise InputError(f"python {shlex.join(command)}: ended with status {status}")


def infer(model_path: str | Path, boards: Path, mapping: Path, results: Path) -> list[float]:
  """Segments the held-out boards with one prompt each; the IoU of each class."""
  prompts = boards / "train"
  run(
    *("infer.py", "--model-path", str(model_path), "--dataset-dir", str(boards / "val")),
    *("--prompt-img-dir", str(prompts / "images"), "--prompt-label-dir", str(prompts / "labels")),
    *("--mapping", str(mapping), "--outdir", str(results)),
  )
  return [entry["iou"] for entry in json.loads((results / "metrics.json").read_text())["classes"]]


def picture(boards: Path, before: Path, after: Path, prompts: dict[str, str], side: int = 128) -> Image.Image:
  """One row for each query: prompt, its mask, query, truth, and both predictions."""
  colors, title, gap = fixed_palette(len(_CLASSES)), 16, 6
  titles = ("prompt", "its mask", "query", "truth", "before training", "after training")

  def labels(path: Path) -> np.ndarray:
    return colors[read_labels(path, LabelFormat())]

  sheet = Image.new("RGB", (len(titles) * (side + gap) - gap, title + len(prompts) * (side + gap) - gap), "white")
  draw = ImageDraw.Draw(sheet)
  for column, text in enumerate(titles):
    draw.text((column * (side + gap), 2), text, fill="black")
  for row, (query, prompt) in enumerate(prompts.items()):
    parts = (
      read_image(boards / "train" / "images" / prompt),
      labels(boards / "train" / "labels" / prompt),
      read_image(boards / "val" / "images" / query),
      labels(boards / "val" / "labels" / query),
      labels(before / "label" / query),
      labels(after / "label" / query),
    )
    for column, part in enumerate(parts):
      tile = Image.fromarray(part).resize((side, side), Image.Resampling.NEAREST)
      sheet.paste(tile, (column * (side + gap), title + row * (side + gap)))
  return sheet


def main(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  workdir, steps = Path(_WORKDIR.value), _NUM_STEPS.value
  boards = workdir / f"boards_{_NUM_BOARDS.value}"
  training = workdir / f"run_{_NUM_BOARDS.value}_{steps}"
  before, after = workdir / "before", workdir / "after"
  if not boards.exists():
    size = ("--num_train", str(_NUM_BOARDS.value), "--num_val", "64", "--size", "96", "--scale", "2", "--most", "2")
    run("-m", "seggpt_jax.data.boards", str(boards), *size, "--labels", "etched")
  queries, examples = ([f"{name}.png" for name in list_images(boards / split / "images")] for split in ("val", "train"))
  prompts = dict(zip(queries, itertools.cycle(examples), strict=False))
  mapping = workdir / "mapping.json"
  mapping.write_text(json.dumps({query: [prompt] for query, prompt in prompts.items()}, indent=1))
  scores_before = infer("small", boards, mapping, before)
  run(
    *("train.py", "--config", "configs/demo.py", "--workdir", str(training), f"--config.data.path={boards}"),
    f"--config.num_steps={steps}",
  )
  scores_after = infer(training, boards, mapping, after)
  picture(boards, before, after, dict(itertools.islice(prompts.items(), 5))).save(workdir / "demo.png")
  print(f"\nIoU on {len(prompts)} held-out boards with one prompt each:")
  print(f"{'':<10}{'before':>8}{f'after {steps} steps':>18}")
  for name, *scores in zip(_CLASSES, scores_before, scores_after, strict=True):
    print("{:<10}{:>8.3f}{:>18.3f}".format(name, *scores))
  print("{:<10}{:>8.3f}{:>18.3f}".format("mean", np.mean(scores_before), np.mean(scores_after)))
  print(
    "\nBefore training the network has never seen a circuit board: all it knows is the prompt, often of another color."
    "\nThe defects themselves, 2 % of the pixels, take more training than this: see docs/small.md."
    f"\npicture: {workdir / 'demo.png'}"
  )


if __name__ == "__main__":
  run_main(main)
