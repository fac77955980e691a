"""A page with a tiny network, and people who use it, each with a browser's cookies."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from seggpt_jax.app.answering import Network
from seggpt_jax.app.engine import Engine
from seggpt_jax.app.page_routes import create_page
from seggpt_jax.app.pictures import SessionLimits
from seggpt_jax.app.project import Project, Recipe
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor

ORIGIN = "http://127.0.0.1:7860"


class Person(TestClient):
  """A browser that has opened the page."""

  def __init__(self, app: Any, path: str = "/"):
    super().__init__(app, base_url=ORIGIN, headers={"origin": ORIGIN}, raise_server_exceptions=True)
    self.opened = self.get(path)

  def add(self, image: np.ndarray, name: str = "image.png") -> str:
    """Adds an image and returns its key."""
    response = self.post("/api/images", params={"name": name}, content=png(image))
    assert response.status_code == 201, response.text
    return response.json()["key"]

  def draw(self, key: str, labels: np.ndarray) -> None:
    """Sets the label of an image."""
    response = self.put(f"/api/images/{key}/label", content=png(labels))
    assert response.status_code == 200, response.text

  def state(self) -> dict[str, Any]:
    """Returns the state of the session."""
    response = self.get("/api/session")
    assert response.status_code == 200, response.text
    return response.json()

  def wait(self, done: Any = None, seconds: float = 60) -> dict[str, Any]:
    """Waits until all images are answered, or until a function of the state is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      state = self.state()
      progress = state["progress"]
      if done(state) if done else progress["answered"] == progress["total"]:
        return state
      time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {state}")

  def answer(self, key: str) -> np.ndarray:
    """Returns the answer for an image."""
    response = self.get(f"/api/images/{key}/answer")
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def png(pixels: np.ndarray) -> bytes:
  """Returns pixels as a PNG file."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def noise(seed: int, side: int = 40) -> np.ndarray:
  """Returns an image of noise."""
  return np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), np.uint8)


def square(index: int = 1, side: int = 40, start: int = 8) -> np.ndarray:
  """Returns a label map with a square of a class."""
  labels = np.zeros((side, side + 8), np.uint8)
  labels[start : start + 20, start : start + 20] = index
  return labels


@contextlib.contextmanager
def open_page(
  model: Any,
  folder: Path,
  *,
  engine: Engine | None = None,
  recipe: Recipe | None = None,
  token: str = "",
  plain: Any = None,
  learned: Any = None,
  **limits,
) -> Iterator[Any]:
  """Gives the application of a page with a project in a folder; `learned` is a learned prompt that it starts with."""

  def load_plain() -> Network:
    return Network(Engine(lambda: Predictor(plain)), InferenceOptions())

  own = engine is None
  engine = engine or Engine(lambda: Predictor(model, learned=learned))
  engine.started.result()
  project = Project(
    Network(engine, InferenceOptions()),
    recipe or Recipe("small"),
    folder,
    SessionLimits(**limits),
    plain=None if plain is None else load_plain,
    learned_classes=() if learned is None else ["crack", "hole"],
  )
  try:
    yield create_page(project, token=token, examples=False)
  finally:
    project.close()
    if own:
      engine.close()
