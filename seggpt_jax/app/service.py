"""The predictor over HTTP: networks, stored prompts and limits in, an ASGI application out."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import seggpt_jax
from seggpt_jax.app import answers, metrics
from seggpt_jax.app.bodies import read_body
from seggpt_jax.app.engine import Engine
from seggpt_jax.app.fields import FILES, PredictFields, PromptFields
from seggpt_jax.app.http import HANDLERS, Guard, allow_head, body_bytes
from seggpt_jax.app.limits import BYTES_PER_BODY_BYTE, BYTES_PER_PIXEL, Budget, Limits
from seggpt_jax.app.prompt_sets import PromptSet, PromptStore
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import decode_image
from seggpt_jax.formats.labels import LabelFormat, check_size
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import encode_png
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.prompts import load_prompt

_DECODERS = 4  # threads that decode images and encode answers
_OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")  # they need no token
# FastAPI's page loads its script and its style from here.
_CDN = "https://cdn.jsdelivr.net 'unsafe-inline'"
_DOCS_POLICY = (
  f"default-src 'none'; script-src {_CDN}; style-src {_CDN}; img-src data:; connect-src 'self'; frame-ancestors 'none'"
)
_ERRORS = {
  400: "The request is damaged.",
  401: "The token is missing or wrong.",
  404: "No prompts are stored under this name.",
  408: "The request did not arrive in time.",
  413: "The request is larger than a limit.",
  415: "The body has another type.",
  422: "A value or a file is wrong.",
  429: "The service is busy; try again after the seconds in Retry-After.",
  503: "The network is loading, or the service is shutting down.",
  504: "The answer was not ready in time.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
  """A network that requests can name."""

  engine: Engine  # owns the predictor
  options: InferenceOptions = dataclasses.field(default_factory=InferenceOptions)  # options of requests that set none
  # how label maps are read if a request does not say so
  labels: LabelFormat = dataclasses.field(default_factory=LabelFormat)
  class_names: tuple[str, ...] = ()  # names of classes 1, 2, ..., as far as they are known


@dataclasses.dataclass(eq=False)
class Service:
  """Answers requests."""

  models: Mapping[str, Served]  # the networks by their names; the first one answers requests that name none
  store: PromptStore  # the stored prompts, which all networks share
  limits: Limits = dataclasses.field(default_factory=Limits)  # the limits
  token: str = ""  # what requests must bring; "" for none
  loopback: bool = True  # whether the service is reached from this machine only

  def __post_init__(self):
    self._first = next(iter(self.models))
    self._budget = Budget(self.limits.memory_bytes)
    self._metrics = metrics.Metrics({name: each.engine for name, each in self.models.items()}, self.store, self._budget)
    self._threads = ThreadPoolExecutor(_DECODERS, "decoder")

  def application(self) -> ASGIApp:
    """Returns the application."""
    app = FastAPI(
      title="seggpt serve",
      version=seggpt_jax.__version__,
      exception_handlers=HANDLERS,
      redirect_slashes=False,
      docs_url=None,
      redoc_url=None,
      openapi_url=None,
      # The guard checks the token; this describes it, so that /docs can send it.
      dependencies=[Depends(HTTPBearer(auto_error=False))],
      responses={status: {"model": answers.ErrorAnswer, "description": text} for status, text in _ERRORS.items()},
    )

    def add(method: str, path: str, endpoint: Callable, **options: Any) -> None:
      app.add_api_route(path, endpoint, methods=[method], response_model_exclude_unset=True, **options)

    of_set = "/prompts/{name}"
    add("POST", "/predict", self.predict, response_model=answers.PredictAnswer, openapi_extra=_body(PredictFields))
    add("GET", "/prompts", self.list_prompts, response_model=answers.SetsAnswer)
    add("PUT", of_set, self.put_prompts, response_model=answers.SetAnswer, openapi_extra=_body(PromptFields))
    add("GET", of_set, self.get_prompts, response_model=answers.SetAnswer)
    add("DELETE", of_set, self.delete_prompts, status_code=204)
    add("GET", "/health", self.health, response_model=answers.HealthAnswer)
    add("GET", "/metrics", self.show_metrics, response_class=Response)
    described = app.openapi()

    async def show_openapi() -> Response:
      return JSONResponse(described)

    async def show_index() -> Response:
      return HTMLResponse(_index(described["paths"]))

    add("GET", "/openapi.json", show_openapi)
    add("GET", "/", show_index)
    add("GET", "/docs", show_docs)
    allow_head(app)
    return Guard(
      app,
      token=self.token,
      open_paths=_OPEN_PATHS,
      loopback=self.loopback,
      most_bytes=self.limits.body_bytes,
      observe=self._metrics.observe,
    )

  # ------------------------------------------------------------------------------------------------------- predictions

  async def predict(self, request: Request) -> Any:
    """Segments images by example."""
    self._check_room()
    with self._budget.reserve(body_bytes(request, self.limits.body_bytes) * BYTES_PER_BODY_BYTE):
      fields = await read_body(request, PredictFields, self.limits)
      name, served = self._find(fields.model)
      served.engine.check_room()
      _check_learned(fields, [served])
      options, labels = fields.options(served.options), fields.format(served.labels)
      stored = self._stored_prompts(fields)
      as_png = _wants_png(request, fields)
      sizes = await self._in_thread(self._check_sizes, fields)
      if not fields.image:
        raise InputError("image: found none, expected at least one file")
      count = len(fields.prompt_image if stored is None else stored)
      self.limits.check_canvases(sizes[: len(fields.image)], options, count, served.engine.predictor.tile_size)
      shown = [*sizes, *(stored.sizes if stored is not None else ())]
      pixels = sum(h * w for h, w in sizes) + self.limits.check_zoom(shown, options.scale)
      with self._budget.reserve(pixels * BYTES_PER_PIXEL):
        images, prompts = await self._in_thread(_decode, fields, labels)
        prompts = prompts if stored is None else stored
        predictions = await self._wait(request, served.engine.submit(images, prompts, options))
        if as_png:
          draw = (lambda: predictions[0].labels) if as_png == "labels" else lambda: predictions[0].overlay(images[0])
          return Response(await self._in_thread(lambda: encode_png(draw())), media_type="image/png")
        warnings = await self._in_thread(prompts.warnings, served.engine.predictor, options)
        answer = await self._in_thread(answers.describe, predictions, images, fields, served.class_names)
    return {"model": name, "warnings": warnings, **answer}

  def _find(self, name: str | None) -> tuple[str, Served]:
    """Returns the network that a request names, or the first."""
    name = self._first if name is None else name
    if name not in self.models:
      raise InputError(f"model: found {name[:80]!r}, expected one of {', '.join(self.models)}")
    return name, self.models[name]

  def _check_room(self, count: int = 1) -> None:
    """Raises the error of the first network, if no network takes more images."""
    errors = []
    for served in self.models.values():
      try:
        return served.engine.check_room(count)
      except RuntimeError as error:
        errors.append(error)
    raise errors[0]

  def _stored_prompts(self, fields: PredictFields) -> PromptSet | None:
    """Returns the stored prompts that a request names, if it does."""
    if fields.prompts is None:
      return None
    if given := _prompt_files(fields):
      raise InputError(f"{given[0]} cannot be combined with prompts={fields.prompts[:80]}")
    return self.store.get(fields.prompts, use=True)

  def _check_sizes(self, fields: PromptFields) -> list[tuple[int, int]]:
    """Checks the number of files and of pixels; returns the sizes of all files, images first."""
    images, prompt_images, prompt_labels = (getattr(fields, name, []) for name in FILES)
    self.limits.check_count("image", len(images), self.limits.images)
    self.limits.check_count("prompt_image", len(prompt_images), self.limits.prompts)
    if len(prompt_images) != len(prompt_labels):
      raise InputError(
        f"prompt_label: found {len(prompt_labels)} files, expected {len(prompt_images)}, one for each prompt_image"
      )
    return self.limits.check_pixels([(each.name, each.data) for each in (*images, *prompt_images, *prompt_labels)])

  async def _wait(self, request: Request, futures: Sequence[Future[Prediction]]) -> list[Prediction]:
    """Waits for predictions, as long as the client does and no longer than the limit."""
    waiting = [asyncio.wrap_future(future) for future in futures]
    every = asyncio.ensure_future(asyncio.wait(waiting))
    gone = asyncio.ensure_future(_disconnection(request))
    try:
      done, _ = await asyncio.wait({every, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
      if every not in done:
        raise HTTPException(499 if done else 504, f"no answer after {self.limits.seconds:g} seconds")
      for error in [each.exception() for each in waiting]:
        if error is not None:
          raise error
      return [each.result() for each in waiting]
    finally:
      for each in (every, gone, *waiting):
        each.cancel()

  # ----------------------------------------------------------------------------------------------------------- prompts

  async def put_prompts(self, name: str, request: Request, response: Response) -> Any:
    """Stores a set of prompts in memory, for requests with prompts=NAME."""
    self._check_room(0)
    first = self.models[self._first]
    with self._budget.reserve(body_bytes(request, self.limits.body_bytes) * BYTES_PER_BODY_BYTE):
      fields = await read_body(request, PromptFields, self.limits)
      _check_learned(fields, list(self.models.values()))
      labels = fields.format(first.labels)
      if not fields.prompt_image:
        raise InputError("prompt_image: found none, expected at least one file")
      sizes = await self._in_thread(self._check_sizes, fields)
      with self._budget.reserve(sum(h * w for h, w in sizes) * BYTES_PER_PIXEL):
        _, prompts = await self._in_thread(_decode, fields, labels)
        response.status_code = 201 if self.store.put(name, prompts) else 200
        warnings = await self._in_thread(prompts.warnings, first.engine.predictor, first.options)
    return {**answers.describe_set(name, prompts), "warnings": warnings}

  async def list_prompts(self) -> Any:
    """Lists the stored sets of prompts."""
    return {"prompts": [answers.describe_set(name, each) for name, each in self.store.list().items()]}

  async def get_prompts(self, name: str) -> Any:
    """Describes a set; its images are not shown."""
    return answers.describe_set(name, self.store.get(name))

  async def delete_prompts(self, name: str) -> None:
    """Drops a set."""
    self.store.remove(name)

  # ------------------------------------------------------------------------------------------------------ about itself

  async def health(self, request: Request, response: Response) -> Any:
    """Says whether the service is ready, and more to those who have the token."""
    engines = [each.engine for each in self.models.values()]
    state = next((each.state for each in engines if each.state != "ready"), "ready")
    response.status_code = 200 if state == "ready" else 503
    if not request.scope["authorized"]:
      return {"status": state}
    waiting = sum(each.queue_length for each in engines)
    return {"status": state, "model": self._first, "models": list(self.models), "queue": waiting}

  async def show_metrics(self) -> Response:
    """Returns numbers for Prometheus."""
    return Response(self._metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})

  async def _in_thread(self, function: Callable, *arguments: Any) -> Any:
    """Runs a slow function outside the event loop, in one of a few threads."""
    return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _body(model: type[PromptFields]) -> dict[str, Any]:
  """Returns the description of the two forms of a body, which are read by hand."""
  form = model.model_json_schema()
  values = json.loads(json.dumps(form).replace('"format": "binary"', '"contentEncoding": "base64"'))
  content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": values}}
  return {"requestBody": {"required": True, "content": content}}


def _index(paths: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the page that says what this is, from the paths of OpenAPI."""
  rows = "".join(
    f"<tr><td><code>{verb.upper()} {path}</code><td>{html.escape(each['description'])}"
    for path, verbs in paths.items()
    for verb, each in verbs.items()
  )
  return (
    "<!doctype html><html lang=en><meta charset=utf-8><title>seggpt serve</title><h1>seggpt serve "
    f"{seggpt_jax.__version__}</h1><p>Segments images by example.<p><a href=docs>/docs</a> to try it (loads its script "
    "from the internet), <a href=openapi.json>/openapi.json</a> for programs, <a href=health>/health</a>, <a "
    f"href=metrics>/metrics</a> for Prometheus.<table>{rows}</table></html>"
  )


