"""The example backend of Label Studio: what it answers is what Label Studio reads, and what our own reader reads."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from seggpt_jax.errors import InputError
from seggpt_jax.formats.label_studio import read_label_studio
from seggpt_jax.formats.outlines import draw_shapes
from tests.app.conftest import noise, prompt_of
from tests.app.test_limits import png
from tests.test_client import serving

BRUSH = """<View><Image name="picture" value="$photo"/><BrushLabels name="tag" toName="picture">
<Label value="part"/><Label value="scratch"/></BrushLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")


@pytest.fixture(scope="module")
def client(model):
  with serving(model) as client:
    yield client


@pytest.fixture
def example(monkeypatch, tmp_path):
  """The module, in place of whose Label Studio there are files."""
  path = Path(__file__).parents[1] / "examples" / "label_studio.py"
  spec = importlib.util.spec_from_file_location("label_studio_example", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  monkeypatch.setattr(module, "HOST", f"{tmp_path.as_uri()}/")
  return module


@pytest.fixture
def ask(client, example, tmp_path):
  """Asks the backend about two images as Label Studio does; returns its reply, the tasks and the service's labels."""
  client.store("parts", [(prompt_of(1).image, prompt_of(1).labels)])
  for number in (1, 2):
    (tmp_path / f"{number}.png").write_bytes(png(noise(number)))
  tasks = [{"id": number, "data": {"photo": f"{number}.png"}} for number in (1, 2)]
  expected = [found["labels"] for found in client.predict(noise(1), noise(2), prompts="parts")]
  backend = TestClient(example.backend(client, "parts"))

  def ask(view: str, **changes):
    asked = {"tasks": tasks, "label_config": view, "project": "1.1", "params": {}} | changes
    return backend.post("/predict", json=asked), tasks, expected

  return ask


@pytest.mark.parametrize("view", [BRUSH, POLYGON], ids=["brush", "polygon"])
def test_its_regions_show_what_the_service_answers(ask, view, tmp_path):
  reply, tasks, expected = ask(view)
  assert reply.status_code == 200, reply.text
  results = reply.json()["results"]
  export = [{**task, "annotations": [{"result": each["result"]}]} for task, each in zip(tasks, results, strict=True)]
  (tmp_path / "export.json").write_text(json.dumps(export))
  read = read_label_studio(tmp_path, ".")
  assert read.categories == ("part", "scratch")
  for entry, labels, each in zip(read.entries, expected, results, strict=True):
    drawn = draw_shapes(
      [(shape, 1 + read.categories.index(shape.category)) for shape in entry.shapes], entry.size, False
    )
    # Polygons leave the edges of pixels by up to one; the labels here are as rough as noise.
    assert np.mean(drawn == labels) == 1 if view == BRUSH else np.mean(drawn == labels) > 0.9
    assert 0 < each["score"] <= 1 and all(0 < region["score"] <= 1 for region in each["result"])


def test_what_is_wrong_is_said(ask):
  """Label Studio shows the text; without it, its users see that there are no predictions, and not why."""
  one = BRUSH.replace('<Label value="scratch"/>', "")
  assert ask(one)[0].json() == {"error": "labels of the project: found 1, expected 2, one for each class"}
  assert "<BrushLabels> or <PolygonLabels>" in ask("<View/>")[0].json()["error"]
  reply = ask(BRUSH, tasks=[{"id": 1, "data": {"photo": "missing.png"}}])[0]
  assert reply.status_code == 422 and "missing.png" in reply.json()["error"]


def test_a_connection_is_accepted(example, client):
  backend = TestClient(example.backend(client))
  assert backend.get("/health").json()["status"] == "UP"
  assert backend.post("/setup", json={"project": "1.1", "schema": BRUSH}).json()["model_version"]


def test_only_label_studio_is_shown_its_key(example, monkeypatch):
  asked = []
  monkeypatch.setattr(example, "HOST", "http://tool:8080")
  monkeypatch.setattr(example, "KEY", "s3cret")
  monkeypatch.setattr(example.request, "urlopen", lambda request, timeout: asked.append(request) or io.BytesIO())
  for address in ("/data/upload/1.png", "http://other/1.png", "http://tool:8080/data/local-files/?d=1.png"):
    example.read_image(address)
  assert [each.full_url for each in asked[:2]] == ["http://tool:8080/data/upload/1.png", "http://other/1.png"]
  assert [each.get_header("Authorization") for each in asked] == ["Token s3cret", None, "Token s3cret"]


def test_a_task_reads_no_file_of_the_machine(example, monkeypatch):
  monkeypatch.setattr(example, "HOST", "http://tool:8080")
  with pytest.raises(InputError, match="http or https"):
    example.read_image("file:///etc/hostname")


@pytest.mark.parametrize("view", [BRUSH, POLYGON], ids=["brush", "polygon"])
def test_label_studio_takes_its_predictions(ask, view):
  """With the package of Label Studio itself, which is too large to install for one test; see docs/labeling_tools.md."""
  brush = pytest.importorskip("label_studio_sdk.converter.brush")
  interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(view)
  reply, _, expected = ask(view)
  for each, labels in zip(reply.json()["results"], expected, strict=True):
    assert interface.validate_prediction({"model_version": "seggpt", **each}, return_errors=True) == []
    for region in each["result"] if view == BRUSH else ():
      mask = brush.decode_rle(region["value"]["rle"]).reshape(*labels.shape, 4)[..., 3]
      index = ["part", "scratch"].index(region["value"]["brushlabels"][0]) + 1
      np.testing.assert_array_equal(mask, 255 * (labels == index))
