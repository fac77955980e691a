"""The web application of `seggpt app`: the page's files, and the API that its scripts call.

In: requests with a session's cookie. Out: JSON, pictures and zip files. The work is done in `sessions`, `bundles` and
`learning`; here requests are checked and taken apart.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import io
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import anyio.to_thread
import cv2
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from seggpt_jax.app import bundles, http, ready_examples, video_frames
from seggpt_jax.app.limits import Budget
from seggpt_jax.app.page_sessions import PageSessions
from seggpt_jax.app.sessions import Session, UnknownError, check_header, drawn_label
from seggpt_jax.data.images import upright_size
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.files import parse_json
from seggpt_jax.inference.pictures import encode_png
from seggpt_jax.palette import display_palette

PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PICTURES = {".jpg": "image/jpeg", ".png": "image/png"}
_JSON_BYTES, _IMAGE_BYTES, _FILE_BYTES = 100_000, 64 * 2**20, 2**30
_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)
_BODIES_BYTES = 6 * _IMAGE_BYTES  # of all requests together, which are held in memory until they are answered
_THREADS = 4
_THUMBNAIL = 160  # pixels of the longer side

T = TypeVar("T")
Handler = Callable[[Request, Session], Awaitable[Response]]


def create_page(
  sessions: PageSessions, folder: Path, *, token: str = "", loopback: bool = True, examples: bool = True
) -> Starlette:
  """Returns the web application.

  Args:
    sessions: the sessions.
    folder: folder of temporary files, which no message names.
    token: token that a browser has to show once, in `/?token=`; "" for none.
    loopback: whether the server listens on a loopback address only.
    examples: whether a new session starts with the ready examples.
  """
  page = _Page(sessions, token, examples)
  api: dict[tuple[str, str], Handler] = {
    ("GET", "/api/session"): page.state,
    ("DELETE", "/api/session"): page.end,
    ("POST", "/api/settings"): page.settings,
    ("POST", "/api/classes"): page.classes,
    ("POST", "/api/boards"): page.boards,
    ("POST", "/api/images"): page.add_image,
    ("DELETE", "/api/images"): page.remove_all,
    ("DELETE", "/api/images/{key}"): page.remove,
    ("GET", "/api/images/{key}/picture"): page.picture,
    ("GET", "/api/images/{key}/thumbnail"): page.thumbnail,
    ("GET", "/api/images/{key}/label"): page.label,
    ("PUT", "/api/images/{key}/label"): page.put_label,
    ("DELETE", "/api/images/{key}/label"): page.clear_label,
    ("POST", "/api/images/{key}/mask"): page.read_mask,
    ("GET", "/api/images/{key}/answer"): page.answer,
    ("GET", "/api/images/{key}/confidence"): page.confidence,
    ("POST", "/api/images/{key}/promote"): page.promote,
    ("POST", "/api/learning"): page.learn,
    ("DELETE", "/api/learning"): page.stop_learning,
    ("GET", "/api/learning/panel"): page.panel,
    ("GET", "/api/download/{kind}"): page.download,
    ("GET", "/api/archive"): page.save,
    ("POST", "/api/archive"): page.load,
  }
  paths = dict.fromkeys(path for _, path in api)
  routes = [
    Route(path, page.dispatch({verb: api[verb, other] for verb, other in api if other == path}), methods=_METHODS)
    for path in paths
  ]
  routes += [Route("/", page.index), Route("/page/{name}", page.file)]

  return Starlette(
    routes=routes,
    middleware=[Middleware(http.Guard, loopback=loopback, most_bytes=_IMAGE_BYTES)],
    exception_handlers={
      **http.HANDLERS,
      UnknownError: lambda _, error: http.error_response(404, error),
      InputError: lambda _, error: http.error_response(422, _without_paths(error, folder)),
      MachineError: lambda _, error: http.error_response(507, _without_paths(error, folder)),
    },
  )


_METHODS = ["GET", "POST", "PUT", "DELETE"]


def cookie_name(request: Request) -> str:
  """Returns the name of the session's cookie, with the port in it: browsers share cookies among all ports."""
  return f"seggpt_session_{request.url.port or 80}"


