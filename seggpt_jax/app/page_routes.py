"""The web application of `seggpt app`: the page's files, and the API that its scripts call.

In: requests with the page's cookie. Out: JSON, pictures and zip files. The work is done in `project`, `sessions` and
`bundles`; here requests are checked and taken apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from seggpt_jax.app import bundles, http
from seggpt_jax.app.limits import Budget
from seggpt_jax.app.pictures import LABEL_MAPS, UnknownError, check_header, drawn_label
from seggpt_jax.app.project import Project
from seggpt_jax.app.sessions import Session, cut_out, thumbnail
from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.files import parse_json
from seggpt_jax.formats.images import upright_size
from seggpt_jax.inference.pictures import encode_png

PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PICTURES = {".jpg": "image/jpeg", ".png": "image/png"}
_KEPT = {"cache-control": "private, max-age=3600"}
_JSON_BYTES, _IMAGE_BYTES, _FILE_BYTES = 100_000, 64 * 2**20, 2**30
_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)
_BODIES_BYTES = 6 * _IMAGE_BYTES  # of all requests together, which are held in memory until they are answered
_THREADS = 4  # each may hold an image of the largest size in memory

Coordinate = Annotated[int, Query(ge=0, le=10**6)]
ClassIndex = Annotated[int, Query(alias="class", ge=1)]


def create_page(project: Project, *, token: str = "", loopback: bool = True, examples: bool = True) -> FastAPI:
  """Returns the web application of a project, which everybody who opens the page works on.

  Args:
    project: the project.
    token: token that a browser has to show once, in `/?token=`; "" for none.
    loopback: whether the server listens on a loopback address only.
    examples: whether a new project starts with the ready examples.
  """
  page, session, folder = _Page(project, token, examples), project.session, project.session.folder
  app = FastAPI(
    openapi_url=None,
    redirect_slashes=False,
    middleware=[Middleware(http.Guard, loopback=loopback, most_bytes=_IMAGE_BYTES)],
    exception_handlers={
      **http.HANDLERS,
      UnknownError: lambda _, error: http.error_response(404, error),
      InputError: lambda _, error: http.error_response(422, _without_paths(error, folder)),
      MachineError: lambda _, error: http.error_response(507, _without_paths(error, folder)),
    },
  )
  app.add_api_route("/", page.index)
  app.add_api_route("/page/{name}", _static)
  # Methods of the session and of the project are endpoints as they are: FastAPI reads their arguments from the address.
  for method, path, endpoint in (
    ("GET", "session", page.state),
    ("POST", "settings", page.settings),
    ("POST", "classes", page.classes),
    ("DELETE", "classes/{index}", project.remove_class),
    ("POST", "boards", functools.partial(bundles.add_boards, session)),
    ("POST", "images", page.add_image),
    ("DELETE", "images", project.clear),
    ("DELETE", "images/{key}", session.remove),
    ("GET", "images/{key}/picture", page.picture),
    ("GET", "images/{key}/thumbnail", page.thumbnail),
    ("GET", "images/{key}/confidence", page.confidence),
    ("GET", "images/{key}/{what}", page.labels),
    ("PUT", "images/{key}/{what}", page.put_labels),
    ("DELETE", "images/{key}/{what}", page.clear_labels),
    ("POST", "images/{key}/mask", page.read_mask),
    ("POST", "images/{key}/promote", session.promote),
    ("POST", "images/{key}/cut", page.cut),
    ("POST", "images/{key}/look", session.look),
    ("POST", "images/{key}/done", session.set_done),
    ("POST", "learning", page.learn),
    ("DELETE", "learning", page.stop_learning),
    ("GET", "learning/panel", page.panel),
    ("GET", "download/{kind}", page.download),
    ("GET", "learned/{name}", page.learned),
    ("GET", "archive", page.save),
    ("POST", "archive", page.load),
  ):
    app.add_api_route(f"/api/{path}", endpoint, methods=[method], dependencies=[Depends(page.check)])
  http.allow_head(app)
  return app


def cookie_name(request: Request) -> str:
  """Returns the name of the page's cookie, with the port in it: browsers share cookies among all ports."""
  return f"seggpt_page_{request.url.port or 80}"


async def _image_body(request: Request) -> bytes:
  return b"".join([piece async for piece in http.limited_stream(request, _IMAGE_BYTES)])


async def _json_body(request: Request) -> dict[str, Any]:
  """Returns the body of a request, which must be a JSON object."""
  data = b"".join([piece async for piece in http.limited_stream(request, _JSON_BYTES)])
  try:
    found = parse_json(data)
  except ValueError as error:
    raise InputError("body: cannot be read as JSON") from error
  if not isinstance(found, dict):
    raise InputError("body: expected a JSON object")
  return found


ImageBody = Annotated[bytes, Depends(_image_body)]
JsonBody = Annotated[dict[str, Any], Depends(_json_body)]


