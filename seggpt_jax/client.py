"""A client of `seggpt serve`: images and prompts in, dictionaries with arrays out. It loads no JAX and no network."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib import error, parse, request

import numpy as np
from PIL import Image

from seggpt_jax.errors import InputError

Picture = str | os.PathLike | bytes | np.ndarray  # an image file, its content, or its pixels
Prompts = str | Sequence[tuple[Picture, Picture]]  # the name of a stored set, or images with their label maps


class Client:
  """Sends requests to one service: to the address that it has printed, with its token if it has one.

  Examples:
    >>> client = Client("http://127.0.0.1:8000")
    >>> (found,) = client.predict("query.jpg", prompts=[("prompt.jpg", "prompt_label.png")])
    >>> found["labels"].shape  # the class index of each pixel
    (64, 64)
  """

  def __init__(self, address: str, token: str = "", seconds: float | int = 120):  # that an answer may take
    self._address, self._token, self._seconds = address.rstrip("/"), token, seconds

  def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """Sends a request, such as "GET" of "/health", with these fields; raises the service's refusal as InputError."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
    data = None if content is None else json.dumps(content).encode()
    asked = request.Request(self._address + path, data, headers, method=method)
    try:
      with request.urlopen(asked, timeout=self._seconds) as answer:
        return json.loads(answer.read() or "null")
    except error.HTTPError as refusal:
      raise InputError(f"{refusal.code}: {json.loads(refusal.read())['error']}") from refusal

  def store(self, name: str, prompts: Prompts) -> dict[str, Any]:
    """Stores prompts under a name, for `predict(..., prompts=name)`; returns the service's description of them."""
    return self.ask("PUT", f"/prompts/{parse.quote(name)}", _prompt_fields(prompts))

  def predict(self, *images: Picture, prompts: Prompts = (), **fields: Any) -> list[dict[str, Any]]:
    """Segments images; returns the answer for each. Its pictures, such as "labels", are arrays.

    Args:
      *images: the images.
      prompts: prompts of all of them; none for a network that needs none.
      **fields: further fields of the request, such as model="parts", split=2 or answer=["labels", "polygons"].
    """
    content = {"image": [_encode(each) for each in images], **_prompt_fields(prompts), **fields}
    found = self.ask("POST", "/predict", content)["predictions"]
    pictures = {"labels", "overlay", "confidence"}
    return [each | {name: _decode(each[name]) for name in pictures & each.keys()} for each in found]


def _prompt_fields(prompts: Prompts) -> dict[str, Any]:
  if isinstance(prompts, str):
    return {"prompts": prompts}
  return {f"prompt_{kind}": [_encode(each[i]) for each in prompts] for i, kind in enumerate(("image", "label"))}


def _encode(picture: Picture) -> str:
  if isinstance(picture, np.ndarray):
    Image.fromarray(picture).save(file := io.BytesIO(), "png")
    picture = file.getvalue()
  return base64.b64encode(picture if isinstance(picture, bytes) else Path(picture).read_bytes()).decode()


def _decode(text: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
