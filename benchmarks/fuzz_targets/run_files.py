"""Files that runs keep, as small files that commands read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.fuzz_targets import Target
from benchmarks.fuzz_targets.datasets import gray, make_target
from seggpt_jax.data import groups, ledger
from seggpt_jax.data.sources import FileSource
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import folder_layout
from seggpt_jax.inference import trained
from seggpt_jax.inference.trained import OperatingPoint, label_format, read_operating_point, write_operating_point
from seggpt_jax.training import monitor
from tests.formats import annotation_folders as folders


def _operating_point(folder: Path) -> Target:
  write_operating_point(folder, OperatingPoint((0.5, 1.0), 12), {"images": 3})

  def read() -> None:
    point = read_operating_point(folder)
    assert point is not None and all(0 < value <= 1e6 for value in point.sensitivity) and 0 <= point.least_area < 2**31

  return make_target(folder, ["operating_point.json"], read)


def _run_config(folder: Path) -> Target:
  """Returns a run as inference reads it: its config and operating point. The weights are never read."""
  run = folder / "run"
  for item in ("params", "config"):
    (run / "best" / "5" / item).mkdir(parents=True)
  data = {"labels": "table", "threshold": -1, "table": [0, 5, 7], "ignore": [255], "zoom": 0.5, "prompt_grid": 2}
  data |= {"path": "x", "kind": "folder"}
  (run / "config.json").write_text(json.dumps({"data": data, "num_steps": 3}))
  write_operating_point(run, OperatingPoint((0.5, 1.0), 12), {})

  def read() -> None:
    options, found = trained.trained_options(run), label_format(run)
    assert options.zoom >= 0 and np.isfinite(options.zoom) and len(found.table) < 256

  return make_target(folder, ["run/config.json", "run/operating_point.json"], read)


def _metrics(folder: Path) -> Target:
  lines = [{"step": step, "split": "train", "loss": 1 / (1 + step), "lr": 1e-3, "epoch": 0} for step in range(4)]
  lines += [{"step": 3, "split": "val", "loss": 0.5, "miou": 0.4, "iou_1": 0.4, "iou_2": None}]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

  def read() -> None:
    monitor.draw_curves(folder / "metrics.jsonl", folder / "curves.png")
    kept = (folder / "metrics.jsonl").read_bytes()
    monitor._drop_lines_after(folder / "metrics.jsonl", 2)
    assert all(
      step <= 2
      for series in monitor.read_metrics(folder / "metrics.jsonl").values()
      for points in series.values()
      for step, _ in points
    )
    (folder / "metrics.jsonl").write_bytes(kept)

  return make_target(folder, ["metrics.jsonl"], read)


def _ledger(folder: Path) -> Target:
  (folder / "progress").mkdir()
  (folder / "progress/1-of-1.jsonl").write_text('{"name": "a", "counts": [1, 2]}\n{"name": "b", "bad": "x"}\n')
  settings = {"labels": "index", "top-k": 1, "size": [1, 2]}
  (folder / "run.json").write_text(json.dumps(settings))

  def read() -> None:
    for name, entry in ledger.read_entries(folder / "progress").items():
      assert entry["name"] == name
    ledger.check_settings(folder / "run.json", ledger.read_note(folder / "run.json") or {}, settings, "x")

  return make_target(folder, ["progress/1-of-1.jsonl", "run.json"], read)


def _class_table(folder: Path) -> Target:
  """Returns the file that keeps the classes of all samples."""
  folders.save_image(folder / "images" / "a.png")
  (folder / "labels").mkdir()
  (folder / "labels/a.png").write_bytes(gray(folders.expected()))
  source = FileSource(folder_layout(folder), 3, LabelFormat())
  expected = groups.scan_classes(source, folder / "classes.npz")

  def read() -> None:
    found = groups.scan_classes(source, folder / "classes.npz")
    np.testing.assert_array_equal(found, expected)

  return make_target(folder, ["classes.npz"], read)


TARGETS: dict[str, Callable[[Path], Target]] = {
  "operating_point": _operating_point,
  "run_config": _run_config,
  "metrics": _metrics,
  "ledger": _ledger,
  "class_table": _class_table,
}
