"""The page's API: the images, labels and answers of a project, for those who have opened the page."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import threading
import time
import urllib.request
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from seggpt_jax.app import bundles, http, page_routes, server
from seggpt_jax.app.engine import Engine
from seggpt_jax.app.page_routes import PAGE
from seggpt_jax.app.project_files import create_project
from seggpt_jax.app.sessions import Session
from seggpt_jax.errors import InputError
from seggpt_jax.formats.recognize import recognize
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model import parameters
from tests.app.page_clients import ORIGIN, Person, noise, open_page, png, square
from tests.loud_network import LOUD, loud_params


@pytest.fixture(scope="module")
def engine(model):
  engine = Engine(lambda: Predictor(model))
  yield engine
  engine.close()


@pytest.fixture
def page(model, engine, tmp_path):
  with open_page(model, tmp_path / "project", engine=engine, images=30, pixels=10_000) as app:
    yield app


@pytest.fixture
def person(page):
  return Person(page)


def test_an_example_answers_the_others_as_the_predictor_does(person, model):
  images = [noise(seed) for seed in range(3)]
  keys = [person.add(image) for image in images]
  person.draw(keys[0], square())
  state = person.wait()
  assert state["examples"] == [keys[0]] and state["progress"] == {**state["progress"], "answered": 2, "total": 2}
  predictor = Predictor(model)
  for key, image in list(zip(keys, images, strict=True))[1:]:
    expected = predictor.predict(image, [(images[0], square())]).labels
    np.testing.assert_array_equal(person.answer(key), expected)


def test_head_answers_as_get_does_without_the_body(person, page):
  """Monitors and link checkers send HEAD first; at 405 they report the page as broken."""
  key = person.add(noise(0))
  del person.headers["origin"]  # it comes with changes only
  for path in ("/", "/page/main.js", "/api/session", f"/api/images/{key}/picture", "/api/download/labels"):
    answer, head = person.get(path), person.head(path)
    assert head.status_code == answer.status_code and not head.content, path
    assert head.headers["content-type"] == answer.headers["content-type"]
  assert person.head("/api/boards").status_code == 405
  assert TestClient(page, base_url=ORIGIN).head("/api/session").status_code == 401


def test_promoting_a_corrected_answer_changes_the_others(person):
  keys = [person.add(noise(seed)) for seed in range(10, 14)]
  person.draw(keys[0], square())
  before = person.wait()
  answers = [person.answer(key) for key in keys[2:]]
  person.draw(keys[1], square(start=16))  # the answer, corrected by hand
  after = person.wait()
  assert after["round"] > before["round"] and set(after["examples"]) == {keys[0], keys[1]}
  assert any((person.answer(key) != old).any() for key, old in zip(keys[2:], answers, strict=True))


def test_an_answer_becomes_an_example_with_one_request(person):
  keys = [person.add(noise(seed)) for seed in range(20, 23)]
  person.draw(keys[0], square())
  person.wait()
  answer = person.answer(keys[1])
  assert answer.any()
  assert person.post(f"/api/images/{keys[1]}/promote").status_code == 200
  label = person.get(f"/api/images/{keys[1]}/label")
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(label.content))), answer)
  assert set(person.wait()["examples"]) == set(keys[:2])


def test_all_who_open_the_page_work_on_the_same_project(page):
  first, second = Person(page), Person(page)
  key = first.add(noise(1), "cam1/001.png")
  first.draw(key, square())
  assert [each["name"] for each in second.state()["images"]] == ["cam1/001"] and second.state()["examples"] == [key]
  second.add(noise(2), "cam1/001.png")
  assert [each["name"] for each in first.state()["images"]] == ["cam1/001", "cam1/001_2"]


def test_the_cookie_is_secret_and_an_unknown_one_opens_nothing(page, person):
  cookie = person.opened.headers["set-cookie"]
  assert "HttpOnly" in cookie and "SameSite=strict" in cookie
  assert len(cookie.partition("=")[2].partition(";")[0]) >= 22  # 128 bits in base64
  stranger = Person(page)
  stranger.cookies.clear()
  for path in ("/api/session", "/api/images/a1/picture", "/api/archive"):
    assert stranger.get(path).status_code == 401


@pytest.mark.parametrize(
  ("headers", "status"),
  [({"origin": "http://evil.example"}, 403), ({"host": "evil.example"}, 400), ({"origin": ""}, 403), ({}, 200)],
)
def test_changes_come_from_the_pages_own_origin(person, headers, status):
  assert person.post("/api/settings", json={"split": 1}, headers=headers).status_code == status


def test_every_answer_has_a_strict_policy(person):
  for path in ("/", "/api/session", "/page/main.js", "/nothing", "/api/images/a9/answer"):
    headers = person.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_the_page_needs_nothing_from_outside():
  for path in PAGE.iterdir():
    text = path.read_text()
    assert "http://" not in text.replace("http://www.w3.org/", "") and "https://" not in text, path
    assert "//cdn" not in text and "@import" not in text and "style=" not in text and "onclick=" not in text, path


def test_a_token_opens_the_page_once(model, tmp_path):
  with open_page(model, tmp_path, token="secret") as app:
    assert Person(app).opened.status_code == 401
    assert Person(app, "/?token=wrong").opened.status_code == 401
    person = Person(app, "/?token=secret")
    assert person.opened.status_code == 200 and "token" not in str(person.opened.url)
    assert person.get("/").status_code == 200 and person.state()["images"] == []


# ------------------------------------------------------------------------------------------------------------ bad input


def bomb() -> bytes:
  """Returns the header of a PNG file of 60,000 x 60,000 pixels."""
  data = bytearray(png(np.zeros((8, 8, 3), np.uint8)))
  data[16:24] = (60_000).to_bytes(4, "big") * 2
  return bytes(data)


@pytest.mark.parametrize(
  ("data", "status"),
  [
    (b"", 422),
    (b"no image", 422),
    (bomb(), 422),
    (png(noise(0, 200)), 413),  # more pixels than this page takes
    (png(noise(0))[:200], 422),
  ],
)
def test_bad_images_are_refused_in_one_line(person, data, status):
  response = person.post("/api/images", params={"name": "../../photo.png"}, content=data)
  assert response.status_code == status
  message = response.json()["error"]
  assert message.startswith("photo.png") and "\n" not in message and "/tmp" not in message
  assert person.state()["images"] == []


def test_bad_labels_are_refused(person):
  key = person.add(noise(0))
  for labels in (square()[:-1], np.zeros((40, 48), np.uint8), square(2), noise(3)):
    response = person.put(f"/api/images/{key}/label", content=png(labels))
    assert response.status_code == 422 and "\n" not in response.json()["error"]
  assert person.state()["examples"] == []
  assert person.post(f"/api/images/{key}/promote").status_code == 404  # no answer yet


@pytest.mark.parametrize(
  ("path", "body"),
  [
    ("settings", b"{"),
    ("settings", b"[]"),
    ("settings", b'{"split": 99}'),
    ("settings", b'{"split": true}'),
    ("settings", b'{"flips": "diagonal"}'),
    ("settings", b'{"sensitivity": ["a"]}'),
    ("settings", b'{"sensitivity": [NaN]}'),
    ("settings", b'{"network": "learned"}'),
    ("settings", b'{"network": "plain"}'),
    ("settings", b'{"unknown": 1}'),
    ("settings", b'{"split": "2"}'),
    ("settings", b'{"paused": 1}'),
    ("settings", b'{"flips": []}'),
    ("settings", b'{"choice": "oldest"}'),
    ("settings", b'{"choice": "oldest"}'),
    ("settings", b'{"sensitivity": [1e400]}'),
    ("settings", b'{"colors": ["red"]}'),
    ("classes", b'{"names": []}'),
    ("classes", b'{"names": ["a", "a"]}'),
    ("classes", b'{"names": ["a", ""]}'),
    ("classes", b'{"names": "abc"}'),
    ("learning", b'{"steps": 10}'),
    ("learning", b'{"steps": "many"}'),
    ("archive", b"no zip"),
  ],
)
def test_bad_requests_are_refused(person, path, body):
  response = person.post(f"/api/{path}", content=body)
  assert response.status_code == 422 and "\n" not in response.json()["error"], response.text


def test_addresses_do_not_reach_other_files(person):
  for path in ("/page/..%2fsessions.py", "/page/%2e%2e/sessions.py", "/page/nothing.js", "/api/download/..%2f.."):
    assert person.get(path).status_code == 404
  assert person.request("PATCH", "/api/session").status_code == 405
  assert person.put("/api/session").status_code == 405


def test_a_session_takes_a_limited_number_of_images(model, tmp_path):
  with open_page(model, tmp_path, images=2) as app:
    person = Person(app)
    person.add(noise(0))
    person.add(noise(1))
    assert person.post("/api/images", content=png(noise(2))).status_code == 413


# --------------------------------------------------------------------------------------------------- masks and settings


def test_masks_of_one_class_and_of_class_indices_are_read(person):
  key = person.add(noise(0))
  assert person.post("/api/classes", json={"names": ["crack", "hole"]}).status_code == 200

  def read(labels: np.ndarray, index: int) -> np.ndarray:
    response = person.post(f"/api/images/{key}/mask", params={"class": index, "name": "m.png"}, content=png(labels))
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))

  np.testing.assert_array_equal(read(square(255), 2), square(2))
  both = square(1)
  both[0, :5] = 2
  np.testing.assert_array_equal(read(both, 1), both)


def test_sensitivity_shows_more_of_a_class_without_asking_again(person):
  keys = [person.add(noise(seed)) for seed in range(30, 33)]
  person.draw(keys[0], square())
  before = person.wait()
  areas = []
  for value in (0.5, 1.0, 2.0):
    assert person.post("/api/settings", json={"sensitivity": [value]}).status_code == 200
    areas.append(int((person.answer(keys[1]) > 0).sum()))
  assert areas[0] < areas[1] < areas[2]
  assert person.state()["round"] == before["round"]
  confidence = person.get(f"/api/images/{keys[1]}/confidence")
  assert np.asarray(Image.open(io.BytesIO(confidence.content))).std() > 0


def test_other_settings_ask_again(person):
  keys = [person.add(noise(seed)) for seed in range(40, 42)]
  person.draw(keys[0], square())
  before = person.wait()
  answer = person.answer(keys[1])
  assert person.post("/api/settings", json={"split": 2, "flips": "horizontal"}).status_code == 200
  assert person.wait()["round"] > before["round"]
  assert (person.answer(keys[1]) != answer).any()


def test_the_network_answers_with_and_without_its_adapter(model, tmp_path):
  params = {name: jnp.asarray(value) for name, value in loud_params(LOUD, seed=1).items()}
  plain = parameters.merge(parameters.abstract(LOUD)[0], params)
  with open_page(model, tmp_path, plain=plain) as app:
    person, other = Person(app), Predictor(plain)
    keys = [person.add(noise(seed)) for seed in range(2)]
    person.draw(keys[0], square())
    person.wait()
    before = person.answer(keys[1])
    assert person.state()["plain"]
    assert person.post("/api/settings", json={"network": "plain"}).status_code == 200
    person.wait()
    expected = other.predict(noise(1), [(noise(0), square())]).labels
    np.testing.assert_array_equal(person.answer(keys[1]), expected)
    assert (before != expected).any()


def test_with_many_examples_each_image_gets_those_most_alike_to_it(person, model):
  """The choice is that of `seggpt infer --prompts=similar`; which examples an answer used is shown."""
  keys = [person.add(noise(seed)) for seed in range(50, 54)]
  queries = {person.add(noise(seed) // 8 * 8): seed for seed in (51, 53)}  # nearly the same as an example
  assert person.post("/api/settings", json={"examples": 1}).status_code == 200
  for place, key in enumerate(keys):
    person.draw(key, square(start=4 * place))
  state = person.wait()
  assert set(state["examples"]) == set(keys)  # any of them may be used
  used = {each["key"]: each["used"] for each in state["images"]}
  for key, seed in queries.items():
    assert used[key] == [keys[seed - 50]]
    expected = Predictor(model).predict(noise(seed) // 8 * 8, [(noise(seed), square(start=4 * (seed - 50)))]).labels
    np.testing.assert_array_equal(person.answer(key), expected)
  # The newest one for all, if the user wants that.
  assert person.post("/api/settings", json={"choice": "newest"}).status_code == 200
  state = person.wait()
  assert state["examples"] == keys[-1:]
  assert all(each["used"] == keys[-1:] for each in state["images"] if each["key"] in queries)


def test_examples_that_are_most_alike_still_show_every_class(person):
  keys = [person.add(noise(seed)) for seed in range(60, 65)]
  query = person.add(noise(60) // 8 * 8)
  assert person.post("/api/classes", json={"names": ["crack", "hole"]}).status_code == 200
  assert person.post("/api/settings", json={"examples": 2}).status_code == 200
  for place, key in enumerate(keys):
    person.draw(key, square(1 + (place == 4)))
  (used,) = [each["used"] for each in person.wait()["images"] if each["key"] == query]
  assert used == [keys[0], keys[4]]


def test_a_learned_prompt_answers_without_examples(model, learned_prompt, tmp_path):
  with open_page(model, tmp_path, plain=model, learned=learned_prompt) as app:
    person, predictor = Person(app), Predictor(model, learned=learned_prompt)
    assert person.post("/api/boards").status_code == 200  # examples of something else
    assert person.delete("/api/images").status_code == 200
    keys = [person.add(noise(seed)) for seed in range(3)]
    state = person.wait()
    assert not state["needs_examples"] and state["progress"]["answered"] == 3
    assert state["classes"] == ["crack", "hole"] and len(state["colors"]) == 2
    for seed, key in enumerate(keys):
      np.testing.assert_array_equal(person.answer(key), predictor.predict(noise(seed)).labels)
    # A label is no example: nothing is answered again, as `seggpt infer` takes no prompts with a learned one.
    person.draw(keys[0], square(2))
    after = person.wait()
    assert after["round"] == state["round"] and after["examples"] == []
    assert person.post("/api/classes", json={"names": ["crack"]}).status_code == 422
    # Without the adapter, the label is the example.
    assert person.post("/api/settings", json={"network": "plain"}).status_code == 200
    state = person.wait(lambda state: state["needs_examples"] and state["progress"]["answered"] == 2)
    assert state["examples"] == keys[:1]
    expected = Predictor(model).predict(noise(1), [(noise(0), square(2))]).labels
    np.testing.assert_array_equal(person.answer(keys[1]), expected)


def test_classes_are_recolored_and_removed(person, tmp_path):
  keys = [person.add(noise(seed)) for seed in range(70, 73)]
  person.post("/api/classes", json={"names": ["crack", "hole"]})
  person.draw(keys[0], square(1))
  person.draw(keys[1], square(2))
  person.wait()
  before = person.get(f"/api/images/{keys[1]}/thumbnail").content
  assert person.post("/api/settings", json={"colors": ["", "#ff0000"]}).status_code == 200
  assert person.state()["colors"][1] == [255, 0, 0]
  assert person.get(f"/api/images/{keys[1]}/thumbnail").content != before
  for path, message in (
    ("classes/3", "class: found 3, expected an integer from 1 to 2"),
    ("classes/1?ignore=often", "ignore: found 'often', expected true or false"),
  ):
    response = person.delete(f"/api/{path}")
    assert response.status_code == 422 and response.json()["error"] == message
  (tmp_path / "project" / "learned" / "1" / "run" / "checkpoints" / "5").mkdir(parents=True)
  assert person.state()["learned"] == ["1"]
  assert person.delete("/api/classes/1", params={"ignore": True}).status_code == 200
  assert person.state()["learned"] == [], "its classes have other numbers"
  state = person.wait()
  assert state["classes"] == ["hole"] and state["colors"] == [[255, 0, 0]] and state["examples"] == [keys[1]]
  assert set(np.unique(person.answer(keys[0]))) <= {0, 1}  # its label showed the other class only
  assert person.delete("/api/classes/1").status_code == 422


def test_removing_all_images_leaves_a_new_session_or_keeps_what_the_user_wants(person):
  new = person.state()
  for keep in (1, 0):
    key = person.add(noise(0))
    assert person.post("/api/classes", json={"names": ["crack", "hole"]}).status_code == 200
    assert person.post("/api/settings", json={"split": 2, "sensitivity": [1.0, 2.0]}).status_code == 200
    person.draw(key, square(2))
    kept = person.state()
    assert person.delete("/api/images", params={"keep": keep}).status_code == 200
    state = person.state()
    assert state["images"] == [] and state["examples"] == [] and state["changes"] > kept["changes"]
    for name in ("classes", "settings"):
      assert state[name] == (kept if keep else new)[name]


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_saved_session_loads_into_another(model, engine, person, tmp_path):
  keys = [person.add(noise(seed), f"part {seed}.png") for seed in range(3)]
  person.post("/api/classes", json={"names": ["crack", "hole"]})
  person.draw(keys[0], square(2))
  archive = person.get("/api/archive")
  assert archive.status_code == 200
  names = zipfile.ZipFile(io.BytesIO(archive.content)).namelist()
  assert "train/images/part 0.png" in names and "train/labels/part 0.png" in names and "classes.txt" in names
  with open_page(model, tmp_path / "other", engine=engine) as app:
    other = Person(app)
    assert other.post("/api/boards").status_code == 200  # the demo makes room
    assert other.post("/api/archive", content=archive.content).json() == {"added": 3}
    state = other.state()
    assert state["classes"] == ["crack", "hole"] and len(state["images"]) == 3
    (example,) = state["examples"]
    label = other.get(f"/api/images/{example}/label")
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(label.content))), square(2))


def test_archives_cannot_write_elsewhere(person):
  for name in ("../evil.png", "/evil.png", "train/../../evil.png"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
      packed.writestr(name, png(noise(0)))
    response = person.post("/api/archive", content=file.getvalue())
    assert response.status_code == 422 and "inside the archive" in response.json()["error"]


def test_a_project_opens_again_as_it_was(model, engine, tmp_path):
  folder = tmp_path / "project"
  with open_page(model, folder, engine=engine) as app:
    person = Person(app)
    keys = [person.add(noise(seed), f"cam{seed}/001.png") for seed in range(4)]
    person.post("/api/classes", json={"names": ["crack", "hole"]})
    person.post("/api/settings", json={"split": 2, "sensitivity": [1.0, 2.0]})
    person.draw(keys[2], square(2))
    person.draw(keys[0], square(1))
    person.put(f"/api/images/{keys[1]}/draft", content=png(square(2, start=4)))
    person.delete(f"/api/images/{keys[3]}")
    before = person.state()
  assert recognize(str(folder)) == ("folder", ("train",))
  (folder / "notes.txt").write_text("mine")
  # Two interrupted steps: a label without its image next to it, and an image whose label was not written yet.
  os.rename(folder / "train/images/cam2/001.png", folder / "unlabeled/cam2.png")
  os.rename(folder / "train/labels/cam2/001.png", folder / "train/labels/cam2.png")
  os.rename(folder / "unlabeled/cam1/001.png", folder / "train/images/cam1.png")
  os.rename(folder / "drafts/cam1/001.png", folder / "drafts/cam1.png")
  with open_page(model, folder, engine=engine) as app:
    person = Person(app)
    after = person.state()
    assert after["classes"] == before["classes"] and after["settings"] == before["settings"]
    found = {each["name"]: each for each in after["images"]}
    assert list(found) == ["cam0/001", "cam1", "cam2"]
    assert after["examples"] == [found[name]["key"] for name in ("cam0/001", "cam2")]  # the newest first
    for name, what, expected in (
      ("cam0/001", "label", square(1)),
      ("cam2", "label", square(2)),
      ("cam1", "draft", square(2, start=4)),
    ):
      read = person.get(f"/api/images/{found[name]['key']}/{what}")
      np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(read.content))), expected)
    assert person.delete("/api/images").status_code == 200
  assert (folder / "notes.txt").read_text() == "mine" and not list(folder.rglob("*.png"))


def test_folders_that_are_no_project_are_refused(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.jpg").write_text("")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "project.json").write_text("[]")
  wrong = {"file": "is a file", "photos": "found a.jpg, expected a project", "other": "found no seggpt_project of 1"}
  for name, message in wrong.items():
    with pytest.raises(InputError, match=message):
      create_project(tmp_path / name)
  assert create_project(tmp_path / "new" / "one") == create_project(tmp_path / "new" / "one")


def test_the_first_own_image_takes_the_place_of_the_ready_examples(tmp_path):
  session = Session(tmp_path / "project")
  bundles.add_boards(session)
  assert session.classes == ["copper"] and len(session.examples) == 1 and len(session.pictures) == 10
  for name in ("part_10.png", "part_9.png"):
    session.add_image(name, png(noise(1)))
  assert [each.name for each in session.pictures.values()] == ["part_9", "part_10"]
  assert session.classes == ["object"] and not session.examples
  bundles.add_boards(session)  # as further images
  session.add_image("part_11.png", png(noise(1)))
  assert len(session.pictures) == 13 and not Session(tmp_path / "project").is_new


def test_the_log_of_a_failure_names_no_image_and_no_path(page, person, monkeypatch, caplog):
  def fail(*_):
    raise RuntimeError("/home/somebody/secret.png")

  monkeypatch.setattr(Session, "put_answer", fail)
  person.draw(person.add(noise(0)), square())
  key = person.add(noise(1), "secret.png")
  person.wait(lambda state: any(each["key"] == key and each["error"] for each in state["images"]))
  assert "an image could not be answered: RuntimeError" in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_pages_call_nothing(page, site):
  """A picture in any web page may have the page's address."""
  person = Person(page)
  key = person.add(noise(0))
  fetch = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
  for path in ("/", "/api/session", f"/api/images/{key}/picture", "/page/main.js"):
    assert person.get(path, headers=fetch).status_code == 403
  visit = {**fetch, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
  assert person.get("/", headers=visit).status_code == 200  # a link
  assert person.get("/api/session", headers=visit).status_code == 403


def test_a_body_that_stops_ends_and_bodies_share_the_memory(model, tmp_path, monkeypatch):
  monkeypatch.setattr(http, "_SILENT_SECONDS", 0.2)
  monkeypatch.setattr(http, "_DRAIN_SECONDS", 0.1)
  monkeypatch.setattr(page_routes, "_BODIES_BYTES", 3000)
  with open_page(model, tmp_path) as app, running(app) as port:
    person = Person(app)
    person.state()
    cookie = "; ".join(f"{name}={value}" for name, value in person.cookies.items()).replace("_7860", f"_{port}")
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
      lines = (
        f"POST /api/images?name=x.png HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
        f"Cookie: {cookie}\r\nContent-Length: 2000\r\n\r\n"
      )
      connection.sendall(lines.encode() + b"0" * 1999)
      assert b" 408 " in connection.recv(1000)
    assert person.post("/api/images?name=x.png", content=b"0" * 4000).status_code == 429


def test_silent_connections_make_room(model, tmp_path, monkeypatch):
  monkeypatch.setattr(server, "_MOST_CONNECTIONS", 20)
  monkeypatch.setattr(server, "_HEADER_SECONDS", 2)
  with open_page(model, tmp_path) as app, running(app) as port:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(60)]
    for each in silent[::2]:
      with contextlib.suppress(OSError):
        each.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
    for _ in range(3):
      assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).status == 200
    time.sleep(4)
    for each in silent:
      with contextlib.suppress(ConnectionError):
        assert each.recv(10) == b""  # all have ended
      each.close()


@contextlib.contextmanager
def running(app):
  """Serves an application at a port, in a thread, with the connections of the page."""
  listening = server.listen("127.0.0.1", 0)
  config = uvicorn.Config(app, http=server._Protocol, ws="none", lifespan="off", log_config=None)
  running_server = uvicorn.Server(config)
  thread = threading.Thread(target=lambda: asyncio.run(running_server.serve(sockets=[listening])))
  thread.start()
  try:
    while not running_server.started:
      time.sleep(0.01)
    yield listening.getsockname()[1]
  finally:
    running_server.should_exit = True
    thread.join()
    listening.close()
