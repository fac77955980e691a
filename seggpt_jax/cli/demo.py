"""Segments synthetic circuit boards by example, fine-tunes on some of them, segments again, and draws a picture.

  seggpt demo

Starts from the small weights that come with the package, and prints every command before it runs it, so that you can
run them on your own images. Rerun to resume after an interruption.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from seggpt_jax.child_processes import start_command
from seggpt_jax.cli.path_flags import define_path
from seggpt_jax.data.images import list_images, read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError
from seggpt_jax.inference.outputs import write_json
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.palette import display_palette
from seggpt_jax.synthetic.boards import LABELINGS

_CLASSES = LABELINGS["etched"]

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
      flags.DEFINE_integer("num_steps", 200, "Training steps, less than a second each on two cores.", 1, 10**6),
      flags.DEFINE_integer("num_boards", 400, "Number of boards to train on.", 2, 10**6),
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
    size = ("--num-train", str(values.num_boards), "--num-val", "64", "--size", "96", "--scale", "2", "--most", "2")
    _run("boards", str(boards), *size, "--labels", "etched")
  queries, examples = ([f"{name}.png" for name in list_images(boards / split / "images")] for split in ("val", "train"))
  prompts = dict(zip(queries, itertools.cycle(examples), strict=False))
  mapping = workdir / "mapping.json"
  write_json(mapping, {query: [prompt] for query, prompt in prompts.items()})
  scores_before = _infer("drawn", boards, mapping, before)
  _run(
    *("train", "--config", "demo", "--workdir", str(training)),
    *(f"--config.data.path={boards}", f"--config.num_steps={steps}"),
  )
  scores_after = _infer(str(training), boards, mapping, after)
  sheet = _picture(boards, before, after, dict(itertools.islice(prompts.items(), 5)))
  write_png(workdir / "demo.png", np.asarray(sheet))
  print(f"\nIoU on {len(prompts)} held-out boards with one prompt each:")
  print(f"{'':<10}{'before':>8}{f'after {steps} steps':>18}")
  for name, *scores in zip(_CLASSES, scores_before, scores_after, strict=True):
    print("{:<10}{:>8.3f}{:>18.3f}".format(name, *scores))
  print("{:<10}{:>8.3f}{:>18.3f}".format("mean", np.mean(scores_before), np.mean(scores_after)))
  print(
    "\nBefore training, the network has never seen a circuit board: all it has is the prompt, often of another color."
    "\nThe defects themselves, 2 % of the pixels, take more training than this: see docs/small.md."
    f"\npicture: {workdir / 'demo.png'}"
  )


def _run(*arguments: str) -> None:
  """Prints and runs one `seggpt` command in a process of its own."""
  line = f"seggpt {shlex.join(arguments)}"
  print(f"\n$ {line}", flush=True)
  status = start_command(arguments, _KEEP_MEMORY | os.environ).wait()
  if status:
    raise InputError(f"{line}: ended with status {status}")


def _infer(model_path: str, boards: Path, mapping: Path, results: Path) -> list[float]:
  """Segments the held-out boards with one prompt each, and returns the IoU of each class."""
  prompts = boards / "train"
  _run(
    *("infer", "--model-path", model_path, "--dataset-dir", str(boards / "val")),
    *("--prompt-img-dir", str(prompts / "images"), "--prompt-label-dir", str(prompts / "labels")),
    *("--mapping", str(mapping), "--outdir", str(results)),
  )
  return [entry["iou"] for entry in json.loads((results / "metrics.json").read_text())["classes"]]


def _picture(boards: Path, before: Path, after: Path, prompts: dict[str, str], side: int = 128) -> Image.Image:
  """Draws one row for each query: prompt, its mask, query, truth, and both predictions."""
  colors, title, gap = display_palette(len(_CLASSES)), 16, 6
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
