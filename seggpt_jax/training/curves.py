"""Draws RUN/metrics.jsonl: loss, mIoU and learning rate over the steps of a run."""

from __future__ import annotations

import gc
import operator
import os
from pathlib import Path
from typing import Any

from seggpt_jax.files import parse_json, write_whole


def read_metrics(path: str | os.PathLike) -> dict[str, dict[str, list[tuple[int, float]]]]:
  """Returns the numbers of a run by split and key, each as (step, value).

  Values that are not numbers and lines that are damaged are left out.

  Args:
    path: path of RUN/metrics.jsonl.
  """
  series: dict[str, dict[str, list[tuple[int, float]]]] = {}
  for line in Path(path).read_text("utf-8", errors="replace").splitlines():
    try:
      entry: dict[str, Any] = parse_json(line)
      step, split = operator.index(entry.pop("step")), str(entry.pop("split"))
    except (ValueError, KeyError, TypeError, AttributeError):
      continue  # the line was cut short, or is not from us
    for key, value in entry.items():
      if isinstance(value, int | float) and abs(step) < 2**53 and abs(value) < 1e300:  # NaN and infinity are not drawn
        series.setdefault(split, {}).setdefault(key, []).append((step, value))
  return series


def draw_curves(metrics: str | os.PathLike, path: str | os.PathLike) -> None:
  """Draws loss, mIoU with the IoU of each class, and learning rate.

  Args:
    metrics: path of RUN/metrics.jsonl.
    path: PNG file to write.

  Raises:
    InputError: the file cannot be written.
  """
  _draw(read_metrics(metrics), Path(path))
  # A figure is a cycle of references with all numbers in it. Python's own collections are so rare in a process with
  # many objects that several figures would be kept, which grow with the run.
  gc.collect()


def _draw(series: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
  """Draws series of numbers, see `draw_curves`."""
  # Unlike pyplot, the object interface has no global state and needs no display.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(15, 4.2), layout="constrained")
  axes = figure.subplots(1, 3)
  for axis, key, title in zip(axes, ("loss", "miou", "lr"), ("loss", "mIoU", "learning rate"), strict=True):
    for split, marker in (("train", ""), ("val", "o")):
      points = series.get(split, {}).get(key, [])
      if points:
        # A training curve of thousands of points is noisy: it is thin, and drawn below that of the validation.
        axis.plot(*zip(*points, strict=True), marker=marker, markersize=4, linewidth=1.0, label=split, zorder=2)
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.3)
  for key, points in series.get("val", {}).items():
    if key.startswith("iou_") and len(series["val"]) <= 16:
      axes[1].plot(*zip(*points, strict=True), linewidth=0.8, linestyle="--", label=f"val class {key[4:]}")
  if any(value > 0 for split in series.values() for _, value in split.get("loss", [])):
    axes[0].set_yscale("log")
  axes[1].set_ylim(0, 1)
  for axis in axes[:2]:
    if axis.lines:
      axis.legend(fontsize="small")
  write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100), replace=True)
