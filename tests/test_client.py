"""The client of the service: what it sends and returns is what the service takes and gives."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from seggpt_jax.app.engine import Engine
from seggpt_jax.app.limits import Limits
from seggpt_jax.app.prompt_sets import PromptStore
from seggpt_jax.app.server import address_of, listen
from seggpt_jax.app.service import Served, Service
from seggpt_jax.client import Client
from seggpt_jax.errors import InputError
from seggpt_jax.inference.predictor import Predictor
from tests.app.conftest import noise, prompt_of
from tests.app.test_limits import png
from tests.test_docs import run_examples

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def serving(model):
  """Yields a client of a service that listens on this machine."""
  engine, limits, listening = Engine(lambda: Predictor(model)), Limits(), listen("127.0.0.1", 0)
  engine.started.result(60)
  service = Service({"tiny": Served(engine)}, PromptStore(limits.prompt_bytes), limits, token="s3cret")
  server = uvicorn.Server(uvicorn.Config(service.application(), lifespan="off", log_config=None))
  thread = threading.Thread(target=server.run, args=([listening],))
  thread.start()
  yield Client(address_of(listening), token="s3cret")
  server.should_exit = True
  thread.join()
  engine.close()


@pytest.fixture(scope="module")
def client(model):
  with serving(model) as client:
    yield client


def test_arrays_files_and_stored_prompts(client, model, tmp_path):
  prompt = prompt_of(1)
  expected = Predictor(model).predict(noise(1), [prompt], split=2)
  for name, pixels in (("query", noise(1)), ("image", prompt.image), ("label", prompt.labels)):
    (tmp_path / f"{name}.png").write_bytes(png(pixels))
  pairs = [(tmp_path / "image.png", str(tmp_path / "label.png"))]
  assert client.store("parts", [(prompt.image, prompt.labels)])["classes"] == [1, 2]
  for image, prompts in ((noise(1), "parts"), (tmp_path / "query.png", pairs), (png(noise(1)), "parts")):
    wanted = ["labels", "overlay", "polygons"]
    (found,) = client.predict(image, prompts=prompts, answer=wanted, confidence=True, split=2)
    np.testing.assert_array_equal(found["labels"], expected.labels)
    np.testing.assert_array_equal(found["overlay"], expected.overlay(noise(1)))
    np.testing.assert_array_equal(found["confidence"], np.round(255 * expected.confidence()))
    assert found["polygons"][0]["class"] in (1, 2)
  assert len(client.predict(noise(1), noise(2), prompts="parts")) == 2
  assert client.ask("GET", "/health")["models"] == ["tiny"]
  assert client.ask("DELETE", "/prompts/parts") is None


def test_its_example(client, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, pixels in (("query.jpg", noise(1)), ("prompt.jpg", noise(2)), ("prompt_label.png", prompt_of(1).labels)):
    Image.fromarray(pixels).resize((64, 64), 0).save(name)
  run_examples(ROOT / "seggpt_jax" / "client.py", {"Client": lambda address: client})


def test_a_refusal_is_one_line(client):
  with pytest.raises(InputError, match=r"^422: image: found none, expected at least one file$"):
    client.predict(prompts=[(prompt_of(1).image, prompt_of(1).labels)])
  client._token = "wrong"
  with pytest.raises(InputError, match=r"^401: Authorization: "):
    client.ask("GET", "/prompts")
  client._token = "s3cret"


def test_it_needs_neither_jax_nor_the_service():
  program = "import sys, seggpt_jax.client; print({'jax', 'fastapi', 'seggpt_jax.app'} & sys.modules.keys())"
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout == "set()\n"
