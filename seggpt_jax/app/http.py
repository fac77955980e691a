"""The checks and headers around every request: who may ask, how much is read, and how errors are written.

In: an ASGI application. Out: the same behind checks of host, origin and token, with security headers. Errors are JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import time
from collections.abc import AsyncGenerator, Callable, Collection
from urllib.parse import urlsplit

from absl import logging
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seggpt_jax.app.engine import NotReadyError
from seggpt_jax.app.fields import first_mistake
from seggpt_jax.app.limits import BusyError, TooLargeError
from seggpt_jax.app.prompt_sets import UnknownPromptsError
from seggpt_jax.errors import InputError, one_line

_HEADERS = {
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_DRAIN_SECONDS = 10.0
# How long a body may take: without any byte, in all, and for each byte at the least rate in bytes a second.
_SILENT_SECONDS, _BODY_SECONDS, _LEAST_RATE = 30.0, 60.0, 2**16

Observe = Callable[[str, int, float], None]  # name of the endpoint, status, seconds


def is_loopback(host: str) -> bool:
  """Returns whether only programs on this machine reach an address, such as 127.0.0.1, ::1 or localhost."""
  try:
    return ipaddress.ip_address(host.strip("[]")).is_loopback
  except ValueError:
    return host.lower() == "localhost"


class Guard:
  """Refuses requests that may not be answered, and adds headers to every answer.

  A web page that a user visits could send requests to a service on the user's machine. It cannot choose the Origin and
  Host headers, so requests from other origins are refused, and those to loopback under a public name (DNS rebinding).

  Args:
    app: the application.
    token: what "Authorization: Bearer TOKEN" must hold; "" for none.
    open_paths: paths that need no token.
    loopback: whether only loopback names are accepted as Host.
    most_bytes: bytes of a refused request's body that are read and thrown away, so that its sender sees the answer.
    observe: called after each request.
  """

  def __init__(
    self,
    app: ASGIApp,
    *,
    token: str = "",
    open_paths: Collection[str] = (),
    loopback: bool = True,
    most_bytes: int = 0,
    observe: Observe | None = None,
  ):
    self._app, self._token, self._open_paths = app, token.encode(), frozenset(open_paths)
    self._loopback, self._most_bytes, self._observe = loopback, most_bytes, observe

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    began, status, asked = time.perf_counter(), 500, Headers(scope=scope)
    unread = "transfer-encoding" in asked or asked.get("content-length", "0") != "0"

    async def noting() -> Message:
      nonlocal unread
      message = await receive()
      unread = unread and message["type"] == "http.request" and message.get("more_body", False)
      return message

    async def answer(message: Message) -> None:
      nonlocal status, unread
      if message["type"] == "http.response.start":
        status, headers = message["status"], MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
          headers.setdefault(name, value)
        if unread:
          await _drain(receive, self._most_bytes)
          unread = False
      await send(message)

    try:
      refusal = self._refusal(scope)
      await (refusal or self._app)(scope, noting, answer)
    finally:
      if self._observe is not None:
        self._observe(getattr(scope.get("endpoint"), "__name__", "none"), status, time.perf_counter() - began)

  def authorized(self, headers: Headers) -> bool:
    """Returns whether a request has the token. The time that takes does not tell how much of it was right."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return not self._token or (kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token))

  def _refusal(self, scope: Scope) -> ASGIApp | None:
    headers = Headers(scope=scope)
    hosts = headers.getlist("host")
    host = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if host is None or (self._loopback and not is_loopback(host[1])):
      expected = "localhost or a loopback address" if self._loopback else "one host name"
      return error_response(400, f"Host: found {', '.join(hosts)[:100] or 'none'}, expected {expected}")
    origins = headers.getlist("origin")
    if any(_origin_host(origin) != hosts[0].lower() for origin in origins):
      return error_response(403, "Origin: found another one, expected a request from this service's own pages")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_visit(scope, headers):
      return error_response(403, "Sec-Fetch-Site: found another site, expected a request from this service's own pages")
    scope["authorized"] = self.authorized(headers)
    if not scope["authorized"] and scope["path"] not in self._open_paths:
      return error_response(
        401, "Authorization: found no valid token, expected Bearer and the token", {"www-authenticate": "Bearer"}
      )
    return None


