"""Shows a run: a progress bar, RUN/metrics.jsonl, TensorBoard events, curves and image panels."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from seggpt_jax.data.pipeline import Batch
from seggpt_jax.files import parse_json, write_whole
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.curves import draw_curves
from seggpt_jax.training.panels import draw_panels


class Monitor:
  """Writes the numbers and pictures of a run; does nothing on all processes but the first.

  Args:
    workdir: run directory.
    num_steps: steps of the whole run.
    step: steps done already; lines of later steps are dropped from the log, since the run will log them again.
    enabled: whether this is the first process.
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
    """Moves the progress bar."""
    if self._enabled:
      self._bar.update(steps)

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Records the numbers of one split at one step; those of the training split are also shown beside the bar."""
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
    """Writes RUN/panels/SPLIT_STEP.png with one row for each pair, and the same picture to TensorBoard.

    Args:
      step: number of the step.
      split: "train" or "val".
      batch: the pairs.
      colors: their predicted colors, 0..255, [B, 2S, S, 3].
      config: architecture of the network.
    """
    if not self._enabled:
      return
    picture = draw_panels(batch, colors, config)
    path = self._workdir / "panels" / f"{split}_{step:07d}.png"
    write_whole(path, lambda file: Image.fromarray(picture).save(file, "png"))
    self._events.add(step, summary.image(split, picture, dataformats="HWC"))

  def curves(self) -> None:
    """Draws the numbers logged so far as RUN/curves.png."""
    if self._enabled and self._metrics.exists():
      draw_curves(self._metrics, self._workdir / "curves.png")

  def say(self, message: str) -> None:
    """Prints a line above the bar."""
    if self._enabled:
      self._bar.write(message)

  def close(self) -> None:
    """Closes the bar and the event file."""
    if self._enabled:
      self._bar.close()
      self._events.close()


class _Events:
  """The event file for TensorBoard.

  tensorboardX's SummaryWriter is not used: it writes from a thread that dies on a full disk, and the training would
  then wait for its queue forever (seen in tensorboardX 2.6).

  Args:
    folder: folder for the file.
    step: steps done already; TensorBoard hides later steps of older files.
  """

  def __init__(self, folder: Path, step: int):
    self._writer = EventsWriter(str(folder / "events"))
    self._writer.write_event(Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))
    self._writer.write_event(
      Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.SessionStatus.START))
    )

  def add(self, step: int, value: Summary) -> None:
    self._writer.write_event(Event(wall_time=time.time(), step=step, summary=value))

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def _drop_lines_after(path: Path, step: int) -> None:
  """Removes the lines of later steps from metrics.jsonl."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text("utf-8", errors="replace").splitlines():
    try:
      before = parse_json(line)["step"] <= step
    except (ValueError, KeyError, TypeError, IndexError):
      continue  # a run was killed while it wrote this line, or the line is not from us
    if before:
      kept.append(line + "\n")
  write_whole(path, lambda file: file.write("".join(kept).encode()))
