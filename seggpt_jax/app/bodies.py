"""The body of a request: multipart or JSON in, files and fields out. All of it stays in memory.

Both forms have the same names. Files are `image`, `prompt_image` and `prompt_label`, each any number of times: parts of
a multipart body, or base64 strings (one, or a list) in JSON.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from seggpt_jax.app.fields import Field, parse_fields
from seggpt_jax.app.http import limited_stream
from seggpt_jax.app.limits import Limits
from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json

FILES = ("image", "prompt_image", "prompt_label")
_MOST_FIELDS = 64
_TEXT_LENGTH = 2**14  # of one field that is no file


class _CompleteParser(MultiPartParser):
  """Notices whether a multipart body has its end. Starlette 1.10 takes a body that was cut off for a shorter one."""

  has_end = False

  def on_end(self) -> None:
    """Is called at the last boundary."""
    self.has_end = True


@dataclasses.dataclass(frozen=True)
class Body:
  """The content of a request.

  Attributes:
    files: for each of `FILES`, name for messages and content of each file.
    values: parsed fields.
  """

  files: Mapping[str, list[tuple[str, bytes]]]
  values: dict[str, Any]


async def read_body(request: Request, known: Mapping[str, Field], files: tuple[str, ...], limits: Limits) -> Body:
  """Reads and parses the body of a request, and the fields in its address.

  Args:
    request: the request.
    known: the fields that it may have.
    files: which of `FILES` it may have.
    limits: how large it may be, and how long it may take.

  Raises:
    HTTPException: the body has another type than these two (415), is damaged (400), or comes too slowly (408).
    InputError: a field is unknown, given twice, or has a wrong value.
  """
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if request.headers.get("content-encoding", "identity").lower() != "identity":
    raise HTTPException(415, "Content-Encoding: found a compressed body, expected one that is not compressed")
  if kind not in ("multipart/form-data", "application/json"):
    raise HTTPException(
      415, f"Content-Type: found {kind[:100] or 'none'}, expected multipart/form-data or application/json"
    )
  try:
    async with asyncio.timeout(limits.seconds):
      given = await (_read_form if kind == "multipart/form-data" else _read_json)(request, limits)
  except TimeoutError as error:
    raise HTTPException(408, f"body: not complete after {limits.seconds:g} seconds") from error
  given += request.query_params.multi_items()
  found: dict[str, list[tuple[str, bytes]]] = {name: [] for name in FILES}
  fields: dict[str, Any] = {}
  for name, value in given:
    if isinstance(value, bytes) and name in files:
      found[name].append((f"{name}[{len(found[name])}]", value))
    elif isinstance(value, bytes) or name in files:
      what = "a file" if isinstance(value, bytes) else "a string"
      raise InputError(
        f"{name[:80]}: found {what}, expected {'a file' if name in files else 'another field'} (GET /docs)"
      )
    elif isinstance(value, str) and len(value) > _TEXT_LENGTH:
      raise InputError(f"{name[:80]}: found {len(value)} characters, expected at most {_TEXT_LENGTH}")
    elif name in fields:
      raise InputError(f"{name[:80]}: found twice, expected it once")
    else:
      fields[name] = value
  return Body(found, parse_fields(fields, known, files))


async def _read_form(request: Request, limits: Limits) -> list[tuple[str, Any]]:
  """Returns the parts of a multipart body: bytes for files, strings for fields."""
  parser = _CompleteParser(
    request.headers,
    limited_stream(request, limits.body_bytes),
    max_files=limits.images + 2 * limits.prompts,
    max_fields=_MOST_FIELDS,
    max_part_size=_TEXT_LENGTH,
  )
  parser.spool_max_size = 2 * limits.body_bytes  # larger files than this would be written to disk
  try:
    form: FormData = await parser.parse()
  # A damaged header of a part makes the parser raise these two.
  except (MultiPartException, UnicodeError, LookupError) as error:
    reason = error.message if isinstance(error, MultiPartException) else "a damaged header"
    raise HTTPException(413 if reason.startswith("Too many") else 400, f"body: {reason}") from error
  try:
    if not parser.has_end:
      raise HTTPException(400, "body: found no closing boundary, expected a complete multipart body")
    return [
      (name, await value.read() if isinstance(value, UploadFile) else value) for name, value in form.multi_items()
    ]
  finally:
    await form.close()


async def _read_json(request: Request, limits: Limits) -> list[tuple[str, Any]]:
  """Returns the entries of a JSON object: bytes for files, values for fields."""
  pieces = [piece async for piece in limited_stream(request, limits.body_bytes)]
  try:
    content = parse_json(b"".join(pieces), object_pairs_hook=list)
  except ValueError as error:
    raise HTTPException(400, f"body: cannot be read as JSON: {str(error)[:200]}") from error
  if not isinstance(content, list) or not all(isinstance(pair, tuple) for pair in content):
    raise HTTPException(400, f"body: found JSON of type {type(content).__name__}, expected an object")
  items: list[tuple[str, Any]] = []
  for name, value in content:
    if name not in FILES:
      items.append((name, value))
      continue
    for index, text in enumerate(value if isinstance(value, list) else [value]):
      items.append((name, _decode(text, f"{name}[{index}]")))
  return items


def _decode(text: Any, name: str) -> bytes:
  """Decodes a file in JSON: base64, or a data URL as browsers make it."""
  if not isinstance(text, str):
    raise HTTPException(400, f"{name}: found {type(text).__name__}, expected a base64 string")
  if text.startswith("data:"):
    text = text.partition(",")[2]
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise HTTPException(400, f"{name}: cannot be read as base64: {error}") from error