async def show_docs() -> Response:
  """Returns the page that tries requests; it loads its script from the internet."""
  page = get_swagger_ui_html(openapi_url="openapi.json", title="seggpt serve", swagger_favicon_url="data:,")
  page.headers["content-security-policy"] = _DOCS_POLICY
  return page


def _prompt_files(fields: PromptFields) -> list[str]:
  return [name for name in FILES[1:] if getattr(fields, name)]


def _check_learned(fields: PromptFields, models: Sequence[Served]) -> None:
  """Raises InputError for prompts sent to networks that answer without."""
  given = _prompt_files(fields) + ["prompts"] * (getattr(fields, "prompts", None) is not None)
  if given and not any(each.engine.predictor.needs_prompts for each in models):
    raise InputError(f"{given[0]} cannot be combined with a learned prompt or a trained head, which serves every query")


def _decode(fields: PromptFields, labels: LabelFormat) -> tuple[list[np.ndarray], PromptSet]:
  """Decodes the images and the prompts of a request."""
  prompts = []
  for image_file, label_file in zip(fields.prompt_image, fields.prompt_label, strict=True):
    image, label = decode_image(image_file.data, image_file.name), labels.decode(label_file.data, label_file.name)
    check_size(label, image.shape[:2], label_file.name)
    prompts.append(load_prompt((image, label), label_file.name))
  return [decode_image(each.data, each.name) for each in getattr(fields, "image", ())], PromptSet(prompts)


def _wants_png(request: Request, fields: PredictFields) -> str:
  """Returns the one picture of one image that the answer must be as a PNG file, or "" for JSON."""
  kinds = {each.partition(";")[0].strip().lower() for each in request.headers.get("accept", "*/*").split(",")}
  if "image/png" not in kinds or "application/json" in kinds:
    return ""
  if len(fields.image) > 1:
    raise InputError(f"Accept: found image/png for {len(fields.image)} images, expected one image")
  if fields.confidence:
    raise InputError("confidence cannot be combined with Accept: image/png; ask for JSON")
  if fields.answer not in (("labels",), ("overlay",)):
    raise InputError(f"answer: found {','.join(fields.answer)} with Accept: image/png, expected labels or overlay")
  return fields.answer[0]


async def _disconnection(request: Request) -> None:
  """Returns once the client has gone."""
  while (await request.receive())["type"] != "http.disconnect":
    pass