def _is_visit(scope: Scope, headers: Headers) -> bool:
  """Returns whether a browser opens an address by a link, and not as a part of another page."""
  opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
  return opens and scope["method"] == "GET" and not scope["path"].startswith("/api/")


def _origin_host(origin: str) -> str:
  """Returns the host and port of an origin, in lower case, or "" for any other text."""
  try:
    parts = urlsplit(origin)
  except ValueError:
    return ""
  return parts.netloc.lower() if parts.scheme in ("http", "https") else ""


async def _drain(receive: Receive, most_bytes: int) -> None:
  """Reads and forgets the rest of a body unless it is too long: many clients read no answer before all is sent."""
  found = 0
  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(_DRAIN_SECONDS):
      while found <= most_bytes:
        message = await receive()
        found += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
          return


def body_bytes(request: Request, most: int) -> int:
  """Returns the bytes that the body of a request may have: what its header states, else and at most `most`."""
  stated = request.headers.get("content-length", "" if "transfer-encoding" in request.headers else "0")
  return min(int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else most, most)


async def limited_stream(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
  """Yields the body of a request in pieces.

  Args:
    request: the request.
    most_bytes: largest body.

  Raises:
    TooLargeError: the body is longer, or its header says so.
    HTTPException: the header that states its length is no number, the client has gone, sends nothing for 30 seconds,
      or needs more than a minute at less than 64 KiB a second.
  """
  stated = request.headers.get("content-length", "0")
  if not (stated.isascii() and stated.isdigit()):
    raise HTTPException(400, f"Content-Length: found {stated[:40]!r}, expected a number of bytes")
  found = int(stated[:20])
  if found <= most_bytes:
    found, began = 0, time.monotonic()
    while True:
      left = began + _BODY_SECONDS + found / _LEAST_RATE - time.monotonic()
      try:
        message = await asyncio.wait_for(request.receive(), min(_SILENT_SECONDS, left))
      except TimeoutError as error:
        raise HTTPException(
          408, f"body: found {found} bytes so far, expected the rest in time; it is too slow"
        ) from error
      if message["type"] != "http.request":
        raise HTTPException(400, "body: found its end too early, expected as many bytes as announced")
      found += len(message.get("body", b""))
      if found > most_bytes:
        break
      yield message.get("body", b"")
      if not message.get("more_body", False):
        return
  raise TooLargeError(f"body: found {found} bytes or more, expected at most {most_bytes}")


def allow_head(app: FastAPI) -> None:
  """Answers HEAD as GET without the body, for load balancers. FastAPI would describe it as another operation."""
  for route in app.routes:
    if "GET" in (methods := getattr(route, "methods", None) or ()):
      methods.add("HEAD")


def error_response(status: int, message: object, headers: dict[str, str] | None = None) -> JSONResponse:
  """Returns an error as JSON: `{"error": "one line"}`."""
  text = one_line(message).encode(errors="backslashreplace").decode()  # a name in JSON may hold half of a character
  return JSONResponse({"error": text}, status, headers)


def _http_error(_: Request, error: HTTPException) -> JSONResponse:
  details = {404: "path: not found; GET /docs lists the paths", 405: "method: not allowed for this path"}
  detail = error.detail if error.detail not in ("Not Found", "Method Not Allowed") else details[error.status_code]
  return error_response(error.status_code, detail, dict(error.headers or {}))


def log_failure(what: str, error: BaseException) -> None:
  """Logs an error without names of images, labels and paths, which it may hold; --verbosity=0 logs all of it."""
  logging.error("%s: %s", what, type(error).__name__)
  logging.info("%s: %s", what, one_line(repr(error)))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
  log_failure(f"{request.method} {getattr(request.scope.get('endpoint'), '__name__', 'none')}", error)
  return error_response(500, "the service failed; its log says why")


HANDLERS = {
  InputError: lambda _, error: error_response(422, error),
  TooLargeError: lambda _, error: error_response(413, error),
  RequestValidationError: lambda _, error: error_response(422, first_mistake(error.errors())),
  UnknownPromptsError: lambda _, error: error_response(404, error.args[0]),
  BusyError: lambda _, error: error_response(429, error, {"retry-after": "1"}),
  NotReadyError: lambda _, error: error_response(503, error, {"retry-after": "5"}),
  HTTPException: _http_error,
  Exception: _unexpected,
}
