"""Shows a run: a progress bar, RUN/metrics.jsonl, curves, image panels, bad files, and an experiment tracker."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, UInt8
from tqdm import tqdm

from seggpt_jax import canvas, palette
from seggpt_jax.data.pipeline import Batch
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json, write_whole
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.trackers import Tracker


def read_metrics(path: str | os.PathLike) -> dict[str, dict[str, list[tuple[int, float]]]]:
  """Returns the numbers of a run by split and key, each as (step, value).

  Values that are not numbers and lines that are damaged are left out.
  """
  series: dict[str, dict[str, list[tuple[int, float]]]] = {}
  for _, entry in read_lines(path):
    step, split = entry.pop("step"), str(entry.pop("split"))
    for key, value in entry.items():
      if isinstance(value, int | float) and abs(step) < 2**53 and abs(value) < 1e300:  # NaN and infinity are not drawn
        series.setdefault(split, {}).setdefault(key, []).append((step, value))
  return series


def read_lines(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the whole lines of a metrics.jsonl, if there is one, as text and as values; a kill may have cut the last."""
  path = Path(path)
  for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError, KeyError, TypeError):
      entry = parse_json(line)
      operator.index(entry["step"])
      if "split" in entry:
        yield line, entry


def draw_curves(metrics: str | os.PathLike, path: str | os.PathLike) -> None:
  """Draws loss, mIoU with the IoU of each class, and learning rate.

  Raises:
    InputError: the file cannot be written.
  """
  _draw(read_metrics(metrics), Path(path))
  # A figure is a cycle of references with all numbers in it. Python's own collections are so rare in a process with
  # many objects that several figures would be kept, which grow with the run.
  gc.collect()


