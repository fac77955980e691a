"""Measures how long a person waits on the page of `seggpt app`, and takes the pictures of docs/app.md.

  python -m benchmarks.app
  python -m benchmarks.app --pictures=docs/images

A real server with the packaged weights `small` answers real HTTP on this machine. Waiting starts when a label is sent
and ends when the first, or the last, other image has been answered and its label map has been read.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks import report
from seggpt_jax.child_processes import start_command
from seggpt_jax.synthetic.boards import BoardSource

_REPEATS = flags.DEFINE_integer("repeats", 3, "Number of measurements; the median counts.", 1)
_SIZE = flags.DEFINE_integer("size", 512, "Side of the images in pixels.", 64)
_PICTURES = flags.DEFINE_string("pictures", None, "Folder for pictures of the page, in place of the measurement.")
_COLORS = 128
_WINDOWS = {"wide": (1280, 800), "phone": (390, 844)}


@contextlib.contextmanager
def served() -> Iterator[str]:
  """Starts the command with a new project and gives the address of its page."""
  with (
    tempfile.TemporaryDirectory() as folder,
    start_command(["app", folder, "--port=0"], stdout=subprocess.PIPE, text=True) as process,
  ):
    try:
      yield re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
      process.terminate()
      process.wait()


class Browser:
  """Sends requests with the cookie of one session.

  Args:
    address: the page.
  """

  def __init__(self, address: str):
    self._host = urllib.parse.urlsplit(address).netloc
    self._connection = http.client.HTTPConnection(self._host)
    self._cookie = ""
    self._connection.request("GET", "/")
    response = self._connection.getresponse()
    self._cookie = response.headers["set-cookie"].partition(";")[0]
    response.read()

  def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
    """Sends a request and returns the body of the answer."""
    headers = {"cookie": self._cookie, "origin": f"http://{self._host}"}
    self._connection.request(method, path, body, headers)
    response = self._connection.getresponse()
    content = response.read()
    if response.status >= 400:
      raise RuntimeError(f"{method} {path}: {response.status} {content.decode()}")
    return content

  def state(self) -> dict:
    """Returns the state of the session."""
    return json.loads(self.ask("GET", "/api/session"))


def png(pixels: np.ndarray) -> bytes:
  """Returns pixels as a PNG file."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def wait_for(browser: Browser, count: int) -> None:
  """Waits until so many images are answered."""
  while browser.state()["progress"]["answered"] < count:
    time.sleep(0.02)


def measure(browser: Browser, count: int) -> tuple[float, float]:
  """Returns the seconds to the first and to the last of some answers to one new label."""
  browser.ask("DELETE", "/api/images")
  boards = BoardSource(count + 1, seed=0, size=_SIZE.value, scale=_SIZE.value / 64, count=(0, 1), labels="etched")
  keys = [json.loads(browser.ask("POST", "/api/images?name=b.png", png(board["image"])))["key"] for board in boards]
  began, seconds = time.perf_counter(), []
  browser.ask("PUT", f"/api/images/{keys[0]}/label", png(boards[0]["label"]))
  for answered in (1, count):
    wait_for(browser, answered)
    browser.ask("GET", f"/api/images/{keys[answered]}/answer")
    seconds.append(time.perf_counter() - began)
  return seconds[0], seconds[1]


def take_pictures(address: str, folder: Path) -> None:
  """Writes app_wide.png and app_phone.png: the page with its ready examples, one answer open."""
  from playwright.sync_api import sync_playwright

  with sync_playwright() as started:
    browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    for name, (width, height) in _WINDOWS.items():
      page = browser.new_page(viewport={"width": width, "height": height})
      page.set_default_timeout(300_000)  # a busy machine compiles the network for minutes
      page.goto(address)
      page.get_by_text("9 of 9 answered").wait_for()
      page.locator("#thumbnails button").nth(3).click()
      page.get_by_text("Answered by the network").wait_for()
      page.get_by_label("Color of class copper").fill("#00a0ff")  # the usual one is that of the boards
      page.evaluate("scrollTo(0, 0)")
      page.wait_for_timeout(1500)  # pictures load
      path = folder / f"app_{name}.png"
      page.screenshot(path=path)
      # Few colors are a third of the size.
      Image.open(path).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
      print(f"written: {path}, {path.stat().st_size / 1000:.0f} kB")


def main(_: list[str]) -> None:
  began = time.perf_counter()
  with served() as address:
    if _PICTURES.value:
      take_pictures(address, Path(_PICTURES.value))
      return
    browser = Browser(address)
    wait_for(browser, 9)
    print(f"start to answered examples  {time.perf_counter() - began:6.2f} s")
    for count in (1, 20):
      first, last = np.median([measure(browser, count) for _ in range(_REPEATS.value)], axis=0)
      print(f"{count:2d} image{'s' * (count > 1):1s}: first answer {first:6.2f} s, all {last:6.2f} s")
  print(report.machine(["jax"]))


if __name__ == "__main__":
  app.run(main)
