"""The page in a real browser, served by a real process: what a person does on it works."""

from __future__ import annotations

import http.client
import http.server
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.app.page_clients import noise, png, square
from tests.xla_flags import QUICK

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

ROOT = Path(__file__).parents[2]
CONFIG = str(Path(__file__).with_name("page_training.py"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 180_000  # milliseconds that a step may take on a busy machine
expect = playwright.expect  # waits until it is so
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def browser():
  if CHROMIUM is None:
    pytest.skip("needs chromium: apt-get install chromium")
  with playwright.sync_playwright() as started:
    opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], headless=True)
    yield opened
    opened.close()


class Served:
  """The command in a process of its own, which can be killed and started again with the same project and port."""

  def __init__(self, weights: Path, folder: Path):
    self.project, self._port = folder / "project", 0
    self._command = [sys.executable, "-m", "seggpt_jax", "app", str(self.project), f"--model-path={weights}"]

  def start(self) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [*self._command, f"--config={CONFIG}", f"--port={self._port}"]
    self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **output)
    found = re.search(r"http://[^:]+:(\d+)/", line := self.process.stdout.readline())
    assert found, line + self.process.stdout.read()
    assert f"project: {self.project};" in line
    self._port = int(found[1])
    return found[0]

  def kill(self) -> None:
    self.process.kill()
    self.process.communicate()


@pytest.fixture
def served(weights_directory, tmp_path):
  served = Served(weights_directory, tmp_path)
  yield served
  served.kill()


@pytest.fixture
def address(served):
  """Starts the command and gives the address that it prints; ends it as a scheduler does."""
  yield served.start()
  served.process.send_signal(signal.SIGTERM)
  assert served.process.wait(60) == 0
  assert not (served.project / ".scratch").exists(), "temporary files are left"


@pytest.fixture
def page(browser, address, tmp_path):
  """The opened page, which asks nobody else for anything and reports no error."""
  context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
  context.set_default_timeout(SECONDS)
  page, problems = context.new_page(), []
  page.on("pageerror", lambda error: problems.append(str(error)))
  page.on(
    "console", lambda said: problems.append(said.text) if said.type == "error" and "422" not in said.text else None
  )
  page.on("request", lambda asked: None if asked.url.startswith(address) else problems.append(asked.url))
  page.on("dialog", lambda dialog: dialog.accept())
  page.problems, page.folder = problems, tmp_path
  page.goto(address)
  page.get_by_text("9 of 9 answered").wait_for()
  yield page
  context.close()
  assert not problems


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
  """Draws with the mouse from one place to another, in shares of the stage."""
  page.locator("#canvas").scroll_into_view_if_needed()
  box = page.locator("#canvas").bounding_box()
  places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
  page.mouse.move(*places[0])
  page.mouse.down()
  page.mouse.move(*places[1], steps=6)
  page.mouse.up()


def answer(page, key: str, what: str = "answer") -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(page.request.get(f"{page.url}api/images/{key}/{what}").body())))


def state(page) -> dict:
  return page.request.get(f"{page.url}api/session").json()


def add_images(page, count: int) -> list[str]:
  """Replaces the ready examples by images of noise and returns their keys."""
  page.get_by_text("Files", exact=True).click()
  page.get_by_role("button", name="Remove all images").click()
  page.get_by_role("button", name="Remove all", exact=True).click()
  page.get_by_text("Add images to start").wait_for()
  files = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": png(noise(i))} for i in range(count)]
  page.locator("#files").set_input_files(files)
  page.get_by_text("Draw on one picture").wait_for()
  page.get_by_text(re.compile(f"{count} images? added")).wait_for()
  return sorted(state(page)["order"], key=lambda key: next(i["name"] for i in state(page)["images"] if i["key"] == key))


def open_picture(page, name: str) -> None:
  page.get_by_role("button", name=re.compile(rf"^{name}\.")).click()
  page.locator("#image-name").get_by_text(name, exact=True).wait_for()


