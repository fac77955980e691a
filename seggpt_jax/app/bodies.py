"""The body of a request: multipart or JSON in, checked fields out. All of it stays in memory.

Both forms have the same names. Files are `image`, `prompt_image` and `prompt_label`, each any number of times: parts of
a multipart body, or base64 strings (one, or a list) in JSON. FastAPI would read a body before its size and its time are
checked, and would write large files to disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any, TypeVar

import pydantic
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from seggpt_jax.app.fields import FILES, Upload, parse
from seggpt_jax.app.http import limited_stream
from seggpt_jax.app.limits import Limits
from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json

_MOST_FIELDS = 64
_TEXT_LENGTH = 2**14  # of one field that is no file

M = TypeVar("M", bound=pydantic.BaseModel)


class _CompleteParser(MultiPartParser):
  """Notices whether a multipart body has its end. Starlette 1.10 takes a body that was cut off for a shorter one."""

  has_end = False

  def on_end(self) -> None:
    """Is called at the last boundary."""
    self.has_end = True


async def read_body(request: Request, model: type[M], limits: Limits) -> M:
  """Reads and checks the body of a request, and the fields in its address.

  Args:
    request: the request.
    model: the fields that it may have.
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
  fields: dict[str, Any] = {}
  for name, value in given:
    is_file = isinstance(value, tuple)
    if is_file and name in FILES:
      files = fields.setdefault(name, [])
      files.append(Upload(f"{name}[{len(files)}]", value[0], value[1] or f"{name}_{len(files)}.png"))
    elif is_file or name in FILES:
      what, expected = ("a file", "another field") if is_file else ("a string", "a file")
      raise InputError(f"{name[:80]}: found {what}, expected {expected} (GET /docs)")
    elif isinstance(value, str) and len(value) > _TEXT_LENGTH:
      raise InputError(f"{name[:80]}: found {len(value)} characters, expected at most {_TEXT_LENGTH}")
    elif name in fields:
      raise InputError(f"{name[:80]}: found twice, expected it once")
    else:
      fields[name] = value
  return parse(model, fields)


async def _read_form(request: Request, limits: Limits) -> list[tuple[str, Any]]:
  """Returns the parts of a multipart body: content and name of files, strings for fields."""
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
      (name, (await value.read(), value.filename) if isinstance(value, UploadFile) else value)
      for name, value in form.multi_items()
    ]
  finally:
    await form.close()


async def _read_json(request: Request, limits: Limits) -> list[tuple[str, Any]]:
  """Returns the entries of a JSON object: content of files, values for fields."""
  pieces = [piece async for piece in limited_stream(request, limits.body_bytes)]
  try:
    content = parse_json(b"".join(pieces), object_pairs_hook=list)
  except ValueError as error:
    raise HTTPException(400, f"body: cannot be read as JSON: {str(error)[:200]}") from error
  if not isinstance(content, list) or not all(isinstance(pair, tuple) for pair in content):
    raise HTTPException(400, f"body: found JSON of type {type(content).__name__}, expected an object")
  items: list[tuple[str, Any]] = []
  for name, value in content:
    if name in FILES:
      texts = value if isinstance(value, list) else [value]
      items += [(name, (_decode(text, f"{name}[{index}]"), "")) for index, text in enumerate(texts)]
    else:
      items.append((name, value))
  return items


def _decode(text: Any, name: str) -> bytes:
  """Decodes a file in JSON: base64, with or without line breaks, or a data URL as browsers make it."""
  if not isinstance(text, str):
    raise HTTPException(400, f"{name}: found {type(text).__name__}, expected a base64 string")
  if text.startswith("data:"):
    text = text.partition(",")[2]
  try:
    return base64.b64decode("".join(text.split()), validate=True)
  except (binascii.Error, ValueError) as error:
    raise HTTPException(400, f"{name}: cannot be read as base64: {error}") from error