class _Page:
  """The handlers of all requests."""

  def __init__(self, sessions: PageSessions, token: str, examples: bool):
    self._sessions, self._token, self._examples = sessions, token, examples
    # Each may hold an image of the largest size in memory.
    self._threads = anyio.CapacityLimiter(_THREADS)
    self._bodies, self._opening = Budget(_BODIES_BYTES), asyncio.Lock()

  async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function that decodes images or writes files, a few at a time."""
    return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=self._threads)

  def dispatch(self, handlers: dict[str, Handler]) -> Callable[[Request], Awaitable[Response]]:
    """Returns an endpoint that checks the session of a request and calls the handler of its method."""

    async def endpoint(request: Request) -> Response:
      key = request.cookies.get(cookie_name(request))
      session = self._sessions.find(key)
      if session is None and self._sessions.is_new(key):
        session = await self._open(key)
      if session is None:
        raise HTTPException(401, "session: it has ended, or was never opened; reload the page")
      handler = handlers.get("GET" if request.method == "HEAD" else request.method)
      if handler is None:
        raise HTTPException(405, f"method: found {request.method}, expected {' or '.join(handlers)}")
      if request.method not in ("GET", "HEAD") and not request.headers.get("origin"):
        # The guard has compared the headers that are there. Every browser sends one with a change.
        raise HTTPException(403, "Origin: missing, expected the page's own for a change")
      with self._bodies.reserve(_body_bytes(request)):
        return await handler(request, session)

    return endpoint

  async def _open(self, key: str) -> Session:
    """Opens the session of a browser that has shown the page, at its first call of the API."""
    async with self._opening:  # a page sends its first calls at the same time
      if (session := self._sessions.find(key)) is None:
        _, session = await self._in_thread(self._sessions.open, key)
        if self._examples:
          await self._in_thread(ready_examples.add_boards, session)
          self._sessions.answering.call()
    return session

  # ------------------------------------------------------------------------------------------------------- the page

  async def index(self, request: Request) -> Response:
    """Serves the page, and gives a browser without a session the id of one, which its first call opens.

    A picture in another page that has this address opens nothing: its request has no way to make that call.
    """
    given = request.query_params.get("token", "")
    known = request.cookies.get(cookie_name(request))
    if self._sessions.find(known) is None and not self._sessions.is_new(known):
      if self._token and not hmac.compare_digest(given.encode(), self._token.encode()):
        raise HTTPException(401, "token: missing or wrong, expected the address that `seggpt app` has printed")
      await self._in_thread(self._sessions.make_room)
      response: Response = RedirectResponse("/", 303) if given else _static("index.html")
      response.set_cookie(cookie_name(request), self._sessions.new_key(), httponly=True, samesite="strict", path="/")
      return response
    return RedirectResponse("/", 303) if given else _static("index.html")

  async def file(self, request: Request) -> Response:
    """Serves a file of the page."""
    return _static(request.path_params["name"])

  # --------------------------------------------------------------------------------------------------------- session

  async def state(self, request: Request, session: Session) -> Response:
    """Answers with the state of the session; ?since=N leaves out images without a change since."""
    since = _number(request, "since", 0, 10**9, 0)
    if (first := request.query_params.get("first")) in session.pictures:
      session.first = first
    state = await self._in_thread(self._sessions.as_json, session, since)
    colors = display_palette(len(session.classes) + 1)[1:]
    return JSONResponse({**state, "colors": [[int(value) for value in color] for color in colors]})

  async def end(self, request: Request, session: Session) -> Response:
    """Ends the session and deletes its files."""
    name = cookie_name(request)
    await self._in_thread(self._sessions.end, request.cookies[name])
    response = JSONResponse({})
    response.delete_cookie(name, path="/")
    return response

  async def settings(self, request: Request, session: Session) -> Response:
    """Changes settings."""
    self._sessions.choose(session, await _json_object(request))
    return self._changed()

  async def classes(self, request: Request, session: Session) -> Response:
    """Names the classes."""
    session.set_classes((await _json_object(request)).get("names"))
    return self._changed()

  def _changed(self) -> Response:
    self._sessions.answering.call()
    return JSONResponse({})

  # ---------------------------------------------------------------------------------------------------------- images

  async def boards(self, request: Request, session: Session) -> Response:
    """Adds the ready examples."""
    await self._in_thread(ready_examples.add_boards, session)
    return self._changed()

  async def add_image(self, request: Request, session: Session) -> Response:
    """Adds the image or video that is the body; ?name= is its file name."""
    name = request.query_params.get("name", "image")
    if video_frames.is_video(name):
      with tempfile.NamedTemporaryFile(dir=session.folder, suffix=Path(name).suffix) as file:
        await _read_to(request, Path(file.name))
        pixels = self._sessions.limits.pixels
        added = {"added": await self._in_thread(video_frames.add_frames, session, Path(file.name), name, pixels)}
    else:
      data = await _read(request, _IMAGE_BYTES)
      added = {"added": 1, "key": (await self._in_thread(session.add_image, name, data)).key}
    self._sessions.answering.call()
    return JSONResponse(added, 201)

  async def remove(self, request: Request, session: Session) -> Response:
    """Deletes an image."""
    await self._in_thread(session.remove, request.path_params["key"])
    return self._changed()

  async def remove_all(self, request: Request, session: Session) -> Response:
    """Deletes all images; ?keep=1 keeps the names of the classes, the settings and what was learned."""
    keep = _number(request, "keep", 0, 1, 0) == 1
    await self._in_thread(self._sessions.clear, session, keep)
    return self._changed()

  async def picture(self, request: Request, session: Session) -> Response:
    """Serves an image."""
    path = session.find(request.path_params["key"]).path
    return FileResponse(path, media_type=_PICTURES[path.suffix], headers={"cache-control": "private, max-age=3600"})

  async def thumbnail(self, request: Request, session: Session) -> Response:
    """Serves a small picture of an image with its label or answer over it."""
    key = session.find(request.path_params["key"]).key
    data = await self._in_thread(_draw_thumbnail, session, key)
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

  # ---------------------------------------------------------------------------------------------- labels and answers

  async def label(self, request: Request, session: Session) -> Response:
    """Serves the label map of an image, class indices as PNG."""
    return _png(await self._in_thread(session.label, request.path_params["key"]))

  async def put_label(self, request: Request, session: Session) -> Response:
    """Sets the label of an image from a PNG of class indices, which makes it an example."""
    key = session.find(request.path_params["key"]).key
    data = await _read(request, _IMAGE_BYTES)
    await self._in_thread(lambda: session.set_label(key, _read_mask(session, key, data, "label", None)))
    return self._changed()

  async def read_mask(self, request: Request, session: Session) -> Response:
    """Reads a mask file of any kind and answers with its class indices as PNG; ?class= is for masks of one class."""
    key, name = session.find(request.path_params["key"]).key, request.query_params.get("name", "mask")
    index = _number(request, "class", 1, len(session.classes), 1)
    data = await _read(request, _IMAGE_BYTES)
    return _png(await self._in_thread(_read_mask, session, key, data, name, index))

  async def clear_label(self, request: Request, session: Session) -> Response:
    """Deletes the label of an image."""
    await self._in_thread(session.clear_label, request.path_params["key"])
    return self._changed()

  async def answer(self, request: Request, session: Session) -> Response:
    """Serves the answer for an image, class indices as PNG."""
    prediction = await self._in_thread(session.answer, request.path_params["key"])
    return _png(prediction.labels)

  async def confidence(self, request: Request, session: Session) -> Response:
    """Serves the confidence of the answer for an image, 0..255 as PNG."""
    values = await self._in_thread(session.confidence, request.path_params["key"])
    return _png(np.round(255 * values).astype(np.uint8))

  async def promote(self, request: Request, session: Session) -> Response:
    """Makes the answer for an image its label."""
    await self._in_thread(session.promote, request.path_params["key"])
    return self._changed()

  # -------------------------------------------------------------------------------------------------------- learning

  async def learn(self, request: Request, session: Session) -> Response:
    """Starts a training run."""
    given = await _json_object(request)
    await self._in_thread(self._sessions.learn, session, given.get("steps"), given.get("again") is True)
    return JSONResponse({}, 202)

  async def stop_learning(self, request: Request, session: Session) -> Response:
    """Stops the training run after its current step."""
    self._sessions.learning(session).stop()
    return JSONResponse({}, 202)

  async def panel(self, request: Request, session: Session) -> Response:
    """Serves the newest picture of the training run."""
    path = self._sessions.learning(session).panel()
    if path is None:
      raise HTTPException(404, "panel: the training run has drawn none yet")
    return FileResponse(path, media_type="image/png")

  # ----------------------------------------------------------------------------------------------------------- files

  async def download(self, request: Request, session: Session) -> Response:
    """Serves labels and answers as a zip file: masks, coco or labelme."""
    kind = request.path_params["kind"]
    if kind not in get_args(bundles.Download):
      raise HTTPException(404, f"download: expected one of {', '.join(get_args(bundles.Download))}")
    return await self._in_thread(_zipped, session, lambda path: bundles.write_download(session, kind, path), kind)

  async def save(self, request: Request, session: Session) -> Response:
    """Serves the session as a zip file."""
    return await self._in_thread(_zipped, session, lambda path: bundles.save_session(session, path), "session")

  async def load(self, request: Request, session: Session) -> Response:
    """Adds the images and labels of a zip file."""
    with tempfile.NamedTemporaryFile(dir=session.folder, suffix=".zip") as file:
      await _read_to(request, Path(file.name))
      count = await self._in_thread(bundles.load_session, session, Path(file.name), 2 * _FILE_BYTES)
    self._sessions.answering.call()
    return JSONResponse({"added": count}, 201)


def _static(name: str) -> Response:
  """Serves a file of the page's folder."""
  path = PAGE / name
  if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
    raise HTTPException(404, "page: no such file")
  headers = {"cache-control": "no-cache", "content-security-policy": _POLICY}
  return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)