def test_label_correct_promote_train_download_and_come_back(page):
  keys = add_images(page, 3)
  # Paint a prompt, and see the others answered.
  open_picture(page, "0")
  drag(page, (0.4, 0.4), (0.6, 0.5))
  page.get_by_text("Changed by hand").wait_for()
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("2 of 2 answered").wait_for()
  drawn = answer(page, keys[0], "label")
  assert 0 < (drawn == 1).mean() < 0.5
  first = answer(page, keys[2])
  # Correct an answer and promote it: the last one changes.
  open_picture(page, "1")
  page.get_by_text("Answered by the network").wait_for()
  drag(page, (0.3, 0.7), (0.7, 0.7))
  page.keyboard.press("e")
  drag(page, (0.4, 0.2), (0.6, 0.2))
  page.keyboard.press("Enter")
  page.get_by_text("1 of 1 answered").wait_for()
  second = answer(page, keys[2])
  assert (first != second).any() and len(state(page)["examples"]) == 2
  # What was drawn is what the server has.
  corrected = answer(page, keys[1], "label")
  open_picture(page, "0")
  np.testing.assert_array_equal(answer(page, keys[0], "label"), drawn)
  assert corrected.any()
  # Train for a few steps: the network that learned answers.
  page.locator("#steps").fill("3")
  page.get_by_role("button", name="Start").click()
  page.get_by_text("Done; the network that learned is in use").wait_for()
  page.get_by_text("1 of 1 answered").wait_for()
  assert state(page)["settings"]["network"] == "1"
  # Download.
  page.get_by_text("Files", exact=True).click()
  with page.expect_download() as download:
    page.get_by_text("Download masks (PNG)").click()
  with zipfile.ZipFile(download.value.path()) as packed:
    label = np.asarray(Image.open(io.BytesIO(packed.read("labels/0.png"))))
  np.testing.assert_array_equal(label, drawn)
  # Come back later.
  page.reload()
  page.get_by_text("1 of 1 answered").wait_for()
  expect(page.locator("#thumbnails button")).to_have_count(3)
  assert len(state(page)["examples"]) == 2


def test_the_page_fits_a_phone_and_takes_polygons_undo_and_classes(page):
  page.set_viewport_size({"width": 390, "height": 844})
  (key,) = add_images(page, 1)
  assert page.evaluate("document.documentElement.scrollWidth") == 390
  for name in ("Brush", "Eraser", "Polygon", "Use as example", "Add images"):
    box = page.get_by_role("button", name=name).bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 40, name
  page.get_by_role("button", name="+ Add a class").click()
  page.get_by_label("Name of class 2").wait_for()
  page.locator("#chips").get_by_role("button", name="Draw class class 2").click()
  page.get_by_role("button", name="Polygon").click()
  canvas = page.locator("#canvas")
  box = canvas.bounding_box()
  for x, y in ((0.3, 0.3), (0.7, 0.3), (0.7, 0.7)):
    canvas.click(position={"x": x * box["width"], "y": y * box["height"]})
  page.keyboard.press("Enter")
  page.get_by_text("Changed by hand").wait_for()
  page.get_by_role("button", name="Brush").click()
  drag(page, (0.1, 0.9), (0.3, 0.9))
  page.get_by_role("button", name="Undo").click()
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("Example: answers use it").wait_for()
  label = answer(page, key, "label")
  assert set(np.unique(label)) == {0, 2} and 0.05 < (label == 2).mean() < 0.2


def test_what_is_drawn_belongs_to_the_picture_on_the_screen(page):
  """A picture may take seconds to load, or not load at all; until then the one before is still on the screen."""
  keys = add_images(page, 3)
  open_picture(page, "0")
  refused = []
  page.route(f"**/{keys[1]}/picture", lambda route: (refused.append(1), route.fulfill(status=422, body="{}")))
  page.get_by_role("button", name=re.compile(r"^1\.")).click()
  page.get_by_text("The server answers 422").first.wait_for()
  drag(page, (0.4, 0.4), (0.6, 0.5))
  page.keyboard.press("Enter")
  expect(page.get_by_role("button", name="Use as example")).to_be_disabled()
  assert refused
  page.unroute_all()
  page.locator("#image-name").get_by_text("1", exact=True).wait_for()  # it is asked for again
  expect(page.locator("#badge")).to_have_text("Not answered yet")
  assert state(page)["examples"] == []
  drag(page, (0.4, 0.4), (0.6, 0.5))
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("2 of 2 answered").wait_for()
  assert state(page)["examples"] == [keys[1]]
  # An answer without a mistake: a click on its small picture, and Enter.
  open_picture(page, "2")
  page.locator("#badge").get_by_text("Answered by the network, from 1").wait_for()
  page.keyboard.press("Enter")
  page.get_by_text("1 of 1 answered").wait_for()
  assert set(state(page)["examples"]) == set(keys[1:])


