"""A machine learning backend of Label Studio, which answers its tasks with a running `seggpt serve`.

  LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=... python label_studio.py SERVICE [PROMPTS [PORT]]

SERVICE is the address of the service, PROMPTS the name of prompts that it stores. The labels of the project, in their
order, are classes 1, 2, ... <BrushLabels> get a mask for each class, <PolygonLabels> a polygon for each object.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from urllib import request
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from seggpt_jax.client import Client
from seggpt_jax.errors import InputError

HOST, KEY = os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080"), os.environ.get("LABEL_STUDIO_API_KEY", "")


def read_image(address: str) -> bytes:
  address = urljoin(HOST, address)
  ours = urlsplit(address)[:2] == urlsplit(HOST)[:2]  # nobody else may see the key
  if not ours and urlsplit(address).scheme not in ("http", "https"):  # such as a file of this machine
    raise InputError(f"{address}: expected an address of http or https")
  headers = {"Authorization": f"Token {KEY}"} if ours and KEY else {}
  with request.urlopen(request.Request(address, headers=headers), timeout=60) as file:
    return file.read()


def run_lengths(mask: np.ndarray) -> list[int]:
  """Returns a mask as brushes store it: the four channels of a picture, whose runs have lengths of 16 bits here."""
  values = np.repeat(mask.ravel(), 4)
  bits = [f"{values.size:032b}{7:05b}" + 4 * f"{15:04b}"]
  edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
  for start, end in itertools.pairwise(edges):
    for at in range(start, end, 2**16):
      bits.append(f"100{min(end - at, 2**16) - 1:016b}{255 * values[start]:08b}")
  return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tolist()


def list_regions(found: dict, kind: str) -> Iterator[tuple[dict, int, float]]:
  """Yields value, class and score of each region of an answer."""
  for each in found["classes" if kind == "BrushLabels" else "polygons"]:
    if kind == "PolygonLabels":
      points = 100 * np.array(each["polygon"]) / (found["width"], found["height"])
      yield {"points": points.tolist(), "closed": True}, each["class"], each["confidence"]
    elif each["class"] and each["pixels"]:
      rle = run_lengths(found["labels"] == each["class"])
      yield {"format": "rle", "rle": rle}, each["class"], each["confidence"]


def predict(client: Client, prompts: str, tasks: list[dict], config: str) -> list[dict]:
  """Returns the prediction for each task of a project with this labeling interface."""
  tags = list(ElementTree.fromstring(config).iter())
  control = next((tag for tag in tags if tag.tag in ("BrushLabels", "PolygonLabels")), None)
  if control is None:
    raise InputError("labeling interface: found neither, expected <BrushLabels> or <PolygonLabels>")
  image = next(tag for tag in tags if tag.get("name") == control.get("toName"))
  labels, kind, results = [tag.get("value") for tag in control.iter("Label")], control.tag.lower(), []
  fields = {"answer": ["labels", "polygons"], "confidence": True} | ({"prompts": prompts} if prompts else {})
  for task in tasks:
    (found,) = client.predict(read_image(task["data"][image.get("value")[1:]]), **fields)
    if (most := found["labels"].max()) > len(labels):
      raise InputError(f"labels of the project: found {len(labels)}, expected {most}, one for each class")
    about = {"from_name": control.get("name"), "to_name": image.get("name"), "type": kind, "image_rotation": 0}
    about |= {"original_width": found["width"], "original_height": found["height"]}
    regions = list_regions(found, control.tag)
    result = [about | {"value": value | {kind: [labels[n - 1]]}, "score": score} for value, n, score in regions]
    results.append({"result": result, "score": found["confidence"].mean() / 255})
  return results


def backend(client: Client, prompts: str = "") -> FastAPI:
  async def refuse(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)

  app = FastAPI(exception_handlers={InputError: refuse, OSError: refuse})

  @app.post("/predict")
  def answer(asked: dict) -> dict:
    return {"results": predict(client, prompts, asked["tasks"], asked["label_config"])}

  @app.api_route("/{path}", methods=["GET", "POST"])
  def about(path: str) -> dict:  # /health, /setup, and /webhook after each annotation
    return {"status": "UP", "model_version": "seggpt", "versions": ["seggpt"]}

  return app


if __name__ == "__main__":
  service, prompts, port = (*sys.argv[1:], *("", "9090")[len(sys.argv) - 2 :])
  uvicorn.run(backend(Client(service, os.environ.get("SEGGPT_TOKEN", "")), prompts), port=int(port))
