"""The process of a service: listens, says when it is ready, and ends cleanly.

In: an application, its engines and a socket. At the signal that ends the service it stops accepting connections,
finishes the requests that run, and then closes the engines.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from seggpt_jax.app.engine import Engine
from seggpt_jax.errors import InputError

_MOST_CONNECTIONS = 512
_KEEP_ALIVE_SECONDS, _HEADER_SECONDS = 30, 30
# They log a warning for every damaged request, which would let clients fill a disk.
_CHATTY = ("python_multipart", "uvicorn.error")


class _Server(uvicorn.Server):
  """A server that notes the signal that ended it. uvicorn 0.54 raises the signal again, which would end the process."""

  signal = 0

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Handles signals while the context is open."""
    with contextlib.ExitStack() as inner:
      inner.enter_context(super().capture_signals())
      yield
      self.signal = self._captured_signals[0] if self._captured_signals else 0
      self._captured_signals.clear()


class _Protocol(H11Protocol):
  """A connection that ends if no request comes in time. Of too many, one that has been silent for long ends."""

  def connection_made(self, transport: asyncio.Transport) -> None:
    """Makes room for the connection and starts its time."""
    if len(self.connections) >= _MOST_CONNECTIONS:
      counts = collections.Counter(each.address for each in self.connections)
      silent = [each for each in self.connections if each.is_silent]
      if silent:  # of the address with the most connections
        min(silent, key=lambda each: (-counts[each.address], each.silent_since)).hang_up()
    super().connection_made(transport)
    self.address, self.silent_since = (self.client or ("", 0))[0], self.loop.time()
    self._timer = self.loop.call_later(_HEADER_SECONDS, self._check)

  @property
  def is_silent(self) -> bool:
    """True if no request is being answered."""
    return self.cycle is None or self.cycle.response_complete

  def data_received(self, data: bytes) -> None:
    """Reads data; the time for the next request starts when the last one is answered."""
    was_silent = self.is_silent
    super().data_received(data)
    if not was_silent:
      self.silent_since = self.loop.time()

  def on_response_complete(self) -> None:
    """Starts the time for the next request."""
    super().on_response_complete()
    self.silent_since = self.loop.time()

  def connection_lost(self, exc: Exception | None) -> None:
    """Ends the time."""
    self._timer.cancel()
    super().connection_lost(exc)

  def hang_up(self) -> None:
    """Ends the connection at once."""
    self.connections.discard(self)
    self.transport.abort()

  def _check(self) -> None:
    left = self.silent_since + _HEADER_SECONDS - self.loop.time()
    if self.is_silent and left <= 0:
      self.hang_up()
    else:
      self._timer = self.loop.call_later(max(left, 1.0), self._check)


def listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens at an address.

  Args:
    host: a name or an address of this machine.
    port: the port; 0 takes a free one.

  Raises:
    InputError: the address cannot be used.
  """
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=_MOST_CONNECTIONS)
  except (OSError, UnicodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"--host={host}, --port={port}: cannot listen there: {reason}") from error


def address_of(listening: socket.socket) -> str:
  """Returns the address of a socket as a browser takes it."""
  host, port = listening.getsockname()[:2]
  return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
  app: ASGIApp, engines: Sequence[Engine], listening: socket.socket, announce: Callable[[], None], seconds: float | int
) -> None:
  """Answers requests until SIGTERM or Ctrl-C, and closes the engines.

  Args:
    app: the application.
    engines: its engines, which may still be loading.
    listening: a socket from `listen`.
    announce: called once all engines are ready.
    seconds: how long requests that run may take at the end.

  Raises:
    KeyboardInterrupt: after Ctrl-C.
    Exception: what an engine raised while it loaded.
  """
  config = uvicorn.Config(
    app,
    http=_Protocol,
    ws="none",
    loop="asyncio",
    lifespan="off",
    log_config=None,
    access_log=False,
    server_header=False,
    proxy_headers=False,
    limit_concurrency=2 * _MOST_CONNECTIONS,  # only requests that are being answered count up to here
    timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    timeout_graceful_shutdown=math.ceil(seconds),
  )
  server = _Server(config)
  for name in _CHATTY:
    logging.getLogger(name).setLevel(logging.ERROR)

  loaded = itertools.count(1)

  def started(loading: Future) -> None:
    if loading.exception() is not None:
      server.should_exit = True
    elif next(loaded) == len(engines) and not server.should_exit:
      announce()

  async def run() -> None:
    for engine in engines:
      engine.started.add_done_callback(started)
    await server.serve(sockets=[listening])

  try:
    asyncio.run(run())
  finally:
    for engine in engines:
      engine.close()
  for engine in engines:
    if not server.signal and engine.started.exception() is not None:
      raise engine.started.exception()
  if server.signal == signal.SIGINT:
    raise KeyboardInterrupt