def test_another_tab_may_remove_all(page):
  add_images(page, 2)
  page.get_by_role("button", name="+ Add a class").click()
  page.get_by_label("Name of class 2").wait_for()
  other = page.context.new_page()
  other.on("dialog", lambda dialog: dialog.accept())
  other.goto(page.url)
  other.get_by_label("Name of class 2").wait_for()
  add_images(other, 1)
  other.get_by_label("Name of class 2").wait_for(state="detached")
  page.get_by_label("Name of class 2").wait_for(state="detached")
  open_picture(page, "0")
  drag(page, (0.4, 0.4), (0.6, 0.5))
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("Example: answers use it").wait_for()  # of class 1, as there is no other one
  other.close()


def test_own_pictures_take_the_place_of_the_ready_examples(page):
  """Folders keep their names, the order is that of people, a bad file is named, and one picture can be removed."""
  dropped = page.evaluate_handle(
    """(good) => {
      const files = new DataTransfer();
      for (const name of ["part_10.png", "part_9.png"]) files.items.add(new File([Uint8Array.from(good)], name));
      files.items.add(new File(["nothing"], "bad.png"));
      return files;
    }""",
    list(png(noise(0))),
  )
  page.dispatch_event("#stage", "drop", {"dataTransfer": dropped})
  page.get_by_text("2 images added. 1 not: bad.png: cannot be read as an image").wait_for()
  page.locator("#image-name").get_by_text("part_").wait_for()  # not a board
  expect(page.get_by_label("Name of class 1")).to_have_value("object")
  for folder in ("cam1", "cam2"):
    (page.folder / folder).mkdir()
    (page.folder / folder / "001.png").write_bytes(png(noise(1)))
    page.locator("#folder").set_input_files(page.folder / folder)
    page.locator("#image-name").get_by_text(f"{folder}/001").wait_for()
  names = [
    each["name"] for each in sorted(state(page)["images"], key=lambda each: state(page)["order"].index(each["key"]))
  ]
  assert names == ["cam1/001", "cam2/001", "part_9", "part_10"]
  page.get_by_role("button", name="Remove", exact=True).click()
  page.locator("#image-name").get_by_text("part_9").wait_for()
  assert len(state(page)["order"]) == 3


def test_a_folder_of_images_and_labels_comes_in_and_goes_out(page):
  for name, seed in (("a", 1), ("b", 2)):
    for kind, pixels in (("images", noise(seed)), ("masks", square(255, start=4 * seed))):
      path = page.folder / "mine" / kind / f"{name}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(png(pixels))
  page.locator("#folder").set_input_files(page.folder / "mine")
  page.get_by_text("2 images added").wait_for()
  found = {each["name"]: each for each in state(page)["images"]}
  assert sorted(found) == ["a", "b"] and state(page)["classes"] == ["object"]
  np.testing.assert_array_equal(answer(page, found["b"]["key"], "label"), square(1, start=8))
  (page.folder / "plain").mkdir()
  (page.folder / "plain" / "c.png").write_bytes(png(noise(3)))
  (page.folder / "plain" / "notes.txt").write_text("nothing")
  page.locator("#folder").set_input_files(page.folder / "plain")
  page.get_by_text("1 image added. 1 not: archive: it: found").wait_for()
  for kind, file in (("YOLO", "labels/b.txt"), ("COCO", "annotations.json"), ("as a dataset", "train/labels/b.png")):
    page.get_by_text("Files", exact=True).click()
    with page.expect_download() as download:
      page.get_by_text(f"Download {kind}").click()
    with zipfile.ZipFile(download.value.path()) as packed:
      assert file in packed.namelist()