def _body_bytes(request: Request) -> int:
  """Returns the bytes of memory that the body of a request may take; videos and archives go to the disk."""
  stated = request.headers.get("content-length", "" if "transfer-encoding" in request.headers else "0")
  return min(int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else _IMAGE_BYTES, _IMAGE_BYTES)


async def _read(request: Request, most_bytes: int) -> bytes:
  """Returns the body of a request; see `http.limited_stream`."""
  return b"".join([piece async for piece in http.limited_stream(request, most_bytes)])


async def _read_to(request: Request, target: Path) -> None:
  """Writes the body of a request to a file."""
  with open(target, "wb") as file:
    async for piece in http.limited_stream(request, _FILE_BYTES):
      file.write(piece)


def _without_paths(error: Exception, folder: Path) -> str:
  """Returns a message in which temporary files have their last name only."""
  return " ".join(word.rpartition("/")[2] if str(folder) in word else word for word in str(error).split(" "))


async def _json_object(request: Request) -> dict[str, Any]:
  """Returns the body of a request, a JSON object.

  Raises:
    InputError: it is something else.
  """
  try:
    found = parse_json(await _read(request, _JSON_BYTES))
  except ValueError as error:
    if isinstance(error, InputError):
      raise
    raise InputError("body: cannot be read as JSON") from error
  if not isinstance(found, dict):
    raise InputError("body: expected a JSON object")
  return found


