"""Requests that no client should send: every one is answered with one clear line, and the service continues."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from seggpt_jax.app.engine import Engine
from seggpt_jax.app.fields import PredictFields
from seggpt_jax.app.limits import Limits
from seggpt_jax.app.prompt_sets import PromptStore
from seggpt_jax.app.service import Served, Service
from seggpt_jax.inference.options import InferenceOptions
from tests.app.conftest import noise, prompt_of
from tests.app.test_service import GOOD, as_json, files_of

LIMITS = Limits(body_bytes=2**18, pixels=200_000, images=4, prompts=3, canvases=64, queue=4, memory_bytes=2**25)
MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def client(predictor):
  """A client that raises what the service did not expect."""
  engine = Engine(lambda: predictor, queue=LIMITS.queue, gather_seconds=0)
  engine.started.result(60)
  with TestClient(
    Service({"tiny": Served(engine)}, PromptStore(LIMITS.prompt_bytes), LIMITS).application(),
    base_url="http://localhost",
  ) as client:
    yield client
    engine.close()


def check(answer) -> None:
  """Checks an answer: it is one, or it is an error of the client in one line."""
  if answer.status_code not in (200, 201):
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()) == {"error"} and len(answer.json()["error"].splitlines()) == 1


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
  max_leaves=8,
)
NUMBERS = st.integers(-2, 5) | st.floats(0, 3) | st.sampled_from([1e-300, 1e300, 10**400, -1, 2**31])
NAMES = st.sampled_from([*PredictFields.model_fields, "nothing"])
TEXTS = st.sampled_from(
  ["", "1", "2,1", "both", "instance", "overlay,coco", "binary", "table", "index", "true", "(0,0,0)"]
)


@MANY
@given(fields=st.dictionaries(NAMES, VALUES | NUMBERS | st.lists(NUMBERS, max_size=4) | TEXTS, max_size=4))
def test_fields_of_any_kind_in_json(client, fields):
  body = json.dumps(as_json(GOOD) | fields)
  check(client.post("/predict", content=body, headers={"content-type": "application/json"}))


@MANY
@given(fields=st.dictionaries(NAMES | st.text(max_size=8), TEXTS | NUMBERS.map(str) | st.text(max_size=20), max_size=4))
def test_fields_of_any_kind_in_a_form_and_in_the_address(client, fields):
  check(client.post("/predict", files=GOOD, data={k: v.encode(errors="replace").decode() for k, v in fields.items()}))
  check(client.post("/predict", files=GOOD, params={k: v.encode(errors="replace").decode() for k, v in fields.items()}))


@MANY
@given(data=st.data())
def test_damaged_files(client, data):
  """Changes, cuts and repeats pieces of real image files."""
  files = []
  for name, (file, content) in GOOD:
    start, end = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(content))])))
    kind = data.draw(st.sampled_from(["whole", "whole", "cut", "gap", "changed"]))
    changed = content[:start] + data.draw(st.binary(max_size=8)) + content[start + 8 :]
    damaged = {"whole": content, "cut": content[:end], "gap": content[:start] + content[end:], "changed": changed}[kind]
    files.append((name, (file, damaged)))
  check(client.post("/predict", files=files))


@MANY
@given(
  body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
  kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "multipart/form-data; boundary=", "a/b"])
  | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
  method=st.sampled_from(["POST", "PUT", "GET", "DELETE", "PATCH", "OPTIONS"]),
  path=st.sampled_from(
    ["/predict", "/prompts/a", "/prompts", "/prompts/%2e%2e", "/prompts/%00", "//predict", "/health"]
  ),
)
def test_bodies_of_any_kind(client, body, kind, method, path):
  answer = client.request(method, path, content=body, headers={"content-type": kind})
  if answer.status_code != 204 and path not in ("/health", "/prompts"):
    check(answer)


@MANY
@given(data=st.data())
def test_damaged_multipart(client, data):
  """Changes the frame of a multipart body: boundaries, headers and line ends."""
  parts = [
    f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode() + content + b"\r\n"
    for name, (_, content) in GOOD
  ]
  body = b"".join([*parts, b"--x--\r\n"])
  for _ in range(data.draw(st.integers(1, 4))):
    edge = data.draw(st.sampled_from([0, *(body.find(part) for part in parts), len(body) - 8]))
    place = max(edge + data.draw(st.integers(0, 70)), 0)
    body = body[:place] + data.draw(st.binary(max_size=4)) + body[place + data.draw(st.integers(0, 4)) :]
  check(client.post("/predict", content=body, headers={"content-type": "multipart/form-data; boundary=x"}))


@MANY
@given(
  name=st.sampled_from(["host", "origin", "authorization", "accept", "content-encoding", "content-length"]),
  value=st.binary(max_size=30),
)
def test_headers_of_any_kind(client, name, value):
  check(client.post("/predict", files=GOOD, headers={name: value}))


@MANY
@given(
  changes=st.fixed_dictionaries(
    {},
    optional={
      "split": st.integers(1, 3) | st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True),
      "overlap": st.floats(0, 0.9),
      "stitch_width": st.integers(0, 3),
      "flips": st.sampled_from(["both", "vertical"]),
      "foreground_tiles": st.booleans(),
      "zoom": st.floats(0, 4),
      "prompt_grid": st.integers(1, 4),
      "sensitivity": st.lists(st.floats(0.1, 5), max_size=4),
      "least_area": st.integers(0, 99),
    },
  )
)
def test_options_are_those_of_the_predictor_or_refused(client, predictor, changes):
  """Options that the service accepts do what they do in Python."""
  answer = client.post("/predict", json=as_json(files_of([prompt_of(1)], [noise(5)]), **changes))
  check(answer)
  if answer.status_code == 200:
    options = InferenceOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
    (expected,) = predictor.predict_many([(noise(5), [prompt_of(1)])], options)
    counts = {each["class"]: each["share"] for each in answer.json()["predictions"][0]["classes"] if each["pixels"]}
    assert counts == expected.shares()


def test_the_service_still_works_after_all_this(client):
  assert client.post("/predict", files=GOOD).status_code == 200
