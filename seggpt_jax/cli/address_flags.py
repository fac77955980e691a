"""The flags of commands that listen at an address, and the check that other machines need a token."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from absl import flags

from seggpt_jax.errors import InputError

_TOKEN = "SEGGPT_TOKEN"


def define_address_flags(port: int, token: str) -> list[flags.FlagHolder]:
  """Defines the flags.

  Args:
    port: the default port.
    token: how the token is brought, for the help.
  """
  return [
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for other machines, with a token."),
    flags.DEFINE_integer("port", port, "Port to listen at; 0 takes a free one.", 0, 65535),
    flags.DEFINE_string("token", None, f"Token that {token}. By default ${_TOKEN}."),
  ]


def read_token(loopback: bool) -> str:
  """Returns the token of the flag or of the environment, or "".

  Args:
    loopback: whether only this machine reaches the address.

  Raises:
    InputError: other machines reach it and there is no token, or it has characters that no header may have.
  """
  token = flags.FLAGS.token if flags.FLAGS.token is not None else os.environ.get(_TOKEN)
  if token is None and not loopback:
    raise InputError(f"--token: missing with --host={flags.FLAGS.host}, expected one (or ${_TOKEN}) for other machines")
  if token is None:
    return ""
  if not token or not token.isascii() or not token.isprintable() or " " in token:
    raise InputError(
      f"--token: found {'an empty one' if not token else 'other characters'}, expected ASCII without spaces"
    )
  return token


@contextlib.contextmanager
def needs_app() -> Iterator[None]:
  """Turns the lack of a package that only these commands need into one line that says how to get it."""
  try:
    yield
  except ModuleNotFoundError as error:
    if (error.name or "").startswith("seggpt_jax"):
      raise
    raise InputError(f"{error.name} is not installed; pip install 'seggpt-jax[app]'") from error
