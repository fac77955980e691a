"""Training runs of the page: they start, show their numbers, stop, and what they have learned answers."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from seggpt_jax.app.project import Recipe
from seggpt_jax.inference.predictor import Predictor
from tests.app.page_clients import Person, noise, open_page, square

CONFIG = str(Path(__file__).with_name("page_training.py"))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Runs start with one device, which compiles faster than the eight of the tests."""
  monkeypatch.setenv("XLA_FLAGS", "")


@pytest.fixture
def person(model, weights_directory, tmp_path):
  recipe = Recipe(str(weights_directory), CONFIG, ())
  with open_page(model, tmp_path / "page", recipe=recipe) as app:
    person = Person(app)
    person.keys = [person.add(noise(seed)) for seed in range(3)]
    for key in person.keys[:2]:
      person.draw(key, square())
    yield person


def is_over(state):
  return state["learning"]["state"] not in ("running", "stopping")


def test_a_run_can_be_stopped_and_its_network_answers(person, tmp_path):
  before = person.wait()
  answer = person.answer(person.keys[2])
  assert person.post("/api/learning", json={"steps": 5000}).status_code == 202
  second = person.post("/api/learning", json={"steps": 5})
  for refused in (second, person.delete("/api/classes/1")):
    assert refused.status_code == 429 and "in use by" in refused.json()["error"]
  running = person.wait(lambda state: state["learning"]["step"] or is_over(state), 120)
  assert running["learning"]["state"] == "running", running["learning"]["error"]
  assert running["learning"]["curve"][0][1] > 0 and running["learning"]["minutes"] > 0
  assert person.delete("/api/learning").status_code == 202
  stopped = person.wait(lambda state: is_over(state) and state["settings"]["network"] == "1", 60)
  assert stopped["learning"]["state"] == "stopped" and stopped["learned"] == ["1"]
  after = person.wait(lambda state: state["round"] > before["round"] and state["progress"]["answered"] == 1)
  assert after["examples"] and (person.answer(person.keys[2]) != answer).any()
  # It can be downloaded.
  with zipfile.ZipFile(io.BytesIO(person.get("/api/learned/1").content)) as packed:
    packed.extractall(tmp_path)
  prompts = [(noise(person.keys.index(key)), square()) for key in after["examples"]]
  expected = Predictor.from_checkpoint(tmp_path / "learned_1").predict(noise(2), prompts).labels
  np.testing.assert_array_equal(person.answer(person.keys[2]), expected)
  # The network that the page has started with is still there.
  assert person.post("/api/settings", json={"network": "start"}).status_code == 200
  person.wait(lambda state: state["progress"]["answered"] == 1)
  np.testing.assert_array_equal(person.answer(person.keys[2]), answer)
  # It can be chosen again, after all images were removed too.
  assert person.delete("/api/images", params={"keep": 1}).status_code == 200
  assert person.state()["learning"]
  assert person.delete("/api/images").status_code == 200
  state = person.state()
  assert state["learned"] == ["1"] and state["learning"] is None and state["settings"]["network"] == "start"
  assert person.post("/api/settings", json={"network": "2"}).status_code == 422
  assert person.post("/api/settings", json={"network": "1"}).status_code == 200
  assert person.get("/api/learning/panel").status_code == 404


def test_a_run_that_fails_says_why_without_paths(model, tmp_path):
  with open_page(model, tmp_path / "page", recipe=Recipe("no_such_weights", CONFIG, ())) as app:
    person = Person(app)
    for seed in range(2):
      person.draw(person.add(noise(seed)), square())
    assert person.post("/api/learning", json={"steps": 2}).status_code == 202
    learning = person.wait(is_over, 60)["learning"]
  assert learning["state"] == "failed" and "no_such_weights" in learning["error"]
  assert str(tmp_path) not in learning["error"]


def test_closing_the_page_ends_its_training_run(model, weights_directory, tmp_path):
  with open_page(model, tmp_path / "page", recipe=Recipe(str(weights_directory), CONFIG, ())) as app:
    person = Person(app)
    for seed in range(2):
      person.draw(person.add(noise(seed)), square())
    assert person.post("/api/learning", json={"steps": 5000}).status_code == 202
    person.wait(lambda state: state["learning"]["step"], 120)
    run = tmp_path / "page" / "learned" / "1" / "run"
    assert run.is_dir()
  lines = (Path("/proc") / name / "cmdline" for name in os.listdir("/proc") if name.isdigit())
  assert not any(str(run).encode() in line.read_bytes() for line in lines if line.exists())