class Proxy(http.server.BaseHTTPRequestHandler):
  """Passes requests below /label/ on to the page, as a proxy does whose path it does not know."""

  target = ""

  def do_GET(self):
    body = self.rfile.read(int(self.headers.get("content-length", 0)))
    connection = http.client.HTTPConnection(self.target)
    connection.request(self.command, self.path.removeprefix("/label"), body, dict(self.headers))
    response = connection.getresponse()
    content = response.read()
    self.send_response(response.status)
    for name, value in response.headers.items():
      if name.lower() not in ("content-length", "connection", "date", "server"):
        self.send_header(name, value)
    self.send_header("content-length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names that the server calls

  def log_message(self, *_):
    pass


def test_the_page_works_below_the_path_of_a_proxy(page):
  Proxy.target = re.search(r"//([^/]+)", page.url)[1]
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
    threading.Thread(target=proxy.serve_forever).start()
    other = page.context.new_page()
    other.goto(f"http://127.0.0.1:{proxy.server_port}/label/")
    other.get_by_text("9 of 9 answered").wait_for()
    other.locator("#files").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": png(noise(0))}])
    other.locator("#image-name").get_by_text("a", exact=True).wait_for()
    drag(other, (0.4, 0.4), (0.6, 0.5))
    other.get_by_text("Changed by hand, saved").wait_for()
    other.close()
    proxy.shutdown()
  assert [each["draft"] > 0 for each in state(page)["images"]] == [True]


def test_a_second_class_does_not_poison_the_first_example(page):
  keys = add_images(page, 3)
  open_picture(page, "0")
  drag(page, (0.4, 0.4), (0.6, 0.5))
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("2 of 2 answered").wait_for()
  page.get_by_role("button", name="+ Add a class").click()
  page.get_by_text("Not looked for yet").wait_for()
  open_picture(page, "1")
  for key, y in (("1", 0.3), ("2", 0.7)):
    page.keyboard.press(key)
    drag(page, (0.3, y), (0.7, y))
  page.keyboard.press("i")
  drag(page, (0.3, 0.5), (0.7, 0.5))
  page.keyboard.press("Enter")
  page.get_by_text("1 of 1 answered").wait_for()
  assert set(np.unique(answer(page, keys[1], "label"))) >= {1, 2, 255}
  assert state(page)["examples"] == [keys[1]]  # the first one does not say where class 2 is
  open_picture(page, "0")
  page.get_by_role("button", name="No class 2 here").click()
  page.get_by_text("Not looked for yet").wait_for(state="hidden")
  assert set(state(page)["examples"]) == set(keys[:2])
  page.get_by_text("1 of 1 answered").wait_for()
  # The least sure answer comes first, what is done is last, and a filter shows a part.
  page.get_by_label("Order of the pictures").select_option("sure")
  expect(page.locator("#thumbnails button").first).to_have_attribute("aria-label", re.compile(r"^2\."))
  open_picture(page, "2")
  page.keyboard.press("d")
  page.get_by_text("2 labeled, 1 done, 0 to check").wait_for()
  page.get_by_label("Which pictures").select_option("labeled")
  open_picture(page, "1")
  expect(page.locator("#thumbnails button")).to_have_count(2)


def test_a_class_is_recolored(page):
  """The picture, its small picture and the buttons show the color; it is there after a reload."""
  (key,) = add_images(page, 1)
  open_picture(page, "0")
  drag(page, (0.4, 0.4), (0.6, 0.5))
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("Example: answers use it").wait_for()
  page.locator("#opacity").fill("100")
  before = page.locator("#thumbnails img").get_attribute("src")
  page.get_by_label("Color of class object").fill("#ff0000")
  for _ in range(2):
    expect(page.locator("#classes .chip")).to_have_css("background-color", "rgb(255, 0, 0)")
    expect(page.locator("#thumbnails img")).not_to_have_attribute("src", before)
    page.locator("#image-name").get_by_text("0", exact=True).wait_for()
    page.wait_for_function(
      """() => {
        const canvas = document.querySelector("#canvas"), {width, height} = canvas;
        const {data} = canvas.getContext("2d").getImageData(width / 2 - 4, 0.45 * height - 4, 8, 8);
        return data[0] > 240 && data[1] < 20 && data[2] < 20;
      }"""
    )
    page.reload()
    page.locator("#opacity").fill("100")
  assert (answer(page, key, "label") == 1).any()


def test_a_class_is_removed(page):
  """Without labels at once, else after a question; labels and what is drawn keep their other classes."""
  keys = add_images(page, 3)
  for number in (2, 3, 4):
    page.get_by_role("button", name="+ Add a class").click()
    page.get_by_label(f"Name of class {number}").wait_for()
  page.get_by_role("button", name="Remove class class 4").click()
  page.get_by_label("Name of class 4").wait_for(state="detached")  # nobody is asked
  open_picture(page, "0")
  for number, y in (("1", 0.3), ("2", 0.5), ("3", 0.7)):
    page.keyboard.press(number)
    drag(page, (0.3, y), (0.7, y))
  page.keyboard.press("Enter")
  page.get_by_text("2 of 2 answered").wait_for()
  before = answer(page, keys[0], "label")
  open_picture(page, "1")
  page.get_by_text("Answered by the network").wait_for()
  page.keyboard.press("3")
  drag(page, (0.2, 0.2), (0.8, 0.2))
  page.get_by_role("button", name="Remove class class 2").click()
  question = page.locator("#class-dialog")
  question.get_by_text("Remove the class class 2?").wait_for()
  question.get_by_role("button", name="Cancel").click()
  expect(page.locator("#classes li")).to_have_count(3)
  page.get_by_role("button", name="Remove class class 2").click()
  question.get_by_label("Where it is drawn").select_option("ignore")
  question.get_by_role("button", name="Remove the class").click()
  expect(page.locator("#classes li")).to_have_count(2)
  expect(page.get_by_label("Name of class 2")).to_have_value("class 3")
  page.get_by_text("2 of 2 answered").wait_for()
  expected = np.where(before == 2, 255, np.where(before == 3, 2, before))
  np.testing.assert_array_equal(answer(page, keys[0], "label"), expected)
  page.get_by_text("Changed by hand, saved").wait_for()  # and the draft is still there, with its class
  assert 2 in answer(page, keys[1], "draft") and not {3, 4} & set(np.unique(answer(page, keys[1], "draft")))
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("1 of 1 answered").wait_for()
  assert set(np.unique(answer(page, keys[2]))) <= {0, 1, 2}


def test_a_box_a_click_and_keys_draw(page):
  rows, columns = np.mgrid[:120, :160]
  disk = (rows - 60) ** 2 + (columns - 80) ** 2 < 25**2
  image = np.where(disk[..., None], 180, 90) + np.random.default_rng(0).integers(0, 20, (120, 160, 3))
  file = {"name": "disk.png", "mimeType": "image/png", "buffer": png(image.astype(np.uint8))}
  page.locator("#files").set_input_files([file])
  page.locator("#image-name").get_by_text("disk").wait_for()
  page.locator("#size").fill("10")
  page.get_by_text("4 px").wait_for()
  (key,) = state(page)["order"]
  page.keyboard.press("o")
  for start, end in (((0.35, 0.22), (0.65, 0.78)), ((0.5, 0.5), (0.5, 0.5))):
    drag(page, start, end)
    page.get_by_text("Changed by hand, saved").wait_for()
    found = answer(page, key, "draft") == 1
    assert (found & disk).sum() / (found | disk).sum() > 0.8
    page.keyboard.press("z")
    page.get_by_text("Changed by hand").wait_for(state="hidden")
  page.keyboard.press("b")
  page.mouse.move(5, 5)
  for pressed in ("Shift+ArrowRight", "Shift+ArrowDown", " "):
    page.keyboard.press(pressed)
  page.get_by_text("Changed by hand, saved").wait_for()
  assert 0 < (answer(page, key, "draft") == 1).sum() < 40
  page.emulate_media(color_scheme="dark")
  assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 27, 32)"


