"""Experiment trackers: where the numbers and pictures of a run go in addition to its own files.

In: numbers and pictures with their step. Out: an event file for TensorBoard, or a run of Weights & Biases or Trackio,
whose packages are optional and read their own environment variables, such as WANDB_MODE or TRACKIO_SPACE_ID.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import write_whole

_PROJECT = "seggpt-jax"  # unless WANDB_PROJECT or TRACKIO_PROJECT names another


class Tracker:
  """Receives what a run tells, and drops it; the base of trackers that keep it."""

  def __init__(self, workdir: Path, step: int, config: Mapping[str, Any]):
    del workdir, step, config

  def numbers(self, step: int, values: Mapping[str, float]) -> None:
    """Takes numbers by name."""

  def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Takes a picture."""

  def flush(self) -> None:
    """Ends a group of numbers."""

  def close(self) -> None:
    """Ends the start of the run."""


def check_tracker(name: str) -> None:
  """Checks that the package of a tracker is installed.

  Raises:
    InputError: it is not.
  """
  if name in ("wandb", "trackio") and importlib.util.find_spec(name) is None:
    raise InputError(f"config.tracker: {name} is not installed; pip install 'seggpt-jax[{name}]'")


class _TensorBoard(Tracker):
  """An event file in the run directory.

  Not by tensorboardX's SummaryWriter: its thread dies on a full disk, and training waits for its queue forever (2.6).
  """

  def __init__(self, workdir: Path, step: int, config: Mapping[str, Any]):
    del config
    self._writer = EventsWriter(str(workdir / "events"))
    self._writer.write_event(Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))
    # TensorBoard hides later steps of older files.
    start = SessionLog(status=SessionLog.SessionStatus.START)
    self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))

  def numbers(self, step: int, values: Mapping[str, float]) -> None:
    for key, value in values.items():
      self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(key, value)))

  def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    image = summary.image(name, picture, dataformats="HWC")
    self._writer.write_event(Event(wall_time=time.time(), step=step, summary=image))

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class _Service(Tracker):
  """A run of the module wandb or trackio, whose interfaces are nearly the same; `options` are those of `init`."""

  def __init__(self, module: str, config: Mapping[str, Any], **options: Any):
    self._module = importlib.import_module(module)
    project = os.environ.get(f"{module.upper()}_PROJECT") or _PROJECT
    try:
      self._run = self._module.init(project=project, config=dict(config), resume="allow", **options)
    except Exception as error:  # of the service: no login, no network, a wrong name; both have errors of their own
      remedy = "; run `wandb login` or set WANDB_MODE=offline" if module == "wandb" else ""
      raise InputError(f"config.tracker: {module} does not start ({one_line(error)[:200]}){remedy}") from error

  def numbers(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    self._run.log({name: self._module.Image(picture)}, step=step)

  def close(self) -> None:
    self._run.finish()


class _Trackio(_Service):
  def __init__(self, workdir: Path, step: int, config: Mapping[str, Any]):
    del step
    super().__init__("trackio", config, name=f"{workdir.name}-{_run_id(workdir)}", embed=False)


class _WandB(_Service):
  """A run of Weights & Biases. Its own steps cannot go back, as after a resume, so the step is a number like others."""

  def __init__(self, workdir: Path, step: int, config: Mapping[str, Any]):
    del step
    settings = importlib.import_module("wandb").Settings(console="off")  # the progress bar is not worth keeping
    identity = {"id": _run_id(workdir), "name": workdir.name, "dir": str(workdir)}
    super().__init__("wandb", config, settings=settings, **identity)
    self._run.define_metric("*", step_metric="step")

  def numbers(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({"step": step, **values})

  def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    self._run.log({"step": step, name: self._module.Image(picture)})


def _run_id(workdir: Path) -> str:
  """Returns the name of the run at its service, which its next start continues."""
  path = workdir / "tracker_id"
  if not path.exists():
    write_whole(path, lambda file: file.write(secrets.token_hex(4).encode()), replace=True)
  return path.read_text().strip()


TRACKERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
  "tensorboard": _TensorBoard,
  "wandb": _WandB,
  "trackio": _Trackio,
  "none": Tracker,
}