def _draw(series: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
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


_SECONDS_BETWEEN_CURVES = 30  # a picture takes about a second, as long as many steps of a small network


class Monitor:
  """Writes the numbers and pictures of a run; does nothing on all processes but the first.

  Args:
    workdir: run directory.
    num_steps: steps of the whole run.
    step: steps done already; lines of later steps are dropped from the log, since the run will log them again.
    enabled: whether this is the first process.
    tracker: opens the experiment tracker; it is only called on the first process.
  """

  def __init__(
    self, workdir: str | os.PathLike, num_steps: int, step: int, enabled: bool, tracker: Callable[[], Tracker]
  ):
    self._enabled = enabled
    if not enabled:
      return
    self._workdir = Path(workdir)
    (self._workdir / "panels").mkdir(parents=True, exist_ok=True)
    self._metrics = self._workdir / "metrics.jsonl"
    _drop_lines_after(self._metrics, step)
    self._tracker = tracker()
    self._drawn, self._drawn_at = True, -math.inf
    self._bar = tqdm(
      total=num_steps, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0, smoothing=0.1, desc="train"
    )

  def advance(self, steps: int = 1) -> None:
    """Moves the progress bar."""
    if self._enabled:
      self._bar.update(steps)

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Records the numbers of one split at one step; those of the training split are also shown next to the bar."""
    if not self._enabled:
      return
    clean = {key: None if np.isnan(value) else float(f"{value:.6g}") for key, value in values.items()}
    with self._metrics.open("a") as file:
      file.write(json.dumps({"step": step, "split": split, **clean}) + "\n")
    self._tracker.numbers(step, {f"{split}/{key}": value for key, value in values.items() if not np.isnan(value)})
    self._tracker.flush()
    if split == "train":
      shown = {"loss": "{:.4f}", "miou": "{:.3f}", "pairs_per_second": "{:.1f}"}
      self._bar.set_postfix({k.replace("pairs_per_second", "pairs/s"): f.format(values[k]) for k, f in shown.items()})
    else:
      self._bar.write(f"step {step}: {split} loss {values['loss']:.4f}, mIoU {values['miou']:.3f}")

  def picture(self, step: int, split: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a picture as RUN/panels/SPLIT_STEP.png and gives it to the tracker."""
    if not self._enabled:
      return
    path = self._workdir / "panels" / f"{split}_{step:07d}.png"
    write_png(path, picture, replace=True)
    self._tracker.picture(step, split, picture)

  def curves(self) -> None:
    """Draws the numbers logged so far as RUN/curves.png, unless that was done a moment ago: `close` does it then."""
    if self._enabled:
      self._drawn = time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_CURVES
      if self._drawn:
        self._draw()

  def _draw(self) -> None:
    if self._metrics.exists():
      draw_curves(self._metrics, self._workdir / "curves.png")
    self._drawn_at = time.monotonic()

  def say(self, message: str) -> None:
    """Prints a line above the bar."""
    if self._enabled:
      self._bar.write(message)

  def close(self) -> None:
    """Closes the bar and the tracker, and draws the curves if their last numbers are not drawn."""
    if self._enabled:
      self._bar.close()
      if not self._drawn:
        self._draw()
      self._tracker.close()


def _drop_lines_after(path: Path, step: int) -> None:
  """Removes the lines of later steps from metrics.jsonl."""
  kept = [f"{line}\n" for line, entry in read_lines(path) if entry["step"] <= step]
  if path.exists():
    write_whole(path, lambda file: file.write("".join(kept).encode()), replace=True)


_HIDDEN = np.uint8(128)
_IGNORED = np.uint8(96)


def draw_panels(
  batch: Batch, colors: Float[np.ndarray, "b h w 3"], config: SegGPTConfig, limit: int = 4
) -> UInt8[np.ndarray, "height width 3"]:
  """Draws five canvases side by side for each pair: image, masked target, target, raw and decoded prediction."""
  rows = []
  for index in range(min(limit, len(colors))):
    images, labels, patch_mask = batch["images"][index], batch["labels"][index], batch["patch_mask"][index]
    color_of = batch["palette"][index]
    hidden = np.asarray(canvas.upsample_mask(patch_mask[None], config.patch_size))[0]
    target = np.where((labels == palette.IGNORE)[..., None], _IGNORED, color_of[labels % len(color_of)])
    shown = palette.shown_classes(labels[None, : len(labels) // 2], len(color_of))
    decoded = color_of[np.asarray(palette.decode(colors[index : index + 1], color_of[None], shown=shown))[0]]
    masked = np.where(hidden[..., None], _HIDDEN, target)
    parts = [images, masked, target, np.round(colors[index]).astype(np.uint8), decoded]
    rows.append(_with_gaps(parts, axis=1))
  return _with_gaps(rows, axis=0)


def _with_gaps(parts: list[np.ndarray], axis: int) -> np.ndarray:
  gap = np.full_like(parts[0].take(range(4), axis=axis), 255)
  return np.concatenate([each for part in parts for each in (part, gap)][:-1], axis=axis)


class SharedBadFiles:
  """Collects the samples that all training processes skipped because their files cannot be read.

  Args:
    sources: the samples by split.
    max_share: largest share of a split's samples that may be bad, 0 to 1.
    say: called with one line for each bad sample.
  """

  def __init__(self, sources: Mapping[str, Source], max_share: float, say: Callable[[str], None]):
    self._sources, self._max_share, self._say = sources, max_share, say
    self._bad: dict[str, set[int]] = {split: set() for split in sources}
    self._pending: dict[str, list[np.ndarray]] = {}

  def add(self, split: str, indices: np.ndarray) -> None:
    """Notes the samples that a batch of this process skipped."""
    self._pending.setdefault(split, []).append(indices)

  def settle(self) -> None:
    """Counts the samples that all processes noted since the last call. All processes call it after the same batches.

    Raises:
      InputError: too many samples of a split are bad.
    """
    for split, noted in sorted(self._pending.items()):
      source, bad = self._sources[split], self._bad[split]
      for index in np.unique(multihost_utils.process_allgather(np.stack(noted))).tolist():
        if index >= 0 and index not in bad:
          bad.add(index)
          self._say(f"passed over: {split} {source.name(index)} cannot be read ({len(bad)} so far)")
      if len(bad) > self._max_share * len(source):
        raise InputError(
          f"config.data.bad_share: found {len(bad)} bad files of {len(source)} in {split}, expected at most "
          f"{self._max_share:.2%}; `seggpt inspect` lists them"
        )
    self._pending.clear()