class _Page:
  """The endpoints. Those that are not `async` decode images or write files, and run in one of a few threads."""

  def __init__(self, project: Project, token: str, examples: bool):
    self._project, self._session, self._token, self._examples = project, project.session, token, examples
    # The same after the next start, so that an open page continues. Only the page itself can make a browser send it.
    self._cookie = hmac.new(token.encode(), b"seggpt app", "sha256").hexdigest()
    self._bodies, self._opening = Budget(_BODIES_BYTES), asyncio.Lock()

  async def check(self, request: Request) -> AsyncIterator[None]:
    """Checks who sends a request, and wakes the answering thread after a change."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    if not self._is_known(request):
      raise HTTPException(401, "cookie: missing or of another token; reload the page")
    if request.method not in ("GET", "HEAD") and not request.headers.get("origin"):
      # The guard has compared the headers that are there. Every browser sends one with a change.
      raise HTTPException(403, "Origin: missing, expected the page's own for a change")
    await self._add_examples()
    with self._bodies.reserve(http.body_bytes(request, _IMAGE_BYTES)):  # videos and archives go to the disk
      yield
    if request.method not in ("GET", "HEAD"):
      self._project.answering.call()

  def _is_known(self, request: Request) -> bool:
    return hmac.compare_digest(request.cookies.get(cookie_name(request), "").encode(), self._cookie.encode())

  async def _add_examples(self) -> None:
    """Adds the ready examples to a new project."""
    async with self._opening:  # a page sends its first calls at the same time
      if self._examples and self._session.is_new and not self._session.pictures:
        await run_in_threadpool(bundles.add_boards, self._session)
        self._project.answering.call()
      self._examples = False

  async def index(self, request: Request, token: str = "") -> Response:
    """Serves the page, and gives a browser that shows the token the page's cookie."""
    response: Response = RedirectResponse("./", 303) if token else _static("index.html")
    if not self._is_known(request):
      if self._token and not hmac.compare_digest(token.encode(), self._token.encode()):
        raise HTTPException(401, "token: missing or wrong, expected the address that `seggpt app` has printed")
      response.set_cookie(cookie_name(request), self._cookie, httponly=True, samesite="strict", path="/")
    return response

  # --------------------------------------------------------------------------------------------------------- session

  def state(self, since: Annotated[int, Query(ge=0, le=10**9)] = 0, first: str = "") -> Response:
    """Answers with the state of the session, with the images that have changed since; `first` is on the screen."""
    if first in self._session.pictures:
      self._session.first = first
    return JSONResponse(self._project.as_json(since))

  def settings(self, values: JsonBody) -> None:
    """Changes settings."""
    self._project.choose(values)

  def classes(self, values: JsonBody) -> None:
    """Names the classes."""
    self._session.set_classes(values.get("names"))

  # ---------------------------------------------------------------------------------------------------------- images

  async def add_image(self, request: Request, name: str = "image") -> Response:
    """Adds the image or video that is the body."""
    if bundles.is_video(name):
      with tempfile.NamedTemporaryFile(dir=self._session.scratch, suffix=Path(name).suffix) as file:
        path = await _read_to(request, file.name)
        count = await run_in_threadpool(bundles.add_frames, self._session, path, name, self._project.limits.pixels)
      return JSONResponse({"added": count}, 201)
    data = await _image_body(request)
    picture = await run_in_threadpool(self._session.add_image, name, data)
    return JSONResponse({"added": 1, "key": picture.key}, 201)

  def picture(self, key: str) -> Response:
    """Serves an image."""
    kind = _PICTURES[self._session.find(key).path.suffix]
    return Response(self._session.image_bytes(key), media_type=kind, headers=_KEPT)

  def thumbnail(self, key: str) -> Response:
    """Serves a small picture of an image with its label or answer over it."""
    return Response(thumbnail(self._session, key), media_type="image/jpeg", headers=_KEPT)

  # ---------------------------------------------------------------------------------------------- labels and answers

  def labels(self, key: str, what: Literal["label", "draft", "answer"]) -> Response:
    """Serves the label of an image, what is drawn on it and not in use yet, or its answer: class indices as PNG."""
    if what == "answer":
      return _png(self._session.answer(key).labels)
    return _png(self._session.label(key) if what == "label" else self._session.draft(key))

  def put_labels(self, key: str, what: Literal["label", "draft"], data: ImageBody) -> None:
    """Stores a PNG of class indices as what is drawn on an image, or as its label, which makes it an example."""
    labels = _read_mask(self._session, key, data, what, None)
    (self._session.set_label if what == "label" else self._session.set_draft)(key, labels)

  def read_mask(self, key: str, data: ImageBody, name: str = "mask", index: ClassIndex = 1) -> Response:
    """Reads a mask file of any kind and answers with its class indices as PNG; `class` is for masks of one class."""
    self._session.check_class(index)
    return _png(_read_mask(self._session, key, data, name, index))

  def clear_labels(self, key: str, what: Literal["label", "draft"]) -> None:
    """Deletes the label of an image, or what is drawn on it."""
    (self._session.clear_label if what == "label" else self._session.clear_draft)(key)

  def confidence(self, key: str) -> Response:
    """Serves the confidence of the answer for an image, 0..255 as PNG."""
    return _png(np.round(255 * self._session.answer(key).confidence()))

  def cut(
    self, key: str, x: Coordinate, y: Coordinate, width: Coordinate, height: Coordinate, seed: Coordinate = 0
  ) -> Response:
    """Cuts out what is in a box, or with a seed what is like its center; answers with a PNG of the box, 1 inside."""
    return _png(cut_out(self._session, key, (x, y, width, height), seed))

  # -------------------------------------------------------------------------------------------------------- learning

  def learn(self, values: JsonBody) -> Response:
    """Starts a training run."""
    self._project.learn(values.get("steps"), values.get("again") is True)
    return JSONResponse({}, 202)

  def stop_learning(self) -> Response:
    """Stops the training run after its current step."""
    self._project.learning.stop()
    return JSONResponse({}, 202)

  def panel(self) -> Response:
    """Serves the newest picture of the training run."""
    path = self._project.learning.panel()
    if path is None:
      raise HTTPException(404, "panel: the training run has drawn none yet")
    return FileResponse(path, media_type="image/png")

  # ----------------------------------------------------------------------------------------------------------- files

  def download(self, kind: str) -> Response:
    """Serves labels and answers as a zip file."""
    if kind not in bundles.DOWNLOADS:
      raise HTTPException(404, f"download: expected one of {', '.join(bundles.DOWNLOADS)}")
    return _zipped(self._session, lambda path: bundles.write_download(self._session, kind, path), kind)

  def learned(self, name: str) -> Response:
    """Serves what a training run has learned as a zip file."""
    if (run := self._project.learned.get(name)) is None:
      raise HTTPException(404, f"learned: expected one of {', '.join(self._project.learned) or 'none yet'}")
    name = f"learned_{name}"
    return _zipped(self._session, lambda path: bundles.write_network(run, name, path), name)

  def save(self) -> Response:
    """Serves the session as a zip file."""
    return _zipped(self._session, lambda path: bundles.save_session(self._session, path), "session")

  async def load(self, request: Request) -> Response:
    """Adds the images and labels of a zip file."""
    with tempfile.NamedTemporaryFile(dir=self._session.scratch, suffix=".zip") as file:
      path = await _read_to(request, file.name)
      count = await run_in_threadpool(bundles.load_session, self._session, path, 2 * _FILE_BYTES)
    return JSONResponse({"added": count}, 201)