def _number(request: Request, name: str, least: int, most: int, default: int) -> int:
  """Returns an integer of the query.

  Raises:
    InputError: it is not an integer, or out of range.
  """
  text = request.query_params.get(name, str(default))
  if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
    raise InputError(f"{name}: found {text[:40]!r}, expected an integer from {least} to {most}")
  return int(text)


def _read_mask(session: Session, key: str, data: bytes, where: str, class_index: int | None) -> np.ndarray:
  """Reads a label map of the size of an image; its pixels are counted before they are decoded.

  Args:
    session: the session.
    key: the image.
    data: content of the file.
    where: its name, for messages.
    class_index: class of a mask of one class; None for class indices.
  """
  height, width = session.find(key).size
  check_header(data, where, height * width)
  if (found := upright_size(data, where)) != (height, width):
    raise InputError(f"{where}: found {found[1]} x {found[0]} pixels, expected {width} x {height} as the image has")
  return LabelFormat().decode(data, where) if class_index is None else drawn_label(data, where, class_index)


def _draw_thumbnail(session: Session, key: str) -> bytes:
  """Returns a JPEG file of an image with its label or answer over it."""
  image, result = session.pixels(key), session.result(key)
  scale = min(1.0, _THUMBNAIL / max(image.shape[:2]))
  size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  if result is not None:
    labels = cv2.resize(result.labels, size, interpolation=cv2.INTER_NEAREST)
    colors = display_palette(len(result.palette))[labels]
    small = np.where((labels > 0)[..., None], (0.45 * small + 0.55 * colors).astype(np.uint8), small)
  file = io.BytesIO()
  Image.fromarray(small).save(file, "jpeg", quality=85)
  return file.getvalue()


def _png(labels: np.ndarray) -> Response:
  """Returns gray values as a PNG file."""
  return Response(encode_png(labels.astype(np.uint8)), media_type="image/png")


def _zipped(session: Session, write: Callable[[Path], None], name: str) -> Response:
  """Returns a zip file that is deleted once it is sent."""
  folder = Path(tempfile.mkdtemp(dir=session.folder))
  target = folder / f"{name}.zip"
  cleanup = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
  try:
    write(target)
  except BaseException:
    shutil.rmtree(folder)
    raise
  return FileResponse(target, media_type="application/zip", filename=f"seggpt_{name}.zip", background=cleanup)
