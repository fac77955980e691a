"""The predictor over HTTP: an engine, stored prompts and limits in, an ASGI application out."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from seggpt_jax.app import metrics, openapi
from seggpt_jax.app.bodies import FILES, Body, read_body
from seggpt_jax.app.engine import Engine
from seggpt_jax.app.fields import LABEL_FIELDS, PREDICT_FIELDS, labels_of, options_of
from seggpt_jax.app.http import HANDLERS, Guard
from seggpt_jax.app.limits import BYTES_PER_BODY_BYTE, BYTES_PER_PIXEL, Budget, Limits, count_canvases
from seggpt_jax.app.prompt_sets import PromptSet, PromptStore, Stored
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import decode_image
from seggpt_jax.formats.labels import LabelFormat, check_size
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import encode_png
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.prompts import load_prompt

_DECODERS = 4  # threads that decode images and encode answers
_OPEN_PATHS = ("/health", "/docs", "/openapi.json")  # they need no token


@dataclasses.dataclass(eq=False)
class Service:
  """Answers requests with one engine.

  Attributes:
    engine: the engine.
    store: the stored prompts.
    limits: the limits.
    model: name of the weights, for people.
    options: options of requests that set none.
    labels: how label maps are read if a request does not say so.
    token: what requests must bring; "" for none.
    loopback: whether the service is reached from this machine only.
  """

  engine: Engine
  store: PromptStore
  limits: Limits = dataclasses.field(default_factory=Limits)
  model: str = ""
  options: InferenceOptions = dataclasses.field(default_factory=InferenceOptions)
  labels: LabelFormat = dataclasses.field(default_factory=LabelFormat)
  token: str = ""
  loopback: bool = True

  def __post_init__(self):
    self._budget = Budget(self.limits.memory_bytes)
    self._metrics = metrics.Metrics(self.engine, self.store, self._budget)
    self._threads = ThreadPoolExecutor(_DECODERS, "decoder")

  def application(self, routes: Sequence[Route] = ()) -> ASGIApp:
    """Returns the application.

    Args:
      routes: further routes, behind the same checks.
    """
    own = [
      Route("/predict", self.predict, methods=["POST"]),
      Route("/prompts", self.list_prompts, methods=["GET"]),
      Route("/prompts/{name}", self.put_prompts, methods=["PUT"]),
      Route("/prompts/{name}", self.get_prompts, methods=["GET"]),
      Route("/prompts/{name}", self.delete_prompts, methods=["DELETE"]),
      Route("/health", self.health, methods=["GET"]),
      Route("/metrics", self.show_metrics, methods=["GET"]),
      Route("/openapi.json", self.show_openapi, methods=["GET"]),
      Route("/docs", self.show_docs, methods=["GET"]),
    ]
    app = Starlette(routes=[*own, *routes], exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    return Guard(
      app,
      token=self.token,
      open_paths=_OPEN_PATHS,
      loopback=self.loopback,
      most_bytes=self.limits.body_bytes,
      observe=self._metrics.observe,
    )

  # ------------------------------------------------------------------------------------------------------- predictions

  async def predict(self, request: Request) -> Response:
    """Segments the images of a request."""
    self.engine.check_room()
    with self._budget.reserve(self._body_bytes(request)):
      body = await read_body(request, PREDICT_FIELDS, FILES, self.limits)
      self._check_learned(body)
      options, labels = options_of(body.values, self.options), labels_of(body.values, self.labels)
      stored = self._stored_prompts(body)
      as_png, confidence = _wants_png(request, body), body.values.get("confidence", False)
      sizes = await self._in_thread(self._check_sizes, body)
      self._check_work(body, options, sizes[: len(body.files["image"])], stored)
      shown = [*sizes, *(stored.sizes if stored is not None else ())]
      pixels = sum(h * w for h, w in sizes) + self.limits.check_zoom(shown, options.zoom)
      with self._budget.reserve(pixels * BYTES_PER_PIXEL):
        images, prompts = await self._in_thread(_decode, body, labels)
        prompts = prompts if stored is None else stored
        predictions = await self._wait(request, self.engine.submit(images, prompts, options))
        if as_png:
          return Response(await self._in_thread(encode_png, predictions[0].labels), media_type="image/png")
        warnings = await self._in_thread(prompts.warnings, self.engine.predictor, options)
        described = await self._in_thread(lambda: [_describe(each, confidence) for each in predictions])
    return JSONResponse({"model": self.model, "predictions": described, "warnings": warnings})

  def _check_learned(self, body: Body) -> None:
    """Raises InputError for prompts sent to a network that answers without."""
    given = [name for name in FILES[1:] if body.files[name]] + ["prompts"] * ("prompts" in body.values)
    if given and not self.engine.predictor.needs_prompts:
      raise InputError(
        f"{given[0]} cannot be combined with a learned prompt or a trained head, which serves every query"
      )

  def _stored_prompts(self, body: Body) -> PromptSet | None:
    """Returns the stored prompts that a request names, if it does."""
    if "prompts" not in body.values:
      return None
    given = [name for name in FILES[1:] if body.files[name]]
    if given:
      raise InputError(f"{given[0]} cannot be combined with prompts={body.values['prompts'][:80]}")
    return self.store.get(body.values["prompts"])

  def _check_sizes(self, body: Body) -> list[tuple[int, int]]:
    """Checks the number of files and of pixels; returns the sizes of all files, images first."""
    images, prompt_images, prompt_labels = (body.files[name] for name in FILES)
    self.limits.check_count("image", len(images), self.limits.images)
    self.limits.check_count("prompt_image", len(prompt_images), self.limits.prompts)
    if len(prompt_images) != len(prompt_labels):
      raise InputError(
        f"prompt_label: found {len(prompt_labels)} files, expected {len(prompt_images)}, one for each prompt_image"
      )
    return self.limits.check_pixels([*images, *prompt_images, *prompt_labels])

  def _check_work(
    self, body: Body, options: InferenceOptions, sizes: Sequence[tuple[int, int]], stored: PromptSet | None
  ) -> None:
    """Checks that a request has images, and how much work each of them is."""
    if not sizes:
      raise InputError("image: found none, expected at least one file")
    count, tile = len(body.files["prompt_image"]) if stored is None else len(stored), self.engine.predictor.tile_size
    for index, size in enumerate(sizes):
      # A camera may have stored an image lying on its side.
      needed = max(count_canvases(options, shape, count, tile) for shape in (size, size[::-1]))
      self.limits.check_canvases(f"image[{index}]", needed)

  async def _wait(self, request: Request, futures: Sequence[Future[Prediction]]) -> list[Prediction]:
    """Waits for predictions, as long as the client does and no longer than the limit."""
    answers = [asyncio.wrap_future(future) for future in futures]
    every = asyncio.ensure_future(asyncio.wait(answers))
    gone = asyncio.ensure_future(_disconnection(request))
    try:
      done, _ = await asyncio.wait({every, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
      if every not in done:
        raise HTTPException(499 if done else 504, f"no answer after {self.limits.seconds:g} seconds")
      for error in [answer.exception() for answer in answers]:
        if error is not None:
          raise error
      return [answer.result() for answer in answers]
    finally:
      for waiting in (every, gone, *answers):
        waiting.cancel()

  # ----------------------------------------------------------------------------------------------------------- prompts

  async def put_prompts(self, request: Request) -> Response:
    """Stores a set of prompts."""
    self.engine.check_room(0)
    with self._budget.reserve(self._body_bytes(request)):
      body = await read_body(request, LABEL_FIELDS, FILES[1:], self.limits)
      self._check_learned(body)
      labels = labels_of(body.values, self.labels)
      if not body.files["prompt_image"]:
        raise InputError("prompt_image: found none, expected at least one file")
      sizes = await self._in_thread(self._check_sizes, body)
      with self._budget.reserve(sum(h * w for h, w in sizes) * BYTES_PER_PIXEL):
        _, prompts = await self._in_thread(_decode, body, labels)
        is_new = self.store.put(request.path_params["name"], prompts)
        warnings = await self._in_thread(prompts.warnings, self.engine.predictor, self.options)
    described = _describe_set(request.path_params["name"], Stored(prompts))
    return JSONResponse(described | {"warnings": warnings}, 201 if is_new else 200)

  async def list_prompts(self, _: Request) -> Response:
    """Lists the stored sets."""
    return JSONResponse({"prompts": [_describe_set(name, each) for name, each in self.store.list().items()]})

  async def get_prompts(self, request: Request) -> Response:
    """Describes a stored set."""
    name = request.path_params["name"]
    return JSONResponse(_describe_set(name, self.store.peek(name)))

  async def delete_prompts(self, request: Request) -> Response:
    """Drops a stored set."""
    self.store.remove(request.path_params["name"])
    return Response(status_code=204)

  # ------------------------------------------------------------------------------------------------------ about itself

  async def health(self, request: Request) -> Response:
    """Says whether the service is ready, and more to those who have the token."""
    state = self.engine.state
    details = {"model": self.model, "queue": self.engine.queue_length} if request.scope["authorized"] else {}
    return JSONResponse({"status": state, **details}, 200 if state == "ready" else 503)

  async def show_metrics(self, _: Request) -> Response:
    """Returns the numbers for Prometheus."""
    return Response(self._metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})

  async def show_openapi(self, _: Request) -> Response:
    """Returns the description for programs."""
    return JSONResponse(openapi.describe())

  async def show_docs(self, _: Request) -> Response:
    """Returns the description for people."""
    return HTMLResponse(openapi.docs_page(), headers={"content-security-policy": openapi.DOCS_POLICY})

  def _body_bytes(self, request: Request) -> int:
    """Returns the memory that the body of a request will need: what it states, or else the largest."""
    stated = request.headers.get("content-length", "")
    size = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else self.limits.body_bytes
    return min(size, self.limits.body_bytes) * BYTES_PER_BODY_BYTE

  async def _in_thread(self, function: Callable, *arguments: Any) -> Any:
    """Runs a slow function outside the event loop, in one of a few threads."""
    return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _decode(body: Body, labels: LabelFormat) -> tuple[list[np.ndarray], PromptSet]:
  """Decodes the images and the prompts of a request."""
  prompts = []
  for (image_name, image_data), (label_name, label_data) in zip(
    body.files["prompt_image"], body.files["prompt_label"], strict=True
  ):
    image, label = decode_image(image_data, image_name), labels.decode(label_data, label_name)
    check_size(label, image.shape[:2], label_name)
    prompts.append(load_prompt((image, label), label_name))
  return [decode_image(data, name) for name, data in body.files["image"]], PromptSet(prompts)


def _wants_png(request: Request, body: Body) -> bool:
  """Returns whether the answer must be a PNG file.

  Raises:
    InputError: there are several images, or more than a label map is asked for.
  """
  kinds = {each.partition(";")[0].strip().lower() for each in request.headers.get("accept", "*/*").split(",")}
  if "image/png" not in kinds or "application/json" in kinds:
    return False
  if len(body.files["image"]) > 1:
    raise InputError(f"Accept: found image/png for {len(body.files['image'])} images, expected one image")
  if body.values.get("confidence"):
    raise InputError("confidence cannot be combined with Accept: image/png; ask for JSON")
  return True


async def _disconnection(request: Request) -> None:
  """Returns once the client has gone."""
  while (await request.receive())["type"] != "http.disconnect":
    pass


def _describe(prediction: Prediction, confidence: bool) -> dict[str, Any]:
  """Returns a prediction as JSON has it."""
  labels = prediction.labels
  counts = np.bincount(labels.ravel(), minlength=max(prediction.classes) + 1)
  classes = [
    {"class": index, "pixels": int(counts[index]), "share": float(counts[index] / labels.size)}
    for index in prediction.classes
  ]
  described = {"height": labels.shape[0], "width": labels.shape[1], "classes": classes, "labels": _base64(labels)}
  if confidence:
    values = prediction.confidence()
    sums = np.bincount(labels.ravel(), values.ravel(), minlength=len(counts))
    for entry in classes:
      entry["confidence"] = float(sums[entry["class"]] / entry["pixels"]) if entry["pixels"] else None
    described["confidence"] = _base64(np.round(255 * values).astype(np.uint8))
  return described


def _base64(pixels: np.ndarray) -> str:
  return base64.b64encode(encode_png(pixels)).decode()


def _describe_set(name: str, stored: Stored) -> dict[str, Any]:
  prompts = stored.prompts
  return {
    "name": name,
    "classes": list(prompts.classes),
    "sizes": [list(size) for size in prompts.sizes],
    "bytes": prompts.num_bytes,
    "pinned": stored.pinned,
  }
