"""What a run shows: a progress bar, RUN/metrics.jsonl, TensorBoard events and image panels."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from seggpt_jax import canvas, palette
from seggpt_jax.data.pipeline import Batch
from seggpt_jax.files import write_whole
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.curves import draw_curves

_IGNORED = np.uint8(96)  # gray, darker than what is hidden


class Monitor:
  """Writes the numbers and pictures of a run; on all processes but the first it does nothing.

  Args:
    workdir: the run's folder.
    num_steps: steps of the whole run.
    step: steps done already; what an earlier run logged beyond it is dropped, since it will be logged again.
    enabled: False on all processes but the first.
  """

  def __init__(self, workdir: str | os.PathLike, num_steps: int, step: int, enabled: bool):
    self._enabled = enabled
    if not enabled:
      return
    self._workdir = Path(workdir)
    (self._workdir / "panels").mkdir(parents=True, exist_ok=True)
    self._metrics = self._workdir / "metrics.jsonl"
    _drop_lines_after(self._metrics, step)
    self._events = _Events(self._workdir, step)
    self._bar = tqdm(
      total=num_steps, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0, smoothing=0.1, desc="train"
    )

  def advance(self, steps: int = 1) -> None:
    """Moves the bar."""
    if self._enabled:
      self._bar.update(steps)

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Records numbers of one split at one step; of the training split they also stand beside the bar."""
    if not self._enabled:
      return
    clean = {key: None if np.isnan(value) else float(f"{value:.6g}") for key, value in values.items()}
    with self._metrics.open("a") as file:
      file.write(json.dumps({"step": step, "split": split, **clean}) + "\n")
    for key, value in values.items():
      if not np.isnan(value):
        self._events.add(step, summary.scalar(f"{split}/{key}", value))
    self._events.flush()
    if split == "train":
      shown = {"loss": "{:.4f}", "miou": "{:.3f}", "pairs_per_second": "{:.1f}"}
      self._bar.set_postfix({k.replace("pairs_per_second", "pairs/s"): f.format(values[k]) for k, f in shown.items()})
    else:
      self._bar.write(f"step {step}: {split} loss {values['loss']:.4f}, mIoU {values['miou']:.3f}")

  def panels(self, step: int, split: str, batch: Batch, colors: np.ndarray, config: SegGPTConfig) -> None:
    """Writes RUN/panels/SPLIT_STEP.png, one row for each pair, and the same to TensorBoard."""
    if not self._enabled:
      return
    picture = panels(batch, colors, config)
    path = self._workdir / "panels" / f"{split}_{step:07d}.png"
    write_whole(path, lambda file: Image.fromarray(picture).save(file, "png"))
    self._events.add(step, summary.image(split, picture, dataformats="HWC"))

  def curves(self) -> None:
    """Draws what was logged so far as RUN/curves.png."""
    if self._enabled and self._metrics.exists():
      draw_curves(self._metrics, self._workdir / "curves.png")

  def say(self, message: str) -> None:
    """A line above the bar."""
    if self._enabled:
      self._bar.write(message)

  def close(self) -> None:
    if self._enabled:
      self._bar.close()
      self._events.close()


class _Events:
  """TensorBoard's file.

  tensorboardX's SummaryWriter has a thread for it, which dies on a full disk; the training would then wait for its
  queue for ever.

  Args:
    folder: where the file goes.
    step: later ones in older files are hidden.
  """

  def __init__(self, folder: Path, step: int):
    self._writer = EventsWriter(str(folder / "events"))
    self._writer.write_event(Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))
    self._writer.write_event(
      Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.SessionStatus.START))
    )

  def add(self, step: int, what: Summary) -> None:
    self._writer.write_event(Event(wall_time=time.time(), step=step, summary=what))

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def _drop_lines_after(path: Path, step: int) -> None:
  if not path.exists():
    return
  kept = []
  for line in path.read_text(errors="replace").splitlines():
    try:
      before = json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
      continue  # the half line of a run that was killed while writing it, or nothing of ours
    if before:
      kept.append(line + "\n")
  write_whole(path, lambda file: file.write("".join(kept).encode()))


def panels(
  batch: Batch, colors: Float[np.ndarray, "b h w 3"], config: SegGPTConfig, limit: int = 4
) -> UInt8[np.ndarray, "height width 3"]:
  """Five canvases side by side for each pair: image, masked target, target, raw prediction, decoded prediction.

  Args:
    batch: the pairs.
    colors: what the network painted for them, 0..255.
    config: the architecture, for the patch size.
    limit: at most so many pairs, one row each.
  """
  rows = []
  for index in range(min(limit, len(colors))):
    images, labels, patch_mask = batch["images"][index], batch["labels"][index], batch["patch_mask"][index]
    color_of = batch["palette"][index]
    hidden = np.asarray(canvas.upsample_mask(patch_mask[None], config.patch_size))[0]
    target = np.where((labels == palette.IGNORE)[..., None], _IGNORED, color_of[labels % len(color_of)])
    decoded = color_of[np.asarray(palette.decode(colors[index : index + 1], color_of[None]))[0]]
    masked = np.where(hidden[..., None], np.uint8(128), target)
    parts = [images, masked, target, np.round(colors[index]).astype(np.uint8), decoded]
    gap = np.full((images.shape[0], 4, 3), 255, np.uint8)
    rows.append(np.concatenate([p for part in parts for p in (part, gap)][:-1], axis=1))
  gap = np.full((4, rows[0].shape[1], 3), 255, np.uint8)
  return np.concatenate([r for row in rows for r in (row, gap)][:-1], axis=0)


class Meter:
  """Pairs per second since it was last read."""

  def __init__(self):
    self._pairs, self._since = 0, time.perf_counter()

  def add(self, pairs: int) -> None:
    self._pairs += pairs

  def rate(self) -> float:
    """Pairs per second since the last call."""
    now = time.perf_counter()
    rate = self._pairs / max(now - self._since, 1e-9)
    self._pairs, self._since = 0, now
    return rate
