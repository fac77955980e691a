"""The predictor over HTTP: the same answers as in Python, and one clear line for every request that is wrong."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from seggpt_jax.app.limits import Limits
from seggpt_jax.app.prompt_sets import PromptStore
from seggpt_jax.app.service import Served, Service
from seggpt_jax.inference.instances import instances
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from tests.app.conftest import noise, prompt_of
from tests.app.test_engine import Held
from tests.app.test_limits import png, png_header

LIMITS = Limits(body_bytes=2**20, pixels=200_000, images=4, prompts=3, canvases=200, queue=4, memory_bytes=2**25)


@pytest.fixture
def start(engines):
  """Starts a service in this process and returns a client of it."""

  def start(engine=None, limits=LIMITS, **options) -> TestClient:
    engine = engine or engines(queue=limits.queue)
    own = {name: options.pop(name) for name in ("options", "labels", "class_names") if name in options}
    models = {"loud": Served(engine, **own), **options.pop("more", {})}
    service = Service(models, PromptStore(limits.prompt_bytes), limits, **options)
    return running.enter_context(TestClient(service.application(), base_url="http://127.0.0.1:8000"))

  with contextlib.ExitStack() as running:
    yield start


@pytest.fixture
def client(start):
  return start()


def files_of(prompts, images) -> list[tuple[str, tuple[str, bytes]]]:
  """The files of a request as the client takes them."""
  files = [("image", ("query.png", png(image))) for image in images]
  for prompt in prompts:
    files += [("prompt_image", ("p.png", png(prompt.image))), ("prompt_label", ("l.png", png(prompt.labels)))]
  return files


def as_json(files, **values) -> dict:
  """The same request as JSON."""
  found = {}
  for name, (_, data) in files:
    found.setdefault(name, []).append(base64.b64encode(data).decode())
  return found | values


def pixels_of(text: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def metric(client, name: str) -> float:
  return float(re.search(rf"^{name}(?:{{model=\"loud\"}})? (\S+)$", client.get("/metrics").text, re.M)[1])


# ------------------------------------------------------------------------------------------------------------- answers


def test_polygons_coco_and_overlay(start, engines, predictor):
  client = start(engines(queue=LIMITS.queue), class_names=("crack",))
  files = files_of([prompt_of(1)], [noise(1), noise(2, 70, 30)])
  sent = {"files": files, "data": {"answer": "polygons,coco,overlay", "least_area": "20"}}
  found = client.post("/predict", **sent).json()
  image_ids = [each["image_id"] for each in found["coco"]["annotations"]]
  assert [each["name"] for each in found["coco"]["categories"]] == ["crack", "class_2"]
  assert [each["file_name"] for each in found["coco"]["images"]] == 2 * ["query.png"]
  for number, (image, entry) in enumerate(zip([noise(1), noise(2, 70, 30)], found["predictions"], strict=True), 1):
    expected = predictor.predict(image, [prompt_of(1)], least_area=20)
    objects = instances(expected)
    assert "labels" not in entry and objects and image_ids.count(number) == len(objects)
    np.testing.assert_array_equal(pixels_of(entry["overlay"]), expected.overlay(image))
    for each, polygon in zip(objects, entry["polygons"], strict=True):
      assert (polygon["class"], polygon["area"], tuple(polygon["box"])) == (each.class_index, each.area, each.box)
      np.testing.assert_allclose(polygon["polygon"], each.polygon, atol=0.01)
  files, png_only = [files[0], *files[2:]], {"accept": "image/png"}
  answer = client.post("/predict", files=files, data={"answer": "overlay", "least_area": "20"}, headers=png_only)
  np.testing.assert_array_equal(
    np.asarray(Image.open(io.BytesIO(answer.content))),
    predictor.predict(noise(1), [prompt_of(1)], least_area=20).overlay(noise(1)),
  )
  answer = client.post("/predict", files=files, data={"answer": "coco"}, headers=png_only)
  assert "answer: found coco with Accept: image/png" in error_of(answer, 422)


def test_several_networks_share_the_stored_prompts(start, engines, predictor, model, learned_prompt):
  """Each network keeps its own resized prompts; one without prompts refuses them while the others take them."""
  other = Predictor(model, max_canvases=2)
  more = {"other": Served(engines(lambda: other), InferenceOptions(split=2))}
  more["learned"] = Served(engines(lambda: Predictor(model, learned=learned_prompt)))
  client = start(engines(), more=more)
  assert client.get("/health").json()["models"] == ["loud", "other", "learned"]
  client.put("/prompts/parts", files=files_of([prompt_of(1)], []))
  query = files_of([], [noise(1)])
  for name, expected in (
    ("", predictor.predict(noise(1), [prompt_of(1)])),
    ("other", other.predict(noise(1), [prompt_of(1)], split=2)),
  ):
    answer = client.post("/predict", files=query, data={"prompts": "parts", **({"model": name} if name else {})})
    assert answer.json()["model"] == (name or "loud")
    np.testing.assert_array_equal(pixels_of(answer.json()["predictions"][0]["labels"]), expected.labels)
  assert client.post("/predict", files=query, data={"model": "learned"}).status_code == 200
  answer = client.post("/predict", files=query, data={"model": "learned", "prompts": "parts"})
  assert "prompts cannot be combined with a learned prompt" in error_of(answer, 422)
  answer = client.post("/predict", files=query, data={"model": "none"})
  assert error_of(answer, 422) == "model: found 'none', expected one of loud, other, learned"
  assert 'seggpt_images_total{model="other"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("form", ["plain", "line breaks", "data url"])
def test_base64_of_other_programs(client, form):
  """`base64 FILE` breaks lines, and browsers put the type before the text."""
  body = as_json(GOOD)
  for name in ("image", "prompt_image", "prompt_label"):
    (text,) = body[name]
    broken = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    body[name] = [{"plain": text, "line breaks": broken, "data url": f"data:image/png;base64,{text}"}[form]]
  assert client.post("/predict", json=body).status_code == 200


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_answers_are_those_of_the_predictor(client, predictor, form):
  prompts, images = [prompt_of(1), prompt_of(2)], [noise(1), noise(2, 70, 30)]
  files, options = files_of(prompts, images), {"split": 2, "overlap": 0.25, "flips": "horizontal"}
  if form == "json":
    answer = client.post("/predict", json=as_json(files, **options, confidence=True))
  else:
    answer = client.post("/predict", files=files, data={**options, "confidence": "true"})
  assert answer.status_code == 200, answer.text
  found = answer.json()
  assert found["model"] == "loud" and found["warnings"] == []
  for image, entry in zip(images, found["predictions"], strict=True):
    expected = predictor.predict(image, prompts, **options)
    np.testing.assert_array_equal(pixels_of(entry["labels"]), expected.labels)
    np.testing.assert_array_equal(pixels_of(entry["confidence"]), np.round(255 * expected.confidence()))
    shares = {each["class"]: each["share"] for each in entry["classes"] if each["pixels"]}
    assert shares == expected.shares() and (entry["height"], entry["width"]) == image.shape[:2]
    assert sum(each["pixels"] for each in entry["classes"]) == expected.labels.size


def test_a_learned_prompt_answers_alone_and_refuses_others(start, engines, model, learned_prompt):
  predictor = Predictor(model, learned=learned_prompt)
  client = start(engines(lambda: predictor))
  answer = client.post("/predict", files=files_of([], [noise(1)]), headers={"accept": "image/png"})
  assert answer.status_code == 200, answer.text
  found = np.asarray(Image.open(io.BytesIO(answer.content)))
  np.testing.assert_array_equal(found, predictor.predict(noise(1)).labels)
  classes = client.post("/predict", files=files_of([], [noise(1)])).json()["predictions"][0]["classes"]
  assert [each["class"] for each in classes] == [0, 1, 2]
  with_prompts = files_of([prompt_of(1)], [noise(1)])
  for answer, name in (
    (client.post("/predict", files=with_prompts), "prompt_image"),
    (client.post("/predict", files=files_of([], [noise(1)]), data={"prompts": "parts"}), "prompts"),
    (client.put("/prompts/parts", files=with_prompts[1:]), "prompt_image"),
  ):
    assert answer.status_code == 422
    message = f"{name} cannot be combined with a learned prompt or a trained head, which serves every query"
    assert answer.json() == {"error": message}


def test_a_png_for_one_image(client, predictor):
  answer = client.post("/predict", files=files_of([prompt_of(1)], [noise(1)]), headers={"accept": "image/png"})
  assert answer.headers["content-type"] == "image/png"
  found = np.asarray(Image.open(io.BytesIO(answer.content)))
  np.testing.assert_array_equal(found, predictor.predict(noise(1), [prompt_of(1)]).labels)


def test_options_of_the_service_hold_unless_the_request_sets_others(start, predictor):
  scale = {"zoom": 1.5, "prompt_grid": 2, "overlap": 0.25}
  client = start(options=InferenceOptions(**scale))
  files = files_of([prompt_of(1)], [noise(1)])
  for given, expected in (({}, scale), ({"split": "2"}, {"split": 2}), ({"zoom": "2"}, {"zoom": 2})):
    answer = client.post("/predict", files=files, data=given, headers={"accept": "image/png"})
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(found, predictor.predict(noise(1), [prompt_of(1)], **expected).labels)


def test_eight_clients_at_once_get_the_answers_to_their_own_images(engines, start, predictor):
  held = Held(predictor)
  engine = engines(lambda: held, queue=16, gather_seconds=0.05)
  client = start(engine, dataclasses.replace(LIMITS, queue=16, memory_bytes=2**30))
  client.put("/prompts/shared", files=files_of([prompt_of(1)], []))

  def ask(seed: int) -> tuple[int, np.ndarray]:
    files = [("image", ("query.png", png(noise(seed))))]
    answer = client.post("/predict?prompts=shared", files=files, headers={"accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return seed, np.asarray(Image.open(io.BytesIO(answer.content)))

  with ThreadPoolExecutor(8) as clients:
    answers = [clients.submit(ask, seed) for seed in range(8)]
    assert held.running.wait(60)
    held.go.set()
    answers += [clients.submit(ask, seed) for seed in range(8, 32)]
    found = dict(answer.result() for answer in answers)
  expected = {seed: predictor.predict(noise(seed), [prompt_of(1)]).labels for seed in found}
  assert len({labels.tobytes() for labels in expected.values()}) > 16, "the images must have different answers"
  for seed, labels in found.items():
    np.testing.assert_array_equal(labels, expected[seed])
  assert metric(client, "seggpt_images_total") == 32
  assert metric(client, "seggpt_batches_total") < 32 and metric(client, "seggpt_shared_images_total") > 1
  assert metric(client, "seggpt_request_memory_bytes") == 0


# ------------------------------------------------------------------------------------------------------------- prompts


def test_stored_prompts(client, predictor):
  files = files_of([prompt_of(1), prompt_of(2)], [])
  answer = client.put("/prompts/parts", files=files)
  assert answer.status_code == 201
  assert answer.json()["classes"] == [1, 2] and answer.json()["sizes"] == [[36, 44], [36, 44]]
  query = [("image", ("query.png", png(noise(1))))]
  expected = predictor.predict(noise(1), [prompt_of(1), prompt_of(2)]).labels
  for sent in ({"data": {"prompts": "parts"}, "files": query}, {"json": as_json(query, prompts="parts")}):
    found = client.post("/predict", **sent).json()["predictions"][0]["labels"]
    np.testing.assert_array_equal(pixels_of(found), expected)
  assert client.put("/prompts/parts", files=files_of([prompt_of(3)], [])).status_code == 200, "it is replaced"
  assert [each["name"] for each in client.get("/prompts").json()["prompts"]] == ["parts"]
  assert "labels" not in client.get("/prompts/parts").text, "images and label maps are not given out"
  assert client.delete("/prompts/parts").status_code == 204
  for answer in (
    client.get("/prompts/parts"),
    client.delete("/prompts/parts"),
    client.post("/predict?prompts=parts", files=query),
  ):
    assert answer.status_code == 404 and "'parts'" in answer.json()["error"]


def test_label_maps_are_read_as_the_request_says_and_nothing_is_remembered(client, predictor):
  """A mask of 0 and 255 in one request, and one of 0 and 7 in the next: both are masks of class 1."""
  for value in (255, 7):
    mask = np.where(prompt_of(1, classes=1).labels, np.uint8(value), np.uint8(0))
    files = files_of([prompt_of(1)._replace(labels=mask)], [noise(1)])
    answer = client.post("/predict", files=files, data={"labels": "binary"}, headers={"accept": "image/png"})
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(found, predictor.predict(noise(1), [prompt_of(1, classes=1)]).labels)
  answer = client.post(
    "/predict", files=files_of([prompt_of(1)._replace(labels=np.uint8(255) * (mask > 0))], [noise(1)])
  )
  assert answer.status_code == 422 and "labels=binary" in answer.json()["error"]


def test_prompts_that_show_nothing_are_pointed_out(client):
  empty = prompt_of(1)._replace(labels=np.zeros((36, 44), np.uint8))
  speck = empty._replace(labels=np.eye(1, 36 * 44, 900, np.uint8).reshape(36, 44))
  warnings = client.post("/predict", files=files_of([empty, speck], [noise(1)])).json()["warnings"]
  assert len(warnings) == 2 and "no foreground" in warnings[0] and "class 1 covers" in warnings[1]


# --------------------------------------------------------------------------------------------------- about the service


def test_documents_about_itself(client):
  assert client.get("/health").json() == {"status": "ready", "model": "loud", "models": ["loud"], "queue": 0}
  described = client.get("/openapi.json").json()
  content = described["paths"]["/predict"]["post"]["requestBody"]["content"]
  served = set(content["application/json"]["schema"]["properties"])
  assert content["multipart/form-data"]["schema"]["properties"]["image"]["items"]["format"] == "binary"
  fields = {field.name for field in dataclasses.fields(InferenceOptions)}
  assert fields | {"image", "prompt_image", "prompt_label", "prompts", "confidence", "labels"} <= served
  assert set(described["components"]["schemas"]["ImageAnswer"]["properties"]) >= {"labels", "polygons", "overlay"}
  for page in (client.get("/docs"), client.get("/")):
    linked = re.findall(r"(?:src|href)=[\"']?(?:https?:)?//([^/]+)", page.text)
    assert set(linked) <= {"cdn.jsdelivr.net"} and "openapi.json" in page.text
  assert "POST /predict" in page.text and not linked, "nobody needs the internet to find the requests"
  for path in ("/", "/docs", "/openapi.json", "/health", "/prompts", "/metrics"):
    answer, head = client.get(path), client.head(path)
    assert head.status_code == answer.status_code == 200 and not head.content
    assert head.headers["content-type"] == answer.headers["content-type"]
  assert client.head("/predict").status_code == 405


def test_a_service_that_is_loading_says_so(engines, start, predictor):
  gate = threading.Event()

  def load():
    assert gate.wait(60)
    return predictor

  engine = engines(load, wait=False)
  client = start(engine)
  assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "loading")
  answer = client.post("/predict", files=files_of([prompt_of(1)], [noise(1)]))
  assert answer.status_code == 503 and answer.headers["retry-after"]
  gate.set()
  engine.started.result(60)
  assert client.get("/health").status_code == 200


def test_headers_that_keep_browsers_from_harm(client):
  for path in ("/health", "/docs", "/nothing"):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY" and "default-src 'none'" in headers["content-security-policy"]


# ------------------------------------------------------------------------------------------------------- wrong requests


def error_of(answer, status: int) -> str:
  assert answer.status_code == status, answer.text
  assert set(answer.json()) == {"error"} and "\n" not in answer.json()["error"]
  return answer.json()["error"]


def test_a_token_is_needed_everywhere_but_for_health_and_docs(start):
  client = start(token="s3cret")
  for headers in (
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Basic s3cret"},
    {"authorization": "s3cret"},
  ):
    for method, path in (("GET", "/prompts"), ("POST", "/predict"), ("GET", "/metrics"), ("PUT", "/prompts/a")):
      answer = client.request(method, path, headers=headers)
      assert "token" in error_of(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
  assert client.get("/health").json() == {"status": "ready"}, "the model is nobody else's business"
  assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 200
  client.headers["authorization"] = "bearer s3cret"
  assert client.get("/prompts").status_code == 200 and client.get("/health").json()["model"] == "loud"


@pytest.mark.parametrize(
  "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "a b", "192.168.0.7"]
)
def test_other_names_of_a_loopback_service_are_refused(client, host):
  error_of(client.get("/prompts", headers={"host": host}), 400)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000"])
def test_names_of_loopback(client, host):
  assert client.get("/prompts", headers={"host": host}).status_code == 200


def test_pages_of_other_origins_are_refused(client):
  for origin in ("https://evil.example", "null", "http://127.0.0.1:9000", "file://", "http://[", ""):
    assert "Origin" in error_of(client.post("/predict", headers={"origin": origin}), 403)
  assert client.get("/prompts", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


def test_a_service_for_others_has_any_name(start):
  client = start(token="s3cret", loopback=False)
  assert client.get("/prompts", headers={"host": "seg.example", "authorization": "Bearer s3cret"}).status_code == 200


GOOD = files_of([prompt_of(1)], [noise(1)])
WRONG = {
  "unknown path": (404, "path: not found", {"method": "GET", "url": "/nothing"}),
  "trailing slash": (404, "path", {"url": "/predict/"}),
  "other method": (405, "method", {"method": "GET"}),
  "no body": (415, "Content-Type: found none", {}),
  "other type": (415, "application/x-www-form-urlencoded", {"data": {"split": "1"}}),
  "compressed": (415, "Content-Encoding", {"files": GOOD, "headers": {"content-encoding": "gzip"}}),
  "damaged json": (400, "JSON", {"content": b"{", "headers": {"content-type": "application/json"}}),
  "not utf-8": (400, "JSON", {"content": b'{"\xff": 1}', "headers": {"content-type": "application/json"}}),
  "deep json": (400, "JSON", {"content": b"[" * 10**5, "headers": {"content-type": "application/json"}}),
  "json list": (400, "expected an object", {"json": [1]}),
  "no base64": (400, "image[0]: cannot be read as base64", {"json": {"image": "?"}}),
  "no text": (400, "image[0]: found int", {"json": {"image": 1}}),
  "no boundary": (400, "boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
  "damaged multipart": (
    400,
    "body",
    {"content": b"--x\r\nrubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}},
  ),
  "cut off multipart": (
    400,
    "body",
    {
      "content": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc',
      "headers": {"content-type": "multipart/form-data; boundary=x"},
    },
  ),
  "no image": (422, "image: found none", {"json": {}}),
  "no prompts": (422, "prompts: found none", {"files": GOOD[:1]}),
  "no label": (422, "prompt_label: found 0 files, expected 1", {"files": GOOD[:2]}),
  "text for file": (422, "image: found a string", {"files": GOOD[1:], "data": {"image": "a"}}),
  "file for text": (422, "split: found a file", {"files": [*GOOD, ("split", ("a", b"2"))]}),
  "unknown field": (422, "'splt': unknown field, expected split", {"files": GOOD, "data": {"splt": "2"}}),
  "twice": (422, "split: found twice", {"files": GOOD, "data": {"split": "1"}, "url": "/predict?split=2"}),
  "no image file": (422, "image[0]: cannot be read as an image", {"files": [("image", ("a", b"abc")), *GOOD[1:]]}),
  "cut off image": (422, "image[0]", {"files": [("image", ("a", GOOD[0][1][1][:-200])), *GOOD[1:]]}),
  "other size": (
    422,
    "prompt_label[0]",
    {"files": [*GOOD[:2], ("prompt_label", ("a", png(np.eye(9, dtype=np.uint8))))]},
  ),
  "no labels": (422, "prompt_label[0]", {"files": [*GOOD[:2], ("prompt_label", ("a", png(noise(3, 36, 44))))]}),
  "split": (422, "split: found 'x', expected an integer", {"files": GOOD, "data": {"split": "x"}}),
  "no number": (422, "overlap: found 'nan'", {"files": GOOD, "data": {"split": "2", "overlap": "nan"}}),
  "huge number": (422, "least_area", {"json": as_json(GOOD, least_area=10**400)}),
  "bool for number": (422, "split: found True", {"json": as_json(GOOD, split=True)}),
  "contradiction": (422, "overlap", {"files": GOOD, "data": {"overlap": "0.5"}}),
  "stitch": (422, "stitch_width", {"files": GOOD, "data": {"split": "2", "stitch_width": "999"}}),
  "long text": (422, "table", {"json": as_json(GOOD, labels="table", table="-" * 10**5)}),
  "nested table": (422, "table", {"json": as_json(GOOD, labels="table", table="-" * 10**4 + "1")}),
  "half a character": (
    422,
    "unknown field",
    {"content": b'{"\\ud800": 1}', "headers": {"content-type": "application/json"}},
  ),
  "both prompts": (422, "prompt_image cannot be combined with", {"files": GOOD, "data": {"prompts": "a"}}),
  "unknown prompts": (404, "'a'", {"files": GOOD[:1], "data": {"prompts": "a"}}),
  "png of several": (422, "Accept", {"files": [GOOD[0], *GOOD], "headers": {"accept": "image/png"}}),
  "png with confidence": (
    422,
    "confidence",
    {"json": as_json(GOOD, confidence=True), "headers": {"accept": "image/png"}},
  ),
  "large body": (
    413,
    "body: found 1048577 bytes",
    {"content": bytes(2**20 + 1), "headers": {"content-type": "application/json"}},
  ),
  "endless body": (
    413,
    "body",
    {"content": (bytes(2**16) for _ in range(100)), "headers": {"content-type": "application/json"}},
  ),
  "bomb": (
    413,
    "image[0]: found 20000 x 8000 pixels",
    {"files": [("image", ("a", png_header(20000, 8000))), *GOOD[1:]]},
  ),
  "huge bomb": (
    413,
    "image[0]: found 3600000000 pixels",
    {"files": [("image", ("a", png_header(60000, 60000))), *GOOD[1:]]},
  ),
  "many images": (413, "image: found 5", {"files": [*4 * GOOD[:1], *GOOD]}),
  "many prompts": (413, "prompt_image: found 4", {"files": [GOOD[0], *4 * GOOD[1:]]}),
  "many files": (413, "Too many files", {"files": 40 * GOOD[:1]}),
  "much work": (413, "image[0]: needs 256 passes", {"files": GOOD, "data": {"split": "4"}}),
  "zoom": (413, "image[0]: needs 19625 passes", {"files": GOOD, "data": {"zoom": "100"}}),
  "name": (422, "name: found", {"method": "PUT", "url": "/prompts/a%20b", "files": GOOD[1:]}),
  "image for prompts": (422, "image", {"method": "PUT", "url": "/prompts/a", "files": GOOD}),
  "nothing for prompts": (422, "prompt_image: found none", {"method": "PUT", "url": "/prompts/a", "json": {}}),
  "option for prompts": (
    422,
    "split",
    {"method": "PUT", "url": "/prompts/a", "files": GOOD[1:], "data": {"split": "2"}},
  ),
}


@pytest.fixture(scope="module")
def shared(predictor):
  """A client of one service that all wrong requests go to."""
  from seggpt_jax.app.engine import Engine

  engine = Engine(lambda: predictor, queue=LIMITS.queue)
  engine.started.result(60)
  yield TestClient(
    Service({"loud": Served(engine)}, PromptStore(LIMITS.prompt_bytes), LIMITS).application(),
    base_url="http://localhost",
  )
  engine.close()


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "_"))
def test_wrong_requests_get_one_line(shared, case):
  status, text, request = WRONG[case]
  error = error_of(shared.request(**({"method": "POST", "url": "/predict"} | request)), status)
  assert text in error and "seggpt_jax" not in error, "nothing of the server's files"


def test_stored_prompts_are_no_way_around_the_limit_of_a_zoom(client):
  client.put("/prompts/a", files=files_of([prompt_of(1, height=300, width=300)], []))
  answer = client.post("/predict", files=GOOD[:1], data={"prompts": "a", "zoom": "1.6"})
  assert "zoom: found 1.6" in error_of(answer, 413)


def test_prompts_that_leave_no_room(start):
  client = start(limits=dataclasses.replace(LIMITS, prompt_bytes=5000))
  assert "prompts: found 6336 bytes" in error_of(client.put("/prompts/a", files=GOOD[1:]), 413)


def test_a_slow_answer(engines, start, predictor):
  held = Held(predictor)
  engine = engines(lambda: held)
  client, patient = start(engine, dataclasses.replace(LIMITS, seconds=0.3)), start(engine)
  assert "no answer after 0.3 seconds" in error_of(client.post("/predict", files=GOOD), 504)
  held.go.set()
  assert patient.post("/predict", files=GOOD).status_code == 200, "the engine continues"


def test_a_full_service_refuses_and_recovers(engines, start, predictor):
  held = Held(predictor)
  client = start(engines(lambda: held, queue=4))
  with ThreadPoolExecutor(16) as clients:
    running = clients.submit(client.post, "/predict", files=GOOD)
    assert held.running.wait(60)
    waiting = [clients.submit(client.post, "/predict", files=GOOD) for _ in range(12)]
    deadline = time.monotonic() + 20
    while sum(each.done() for each in waiting) < 8 and time.monotonic() < deadline:
      time.sleep(0.01)
    refused = [each.result() for each in waiting if each.done()]
    for answer in refused:
      assert "busy" in error_of(answer, 429) and answer.headers["retry-after"] == "1"
    held.go.set()
    statuses = [each.result().status_code for each in (running, *waiting)]
  assert sorted(statuses) == [200] * 5 + [429] * 8
  assert metric(client, "seggpt_request_memory_bytes") == 0
  assert client.post("/predict", files=GOOD).status_code == 200


def test_requests_that_need_more_memory_than_there_is_are_refused(engines, start, predictor):
  held = Held(predictor)
  limits = Limits(body_bytes=13_000, pixels=5_200, images=1, prompts=1, queue=16, memory_bytes=13_000 * 3 + 5_200 * 48)
  client = start(engines(lambda: held, queue=16), limits)
  with ThreadPoolExecutor(1) as clients:
    running = clients.submit(client.post, "/predict", files=GOOD)
    assert held.running.wait(60)
    assert "memory" in error_of(client.post("/predict", files=GOOD), 429)
    held.go.set()
    assert running.result().status_code == 200
  assert client.post("/predict", files=GOOD).status_code == 200


def test_unexpected_errors_are_not_explained_to_clients(engines, start, predictor):
  class Broken(Held):
    def predict_many(self, queries, options=None, *, palette=None):
      raise RuntimeError("/home/somebody/secret")

  client = start(engines(lambda: Broken(predictor)))
  client = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False)
  answer = client.post("/predict", files=GOOD)
  assert error_of(answer, 500) == "the service failed; its log says why"
  assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_answer_is_json_that_others_read(client):
  json.loads(client.post("/predict", files=GOOD).text, parse_constant=pytest.fail)
