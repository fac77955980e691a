"""The learning curve: the picture of a run has to show the logged numbers."""

import gc
import json

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from seggpt_jax.training.curves import draw_curves, read_metrics


def write(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def test_numbers_are_sorted_by_split_and_key_and_holes_left_out(tmp_path):
  path = write(
    tmp_path / "metrics.jsonl",
    [
      {"step": 2, "split": "train", "loss": 0.5, "miou": None},
      {"step": 4, "split": "train", "loss": 0.25, "miou": 0.5},
      {"step": 4, "split": "val", "loss": 0.75, "iou_1": 0.1},
    ],
  )
  assert read_metrics(path) == {
    "train": {"loss": [(2, 0.5), (4, 0.25)], "miou": [(4, 0.5)]},
    "val": {"loss": [(4, 0.75)], "iou_1": [(4, 0.1)]},
  }


def test_a_run_becomes_a_picture_and_an_empty_one_too(tmp_path):
  lines = [
    {"step": step, "split": split, "loss": 1 / step, "miou": 1 - 1 / step, "lr": 1e-3, "iou_0": 0.5}
    for step in range(1, 40)
    for split in ("train", "val")
  ]
  for name, some in (("full", lines), ("empty", [])):
    draw_curves(write(tmp_path / f"{name}.jsonl", some), tmp_path / f"{name}.png")
  pictures = [np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).astype(int) for name in ("full", "empty")]
  assert pictures[0].shape == pictures[1].shape
  # Figures are cycles; a run would collect many that grow with the log.
  assert not [each for each in gc.get_objects() if type(each) is Figure]
  assert (pictures[0] < 200).sum() > (pictures[1] < 200).sum() + 2000
