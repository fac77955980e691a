"""Experiment trackers get the numbers and pictures of a run, and a resumed run continues the same tracker run."""

from __future__ import annotations

import sys
import types

import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.training import trackers
from seggpt_jax.training.monitor import draw_panels
from seggpt_jax.training.schema import KEYS
from tests.training.test_monitor import CONFIG, batch_and_colors, monitor_in

NUMBERS = {"loss": 0.5, "miou": float("nan"), "lr": 1e-4, "pairs_per_second": 7.0}


class Service(types.ModuleType):
  """Stands in for wandb or trackio, and remembers the calls."""

  def __init__(self, name: str):
    super().__init__(name)
    self.__spec__ = types.SimpleNamespace()
    self.started, self.logged, self.finished, self.metrics = [], [], 0, []

  def init(self, **options):
    self.started.append(options)
    return self

  def log(self, values, step=None):
    self.logged.append(values if step is None else {"step": step, **values})

  def finish(self):
    self.finished += 1

  def define_metric(self, name, step_metric):
    self.metrics.append((name, step_metric))

  def Image(self, array):
    return array.shape

  def Settings(self, **options):
    return options


def test_every_tracker_is_a_choice_of_the_configuration():
  assert next(key.choices for key in KEYS if key.name == "tracker") == tuple(trackers.TRACKERS)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_get_numbers_and_pictures_and_go_on_with_a_resumed_run(tmp_path, monkeypatch, name):
  service = Service(name)
  monkeypatch.setitem(sys.modules, name, service)
  trackers.check_tracker(name)
  for step in (0, 5):
    monitor = monitor_in(tmp_path, step, tracker=name)
    monitor.log(step + 1, "train", NUMBERS)
    monitor.picture(step + 1, "val", draw_panels(*batch_and_colors(), CONFIG))
    monitor.close()
  first, second = service.started
  assert first == second and first["resume"] == "allow" and first["config"] == {"seed": 0}
  assert tmp_path.name in first["name"] and first["project"] == "seggpt-jax"
  assert service.logged[0] == {"step": 1, "train/loss": 0.5, "train/lr": 1e-4, "train/pairs_per_second": 7.0}
  assert service.logged[3]["step"] == 6 and len(service.logged[3]["val"]) == 3
  assert service.finished == 2 and not list(tmp_path.glob("events*"))
  assert service.metrics == ([("*", "step")] * 2 if name == "wandb" else [])


def test_no_tracker_writes_nothing_of_its_own(tmp_path):
  monitor = monitor_in(tmp_path, tracker="none")
  monitor.log(1, "train", NUMBERS)
  monitor.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "panels"]


def test_a_tracker_that_cannot_be_used_ends_in_one_line(tmp_path, monkeypatch):
  def refuse(**options):
    raise RuntimeError("no API key\nconfigured")

  service = Service("wandb")
  monkeypatch.setattr(service, "init", refuse, raising=False)
  monkeypatch.setitem(sys.modules, "wandb", service)
  with pytest.raises(
    InputError, match=r"config.tracker: wandb does not start \(no API key configured\); run `wandb login`"
  ):
    trackers.TRACKERS["wandb"](tmp_path, 0, {})
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"config.tracker: trackio is not installed"):
    trackers.check_tracker("trackio")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_services_take_a_run_and_its_resumption(tmp_path, monkeypatch, name):
  """Runs where the package is installed; the extras are not part of the test environment."""
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported
  pytest.importorskip(name)
  for step in (0, 5):
    monitor = monitor_in(tmp_path, step, tracker=name)
    monitor.log(step + 1, "train", NUMBERS)
    monitor.picture(step + 1, "val", draw_panels(*batch_and_colors(), CONFIG))
    monitor.close()
  assert any(path.is_file() for path in (tmp_path / name).rglob("*"))
