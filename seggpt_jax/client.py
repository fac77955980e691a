"""A client of `seggpt serve`: images and prompts in, the answers as dictionaries with arrays out.

  client = Client("http://127.0.0.1:8000")
  (found,) = client.predict("query.jpg", prompts=[("prompt.jpg", "prompt_label.png")])
  found["labels"]

It needs NumPy, Pillow and Python only: neither JAX nor the network is loaded.
"""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from seggpt_jax.errors import InputError

Picture = str | os.PathLike | bytes | np.ndarray  # an image file, its content, or its pixels
Prompts = str | Sequence[tuple[Picture, Picture]]  # the name of a stored set, or images with their label maps


class Client:
  """Sends requests to one service.

  Args:
    address: the address that the service has printed.
    token: its token, if it has one.
    seconds: time that an answer may take.
  """

  def __init__(self, address: str, token: str = "", seconds: float | int = 120):
    self._address, self._token, self._seconds = address.rstrip("/"), token, seconds

  def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """Sends a request and returns the answer.

    Args:
      method: such as "GET".
      path: such as "/health".
      content: the fields of the request.

    Raises:
      InputError: the service refuses the request; the message is its own.
    """
    data, headers = None, {"Authorization": f"Bearer {self._token}"} if self._token else {}
    if content is not None:
      data, headers["Content-Type"] = json.dumps(content).encode(), "application/json"
    request = urllib.request.Request(self._address + path, data, headers, method=method)
    try:
      with urllib.request.urlopen(request, timeout=self._seconds) as answer:
        return json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
      raise InputError(f"{error.code}: {json.loads(error.read())['error']}") from error

  def store(self, name: str, prompts: Prompts) -> dict[str, Any]:
    """Stores prompts under a name, for `predict(..., prompts=name)`; returns the service's description of them."""
    return self.ask("PUT", f"/prompts/{urllib.parse.quote(name)}", _prompt_fields(prompts))

  def predict(self, *images: Picture, prompts: Prompts = (), **fields: Any) -> list[dict[str, Any]]:
    """Segments images.

    Args:
      *images: the images.
      prompts: their prompts; none for a network that needs none.
      **fields: further fields of the request, such as model="parts", split=2 or answer=["labels", "polygons"].

    Returns:
      The answer for each image. Its pictures, such as "labels", are arrays.
    """
    content = {"image": [_encode(each) for each in images], **_prompt_fields(prompts), **fields}
    found = self.ask("POST", "/predict", content)["predictions"]
    pictures = ("labels", "overlay", "confidence")
    return [each | {name: _decode(each[name]) for name in pictures if name in each} for each in found]


def _prompt_fields(prompts: Prompts) -> dict[str, Any]:
  if isinstance(prompts, str):
    return {"prompts": prompts}
  return {f"prompt_{kind}": [_encode(each[i]) for each in prompts] for i, kind in enumerate(("image", "label"))}


def _encode(picture: Picture) -> str:
  if isinstance(picture, np.ndarray):
    Image.fromarray(picture).save(file := io.BytesIO(), "png")
    picture = file.getvalue()
  elif not isinstance(picture, bytes):
    with open(picture, "rb") as file:
      picture = file.read()
  return base64.b64encode(picture).decode()


def _decode(text: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
