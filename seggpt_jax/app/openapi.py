"""The description of the service for other programs (OpenAPI 3.1), and the same as a page for people."""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Any

import seggpt_jax
from seggpt_jax.app.fields import LABEL_FIELDS, PREDICT_FIELDS, Field

_STYLE = (
  "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
  "td{padding:.1rem 1rem .1rem 0;vertical-align:top}pre,code{font-family:ui-monospace,monospace}"
  "pre{background:#8882;padding:.5rem;overflow:auto}"
)
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
DOCS_POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; frame-ancestors 'none'"

_FILE = {"type": "string", "format": "binary"}
_FILES = {
  "image": "Images to segment, one or several.",
  "prompt_image": "Prompt images, best first. None with a learned prompt, which serves every image.",
  "prompt_label": "The label map of each prompt image.",
}
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
_EXAMPLE = "curl -F image=@query.jpg -F prompt_image=@prompt.jpg -F prompt_label=@prompt_label.png http://HOST/predict"


def _body(files: tuple[str, ...], fields: dict[str, Field]) -> dict[str, Any]:
  """Returns the two forms of a body."""
  values = {name: field.schema | {"description": field.meaning} for name, field in fields.items()}
  content = {}
  for kind, one in (("multipart/form-data", _FILE), ("application/json", {"type": "string", "format": "byte"})):
    uploads = {name: {"type": "array", "items": one, "description": _FILES[name]} for name in files}
    content[kind] = {"schema": {"type": "object", "properties": uploads | values, "additionalProperties": False}}
  return {"required": True, "content": content}


def _answers(success: dict[int, str], *errors: int) -> dict[str, Any]:
  error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
  described = {str(status): {"description": text} for status, text in success.items()}
  return described | {str(status): {"description": _ERRORS[status], "content": error} for status in (401, *errors)}


def describe() -> dict[str, Any]:
  """Returns the description."""
  name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
  uploading = (400, 408, 413, 415, 422, 429, 503)
  predicted = "Label maps as PNG files in base64, classes with pixels and shares; or one PNG with Accept: image/png."
  paths = {
    "/predict": {
      "post": {
        "summary": "Segments images by example.",
        "requestBody": _body(tuple(_FILES), PREDICT_FIELDS),
        "responses": _answers({200: predicted}, *uploading, 404, 504),
      }
    },
    "/prompts": {"get": {"summary": "Lists the stored sets of prompts.", "responses": _answers({200: "The sets."})}},
    "/prompts/{name}": {
      "parameters": [name],
      "put": {
        "summary": "Stores a set of prompts in memory, for requests with prompts=NAME.",
        "requestBody": _body(("prompt_image", "prompt_label"), LABEL_FIELDS),
        "responses": _answers({200: "A set was replaced.", 201: "A set was stored."}, *uploading),
      },
      "get": {"summary": "Describes a set; its images are not shown.", "responses": _answers({200: "The set."}, 404)},
      "delete": {"summary": "Drops a set.", "responses": _answers({204: "The set is gone."}, 404)},
    },
    "/health": {"get": {"summary": "Says whether the service is ready.", "responses": _answers({200: "It is."}, 503)}},
    "/metrics": {"get": {"summary": "Numbers for Prometheus.", "responses": _answers({200: "The numbers."})}},
  }
  schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
  return {
    "openapi": "3.1.0",
    "info": {"title": "seggpt serve", "version": seggpt_jax.__version__},
    "paths": paths,
    "components": {"schemas": {"Error": schema}, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    "security": [{"token": []}, {}],
  }


def docs_page() -> str:
  """Returns the page, which loads nothing from anywhere."""

  def table(rows: dict[str, str]) -> str:
    cells = (f"<tr><td><code>{html.escape(k)}</code><td>{html.escape(v)}" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"

  methods = {
    f"{method.upper()} {path}": operation["summary"]
    for path, operations in describe()["paths"].items()
    for method, operation in operations.items()
    if method != "parameters"
  }
  fields = {name: field.meaning for name, field in PREDICT_FIELDS.items()}
  return (
    f"<!doctype html><html lang=en><meta charset=utf-8><title>seggpt serve</title><style>{_STYLE}</style>"
    f"<h1>seggpt serve {seggpt_jax.__version__}</h1>{table(methods)}<h2>Example</h2><pre>{_EXAMPLE}</pre>"
    f"<h2>Files</h2><p>Parts of multipart/form-data, or base64 strings in application/json.{table(_FILES)}"
    f"<h2>Fields</h2>{table(fields)}<h2>Errors</h2><p><code>{{&quot;error&quot;: &quot;one line&quot;}}</code>"
    f"{table({str(status): text for status, text in _ERRORS.items()})}"
    "<p>For programs: <a href=openapi.json>openapi.json</a></html>"
  )
