"""The web application of `seggpt app`: the page's files, and the API that its scripts call.

In: requests with the page's cookie. Out: JSON, pictures and zip files. The work is done in `project`, `sessions` and
`bundles`; here requests are checked and taken apart.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import anyio.to_thread
import numpy as np
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from seggpt_jax.app import bundles, drawing, http, ready_examples, video_frames
from seggpt_jax.app.limits import Budget
from seggpt_jax.app.pictures import LABEL_MAPS, UnknownError, check_header, drawn_label
from seggpt_jax.app.project import Project
from seggpt_jax.app.sessions import Session
from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.files import parse_json
from seggpt_jax.formats.images import upright_size
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

T = TypeVar("T")
Handler = Callable[[Request, Session], Awaitable[Response]]


def create_page(project: Project, *, token: str = "", loopback: bool = True, examples: bool = True) -> Starlette:
  """Returns the web application.

  Args:
    project: the project, which everybody who opens the page works on.
    token: token that a browser has to show once, in `/?token=`; "" for none.
    loopback: whether the server listens on a loopback address only.
    examples: whether a new project starts with the ready examples.
  """
  page, folder = _Page(project, token, examples), project.session.folder
  api: dict[tuple[str, str], Handler] = {
    ("GET", "/api/session"): page.state,
    ("POST", "/api/settings"): page.settings,
    ("POST", "/api/classes"): page.classes,
    ("POST", "/api/boards"): page.boards,
    ("POST", "/api/images"): page.add_image,
    ("DELETE", "/api/images"): page.remove_all,
    ("DELETE", "/api/images/{key}"): page.remove,
    ("GET", "/api/images/{key}/picture"): page.picture,
    ("GET", "/api/images/{key}/thumbnail"): page.thumbnail,
    ("GET", "/api/images/{key}/label"): page.labels,
    ("PUT", "/api/images/{key}/label"): page.put_labels,
    ("DELETE", "/api/images/{key}/label"): page.clear_labels,
    ("GET", "/api/images/{key}/draft"): page.labels,
    ("PUT", "/api/images/{key}/draft"): page.put_labels,
    ("DELETE", "/api/images/{key}/draft"): page.clear_labels,
    ("POST", "/api/images/{key}/mask"): page.read_mask,
    ("GET", "/api/images/{key}/answer"): page.labels,
    ("GET", "/api/images/{key}/confidence"): page.confidence,
    ("POST", "/api/images/{key}/promote"): page.promote,
    ("POST", "/api/images/{key}/cut"): page.cut,
    ("POST", "/api/images/{key}/look"): page.look,
    ("POST", "/api/images/{key}/done"): page.done,
    ("POST", "/api/learning"): page.learn,
    ("DELETE", "/api/learning"): page.stop_learning,
    ("GET", "/api/learning/panel"): page.panel,
    ("GET", "/api/download/{kind}"): page.download,
    ("GET", "/api/learned/{name}"): page.learned,
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
  """Returns the name of the page's cookie, with the port in it: browsers share cookies among all ports."""
  return f"seggpt_page_{request.url.port or 80}"


