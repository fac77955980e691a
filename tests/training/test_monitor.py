"""The monitor: numbers that can be plotted and pictures that can be looked at."""

from __future__ import annotations

import functools
import gc
import json

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training.monitor import Monitor, draw_curves, draw_panels, read_metrics
from seggpt_jax.training.trackers import TRACKERS

CONFIG = VARIANTS["tiny"]
HEIGHT, WIDTH = CONFIG.canvas_size


def batch_and_colors(size=2):
  generator = np.random.default_rng(0)
  batch = {
    "images": generator.integers(0, 256, (size, HEIGHT, WIDTH, 3), np.uint8),
    "labels": generator.integers(0, 2, (size, HEIGHT, WIDTH), np.uint8),
    "palette": np.array([[[0, 0, 0], [250, 250, 0]]] * size, np.uint8),
    "patch_mask": np.broadcast_to(np.arange(CONFIG.grid[0])[:, None] >= CONFIG.grid[0] // 2, (size, *CONFIG.grid)),
    "valid": np.ones(size, bool),
  }
  return batch, generator.uniform(0, 255, (size, HEIGHT, WIDTH, 3)).astype(np.float32)


def test_a_panel_is_image_masked_target_target_prediction_and_decoded_prediction():
  batch, colors = batch_and_colors()
  picture = draw_panels(batch, colors, CONFIG)
  assert picture.shape == (2 * HEIGHT + 4, 5 * WIDTH + 4 * 4, 3)
  image, masked, target, raw, decoded = (picture[:HEIGHT, k * (WIDTH + 4) :][:, :WIDTH] for k in range(5))
  palette = batch["palette"][0]
  np.testing.assert_array_equal(image, batch["images"][0])
  np.testing.assert_array_equal(target, palette[batch["labels"][0]])
  np.testing.assert_array_equal(masked[: HEIGHT // 2], target[: HEIGHT // 2])
  assert (masked[HEIGHT // 2 :] == 128).all()
  np.testing.assert_array_equal(raw, np.round(colors[0]).astype(np.uint8))
  nearest = np.linalg.norm(colors[0][:, :, None] - palette.astype(float), axis=-1).argmin(axis=-1)
  np.testing.assert_array_equal(decoded, palette[nearest])


def monitor_in(folder, step=0, enabled=True, tracker="tensorboard"):
  return Monitor(folder, 10, step, enabled, functools.partial(TRACKERS[tracker], folder, step, {"seed": 0}))


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_panels_and_events_are_files(tmp_path):
  monitor = monitor_in(tmp_path, step=0, enabled=True)
  monitor.log(5, "train", {"loss": 0.5, "miou": 0.25, "lr": 1e-4, "pairs_per_second": 7.0})
  monitor.log(5, "val", {"loss": 0.75, "miou": 0.5, "iou_0": 0.5, "iou_1": float("nan")})
  monitor.picture(5, "val", draw_panels(*batch_and_colors(), CONFIG))
  monitor.close()
  train, val = read(tmp_path / "metrics.jsonl")
  assert train == {"step": 5, "split": "train", "loss": 0.5, "miou": 0.25, "lr": 1e-4, "pairs_per_second": 7.0}
  assert val["iou_1"] is None  # no JSON reader knows NaN
  assert Image.open(tmp_path / "panels" / "val_0000005.png").size == (5 * WIDTH + 16, 2 * HEIGHT + 4)
  assert list(tmp_path.glob("events*"))


def test_resuming_drops_what_was_logged_after_the_checkpoint_and_half_a_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps({"step": step, "split": "train"}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "s')
  monitor_in(tmp_path, step=2, enabled=True).close()
  assert [line["step"] for line in read(path)] == [1, 2]


def test_other_processes_write_nothing(tmp_path):
  monitor = monitor_in(tmp_path, step=0, enabled=False)
  monitor.advance()
  monitor.log(1, "train", {"loss": 0.5, "miou": 0.25, "lr": 1e-4, "pairs_per_second": 7.0})
  monitor.picture(1, "train", draw_panels(*batch_and_colors(), CONFIG))
  monitor.say("nothing")
  monitor.close()
  assert not list(tmp_path.iterdir())


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