def _static(name: str) -> Response:
  """Serves a file of the page's folder."""
  path = PAGE / name
  if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
    raise HTTPException(404, "page: no such file")
  headers = {"cache-control": "no-cache", "content-security-policy": _POLICY}
  return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)


async def _read_to(request: Request, target: str) -> Path:
  """Writes the body of a request to a file and returns its path."""
  with open(target, "wb") as file:
    async for piece in http.limited_stream(request, _FILE_BYTES):
      file.write(piece)
  return Path(target)


def _without_paths(error: Exception, folder: Path) -> str:
  """Returns a message in which temporary files have their last name only."""
  return " ".join(word.rpartition("/")[2] if str(folder) in word else word for word in str(error).split(" "))


def _read_mask(session: Session, key: str, data: bytes, where: str, class_index: int | None) -> np.ndarray:
  """Reads a label map, or a mask of one class, of the size of an image; its pixels are counted before decoding."""
  height, width = session.find(key).size
  check_header(data, where, height * width)
  if (found := upright_size(data, where)) != (height, width):
    raise InputError(f"{where}: found {found[1]} x {found[0]} pixels, expected {width} x {height} as the image has")
  return LABEL_MAPS.decode(data, where) if class_index is None else drawn_label(data, where, class_index)


def _png(labels: np.ndarray) -> Response:
  """Returns gray values as a PNG file."""
  return Response(encode_png(labels.astype(np.uint8)), media_type="image/png")


def _zipped(session: Session, write: Callable[[Path], None], name: str) -> Response:
  """Returns a zip file that is deleted once it is sent."""
  with contextlib.ExitStack() as held:
    folder = held.enter_context(tempfile.TemporaryDirectory(dir=session.scratch, ignore_cleanup_errors=True))
    write(target := Path(folder) / f"{name}.zip")
    cleanup = BackgroundTask(held.pop_all().close)
  return FileResponse(target, media_type="application/zip", filename=f"seggpt_{name}.zip", background=cleanup)