class _Page:
  """The handlers of all requests."""

  def __init__(self, project: Project, token: str, examples: bool):
    self._project, self._session, self._token, self._examples = project, project.session, token, examples
    # The same after the next start, so that an open page continues. Only the page itself can make a browser send it.
    self._cookie = hmac.new(token.encode(), b"seggpt app", "sha256").hexdigest()
    # Each may hold an image of the largest size in memory.
    self._threads = anyio.CapacityLimiter(_THREADS)
    self._bodies, self._opening = Budget(_BODIES_BYTES), asyncio.Lock()

  async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function that decodes images or writes files, a few at a time."""
    return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=self._threads)

  def dispatch(self, handlers: dict[str, Handler]) -> Callable[[Request], Awaitable[Response]]:
    """Returns an endpoint that checks the session of a request and calls the handler of its method."""

    async def endpoint(request: Request) -> Response:
      if not self._is_known(request):
        raise HTTPException(401, "cookie: missing or of another token; reload the page")
      await self._add_examples()
      handler = handlers.get("GET" if request.method == "HEAD" else request.method)
      if handler is None:
        raise HTTPException(405, f"method: found {request.method}, expected {' or '.join(handlers)}")
      if request.method not in ("GET", "HEAD") and not request.headers.get("origin"):
        # The guard has compared the headers that are there. Every browser sends one with a change.
        raise HTTPException(403, "Origin: missing, expected the page's own for a change")
      with self._bodies.reserve(_body_bytes(request)):
        return await handler(request, self._session)

    return endpoint

  def _is_known(self, request: Request) -> bool:
    return hmac.compare_digest(request.cookies.get(cookie_name(request), "").encode(), self._cookie.encode())

  async def _add_examples(self) -> None:
    """Adds the ready examples to a new project."""
    async with self._opening:  # a page sends its first calls at the same time
      if self._examples and self._session.is_new and not self._session.pictures:
        await self._in_thread(ready_examples.add_boards, self._session)
        self._project.answering.call()
      self._examples = False

  # ------------------------------------------------------------------------------------------------------- the page

  async def index(self, request: Request) -> Response:
    """Serves the page, and gives a browser that shows the token the page's cookie."""
    given = request.query_params.get("token", "")
    response: Response = RedirectResponse("./", 303) if given else _static("index.html")
    if not self._is_known(request):
      if self._token and not hmac.compare_digest(given.encode(), self._token.encode()):
        raise HTTPException(401, "token: missing or wrong, expected the address that `seggpt app` has printed")
      response.set_cookie(cookie_name(request), self._cookie, httponly=True, samesite="strict", path="/")
    return response

  async def file(self, request: Request) -> Response:
    """Serves a file of the page."""
    return _static(request.path_params["name"])

  # --------------------------------------------------------------------------------------------------------- session

  async def state(self, request: Request, session: Session) -> Response:
    """Answers with the state of the session; ?since=N leaves out images without a change since."""
    since = _number(request, "since", 0, 10**9, 0)
    if (first := request.query_params.get("first")) in session.pictures:
      session.first = first
    state = await self._in_thread(self._project.as_json, since)
    colors = display_palette(len(session.classes) + 1)[1:]
    return JSONResponse({**state, "colors": [[int(value) for value in color] for color in colors]})

  async def settings(self, request: Request, session: Session) -> Response:
    """Changes settings."""
    self._project.choose(await _json_object(request))
    return self._changed()

  async def classes(self, request: Request, session: Session) -> Response:
    """Names the classes."""
    session.set_classes((await _json_object(request)).get("names"))
    return self._changed()

  def _changed(self) -> Response:
    self._project.answering.call()
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
      with tempfile.NamedTemporaryFile(dir=session.scratch, suffix=Path(name).suffix) as file:
        await _read_to(request, Path(file.name))
        pixels = self._project.limits.pixels
        added = {"added": await self._in_thread(video_frames.add_frames, session, Path(file.name), name, pixels)}
    else:
      data = await _read(request, _IMAGE_BYTES)
      added = {"added": 1, "key": (await self._in_thread(session.add_image, name, data)).key}
    self._project.answering.call()
    return JSONResponse(added, 201)

  async def remove(self, request: Request, session: Session) -> Response:
    """Deletes an image."""
    await self._in_thread(session.remove, request.path_params["key"])
    return self._changed()

  async def remove_all(self, request: Request, session: Session) -> Response:
    """Deletes all images; ?keep=1 keeps the names of the classes and the settings."""
    keep = _number(request, "keep", 0, 1, 0) == 1
    await self._in_thread(self._project.clear, keep)
    return self._changed()

  async def picture(self, request: Request, session: Session) -> Response:
    """Serves an image."""
    picture = session.find(request.path_params["key"])
    kind, data = _PICTURES[picture.path.suffix], await self._in_thread(session.image_bytes, picture.key)
    return Response(data, media_type=kind, headers={"cache-control": "private, max-age=3600"})

  async def thumbnail(self, request: Request, session: Session) -> Response:
    """Serves a small picture of an image with its label or answer over it."""
    data = await self._in_thread(drawing.thumbnail, session, request.path_params["key"])
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

  # ---------------------------------------------------------------------------------------------- labels and answers

  async def labels(self, request: Request, session: Session) -> Response:
    """Serves the label of an image, what is drawn on it and not in use yet, or its answer: class indices as PNG."""
    read = {"label": session.label, "draft": session.draft, "answer": lambda key: session.answer(key).labels}
    return _png(await self._in_thread(read[_last_part(request)], request.path_params["key"]))

  async def put_labels(self, request: Request, session: Session) -> Response:
    """Stores a PNG of class indices as what is drawn on an image, or as its label, which makes it an example."""
    key, what = session.find(request.path_params["key"]).key, _last_part(request)
    store = {"label": session.set_label, "draft": session.set_draft}[what]
    data = await _read(request, _IMAGE_BYTES)
    await self._in_thread(lambda: store(key, _read_mask(session, key, data, what, None)))
    return self._changed()

  async def read_mask(self, request: Request, session: Session) -> Response:
    """Reads a mask file of any kind and answers with its class indices as PNG; ?class= is for masks of one class."""
    key, name = session.find(request.path_params["key"]).key, request.query_params.get("name", "mask")
    index = _number(request, "class", 1, len(session.classes), 1)
    data = await _read(request, _IMAGE_BYTES)
    return _png(await self._in_thread(_read_mask, session, key, data, name, index))

  async def clear_labels(self, request: Request, session: Session) -> Response:
    """Deletes the label of an image, or what is drawn on it."""
    clear = {"label": session.clear_label, "draft": session.clear_draft}[_last_part(request)]
    await self._in_thread(clear, request.path_params["key"])
    return self._changed()

  async def confidence(self, request: Request, session: Session) -> Response:
    """Serves the confidence of the answer for an image, 0..255 as PNG."""
    answer = await self._in_thread(session.answer, request.path_params["key"])
    return _png(np.round(255 * answer.confidence()))

  async def promote(self, request: Request, session: Session) -> Response:
    """Makes the answer for an image its label."""
    await self._in_thread(session.promote, request.path_params["key"])
    return self._changed()

  async def cut(self, request: Request, session: Session) -> Response:
    """Cuts out what is in a box, or with ?seed= what is like its center; answers with a PNG of the box, 1 inside."""
    key = session.find(request.path_params["key"]).key
    box = [_number(request, name, 0, 10**6, 0) for name in ("x", "y", "width", "height")]
    return _png(await self._in_thread(drawing.cut_out, session, key, box, _number(request, "seed", 0, 10**6, 0)))

  async def look(self, request: Request, session: Session) -> Response:
    """Notes that somebody has looked for the class ?class= in an example."""
    index = _number(request, "class", 1, len(session.classes), 1)
    await self._in_thread(session.look, request.path_params["key"], index)
    return self._changed()

  async def done(self, request: Request, session: Session) -> Response:
    """Marks an image as done, or with ?done=0 as not done."""
    await self._in_thread(session.set_done, request.path_params["key"], _number(request, "done", 0, 1, 1) == 1)
    return JSONResponse({})

  # -------------------------------------------------------------------------------------------------------- learning

  async def learn(self, request: Request, session: Session) -> Response:
    """Starts a training run."""
    given = await _json_object(request)
    await self._in_thread(self._project.learn, given.get("steps"), given.get("again") is True)
    return JSONResponse({}, 202)

  async def stop_learning(self, request: Request, session: Session) -> Response:
    """Stops the training run after its current step."""
    self._project.learning.stop()
    return JSONResponse({}, 202)

  async def panel(self, request: Request, session: Session) -> Response:
    """Serves the newest picture of the training run."""
    path = self._project.learning.panel()
    if path is None:
      raise HTTPException(404, "panel: the training run has drawn none yet")
    return FileResponse(path, media_type="image/png")

  # ----------------------------------------------------------------------------------------------------------- files

  async def download(self, request: Request, session: Session) -> Response:
    """Serves labels and answers as a zip file: masks, coco, labelme or yolo."""
    kind = request.path_params["kind"]
    if kind not in get_args(bundles.Download):
      raise HTTPException(404, f"download: expected one of {', '.join(get_args(bundles.Download))}")
    return await self._in_thread(_zipped, session, lambda path: bundles.write_download(session, kind, path), kind)

  async def learned(self, request: Request, session: Session) -> Response:
    """Serves what a training run has learned as a zip file."""
    name = request.path_params["name"]
    if (run := self._project.learned.get(name)) is None:
      raise HTTPException(404, f"learned: expected one of {', '.join(self._project.learned) or 'none yet'}")
    name = f"learned_{name}"
    return await self._in_thread(_zipped, session, lambda path: bundles.write_network(run, name, path), name)

  async def save(self, request: Request, session: Session) -> Response:
    """Serves the session as a zip file."""
    return await self._in_thread(_zipped, session, lambda path: bundles.save_session(session, path), "session")

  async def load(self, request: Request, session: Session) -> Response:
    """Adds the images and labels of a zip file."""
    with tempfile.NamedTemporaryFile(dir=session.scratch, suffix=".zip") as file:
      await _read_to(request, Path(file.name))
      count = await self._in_thread(bundles.load_session, session, Path(file.name), 2 * _FILE_BYTES)
    self._project.answering.call()
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


def _last_part(request: Request) -> str:
  """Returns the last part of the path of a request."""
  return request.url.path.rpartition("/")[2]


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
  return LABEL_MAPS.decode(data, where) if class_index is None else drawn_label(data, where, class_index)


def _png(labels: np.ndarray) -> Response:
  """Returns gray values as a PNG file."""
  return Response(encode_png(labels.astype(np.uint8)), media_type="image/png")


def _zipped(session: Session, write: Callable[[Path], None], name: str) -> Response:
  """Returns a zip file that is deleted once it is sent."""
  folder = Path(tempfile.mkdtemp(dir=session.scratch))
  target = folder / f"{name}.zip"
  cleanup = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
  try:
    write(target)
  except BaseException:
    shutil.rmtree(folder)
    raise
  return FileResponse(target, media_type="application/zip", filename=f"seggpt_{name}.zip", background=cleanup)
