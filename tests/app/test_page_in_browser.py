"""The page in a real browser, served by a real process: what a person does on it works."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.app.page_clients import noise, png

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


@pytest.fixture
def address(weights_directory, tmp_path):
  """Starts the command and gives the address that it prints; ends it as a scheduler does."""
  command = [sys.executable, "-m", "seggpt_jax", "app", "--port=0", f"--model-path={weights_directory}"]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "XLA_FLAGS": ""}
  output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  process = subprocess.Popen([*command, f"--config={CONFIG}"], cwd=ROOT, env=environment, **output)
  try:
    found = re.search(r"http://\S+", line := process.stdout.readline())
    assert found, line + process.stdout.read()
    yield found[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not [path for path in tmp_path.iterdir() if "seggpt_app" in path.name], "temporary files are left"
  finally:
    process.kill()
    process.wait()


@pytest.fixture
def page(browser, address):
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
  assert state(page)["settings"]["network"] == "learned"
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
  page.keyboard.press("2")
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


def test_another_tab_may_remove_all_or_end_the_session(page):
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
  # Or end the session and open a new one, before this tab has asked again.
  page.route("**/api/session?*", lambda route: route.fulfill(status=422, body="{}"))
  page.get_by_text("The server answers 422").first.wait_for()
  page.request.delete(f"{page.url}api/session", headers={"origin": page.url.rstrip("/")})
  page.request.get(page.url)
  page.unroute_all()
  page.get_by_text("9 of 9 answered").wait_for()
  expect(page.locator("#thumbnails button")).to_have_count(10)
  expect(page.locator("#image-name")).to_have_text("board_01")


def test_files_can_be_dropped_and_bad_ones_are_named(page):
  dropped = page.evaluate_handle(
    """(good) => {
      const files = new DataTransfer();
      files.items.add(new File([Uint8Array.from(good)], "good.png"));
      files.items.add(new File(["nothing"], "bad.png"));
      return files;
    }""",
    list(png(noise(0))),
  )
  page.dispatch_event("#stage", "drop", {"dataTransfer": dropped})
  page.get_by_text("1 image added. 1 not: bad.png: cannot be read as an image").wait_for()
  page.get_by_text("10 of 10 answered").wait_for()
