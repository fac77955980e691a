"""The process of a service: listens, says when it is ready, and ends cleanly.

In: an application, its engine and a socket. Out: the signal that ended the service. It stops accepting connections,
finishes the requests that run, and then closes the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import uvicorn
from starlette.types import ASGIApp

from seggpt_jax.app.engine import Engine
from seggpt_jax.errors import InputError

_MOST_CONNECTIONS = 512
_KEEP_ALIVE_SECONDS = 30
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
  app: ASGIApp, engine: Engine, listening: socket.socket, announce: Callable[[], None], seconds: float | int
) -> int:
  """Answers requests until SIGTERM or Ctrl-C, and closes the engine.

  Args:
    app: the application.
    engine: its engine, which may still be loading.
    listening: a socket from `listen`.
    announce: called once the engine is ready.
    seconds: how long requests that run may take at the end.

  Returns:
    The number of the signal.

  Raises:
    Exception: what the engine raised while it loaded.
  """
  config = uvicorn.Config(
    app,
    http="h11",
    ws="none",
    loop="asyncio",
    lifespan="off",
    log_config=None,
    access_log=False,
    server_header=False,
    proxy_headers=False,
    limit_concurrency=_MOST_CONNECTIONS,
    timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    timeout_graceful_shutdown=math.ceil(seconds),
  )
  server = _Server(config)
  for name in _CHATTY:
    logging.getLogger(name).setLevel(logging.ERROR)

  def started(loading: Future) -> None:
    if loading.exception() is not None:
      server.should_exit = True
    elif not server.should_exit:
      announce()

  async def run() -> None:
    engine.started.add_done_callback(started)
    await server.serve(sockets=[listening])

  try:
    asyncio.run(run())
  finally:
    engine.close()
  if not server.signal and engine.started.exception() is not None:
    raise engine.started.exception()
  return server.signal