def test_work_survives_undo_reload_and_kill(page, served):
  keys = add_images(page, 2)
  open_picture(page, "0")
  expect(page.get_by_role("button", name="Undo")).to_be_disabled()
  for y in (0.4, 0.6):
    drag(page, (0.4, y), (0.6, y))
  saved = page.get_by_text("Changed by hand, saved")
  saved.wait_for()
  both = answer(page, keys[0], "draft")
  for _ in range(2):
    page.keyboard.press("z")
  expect(page.locator("#badge")).to_have_text("Not answered yet")  # untouched, as before
  expect(page.get_by_role("button", name="Undo")).to_be_disabled()
  page.wait_for_function(
    "async () => (await fetch('/api/session').then((r) => r.json())).images.every((i) => !i.draft)"
  )
  page.get_by_role("button", name="Redo").click()
  page.keyboard.press("y")
  saved.wait_for()
  np.testing.assert_array_equal(answer(page, keys[0], "draft"), both)
  page.reload()
  saved.wait_for()
  page.get_by_role("button", name="Use as example").click()
  page.get_by_text("1 of 1 answered").wait_for()
  np.testing.assert_array_equal(answer(page, keys[0], "label"), both)
  open_picture(page, "1")
  drag(page, (0.2, 0.2), (0.6, 0.5))
  saved.wait_for()
  draft = answer(page, keys[1], "draft")
  served.kill()
  page.get_by_text("The server does not answer").first.wait_for()
  page.problems.clear()  # a request that was refused
  served.start()
  page.get_by_text("1 of 1 answered").wait_for()  # without a reload
  page.locator("#image-name").get_by_text("1", exact=True).wait_for()
  saved.wait_for()
  after = {each["name"]: each["key"] for each in state(page)["images"]}
  np.testing.assert_array_equal(answer(page, after["0"], "label"), both)
  np.testing.assert_array_equal(answer(page, after["1"], "draft"), draft)
  page.problems.clear()
