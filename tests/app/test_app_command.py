"""The command `seggpt app`: wrong flags are one line and status 2, and other machines need a token."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx2
import pytest

from seggpt_jax.app.project_files import create_project, default_folder
from seggpt_jax.files import exclusive
from tests.app.page_clients import noise, png, square
from tests.commands import seggpt

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
  """Gives the user a data directory in which the page keeps its project."""
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def start(*arguments: str) -> subprocess.Popen:
  environment = {key: value for key, value in os.environ.items() if key != "SEGGPT_TOKEN"} | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "seggpt_jax", "app", *arguments]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def taken_port():
  with socket.create_server(("127.0.0.1", 0)) as listening:
    yield listening.getsockname()[1]


def test_wrong_flags_are_refused_in_one_line(taken_port, tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.jpg").touch()
  wrong = {
    ("--host=0.0.0.0",): "--token: missing",
    ("--token=a b",): "--token: found other characters",
    ("--model-path=no_such_weights",): "no_such_weights",
    (f"--port={taken_port}",): "cannot listen",
    ("--config=no_such_config",): "no_such_config",
    ("--port=0", str(tmp_path / "photos")): "found a.jpg, expected a project, or a new or empty folder",
    ("one", "two"): "found 2 arguments, expected 1: [PROJECT]",
  }
  for arguments, message in wrong.items():
    done = seggpt("app", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def commands_that_name(text: str) -> list[str]:
  """Returns the command lines of running processes that hold a string."""
  listed = subprocess.run(["ps", "-A", "-ww", "-o", "command"], capture_output=True, text=True, check=True).stdout
  return [line for line in listed.splitlines() if text in line]


@pytest.mark.slow  # .ci/run runs it
def test_a_training_run_ends_soon_after_a_page_that_was_killed(weights_directory, tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  config = Path(__file__).with_name("page_training.py")
  process = start("--port=0", f"--model-path={weights_directory}", f"--config={config}")
  try:
    address = re.search(r"http://[^/\s]+", process.stdout.readline())[0]
    with httpx2.Client(base_url=address, headers={"origin": address}, timeout=60) as person:
      person.get("/")
      for seed in range(2):
        key = person.post("/api/images", content=png(noise(seed))).json()["key"]
        person.put(f"/api/images/{key}/label", content=png(square()))
      assert person.post("/api/learning", json={"steps": 5000}).status_code == 202
      while not (learning := person.get("/api/session").json()["learning"])["step"]:
        assert learning["state"] == "running", learning["error"]
        time.sleep(0.2)
    run = tmp_path / "data" / "seggpt" / "project" / "learned" / "1" / "run"
    assert commands_that_name(str(run))
  finally:
    process.kill()
    process.communicate()
  until = time.monotonic() + 20
  while commands_that_name(str(run)) and time.monotonic() < until:
    time.sleep(0.1)
  assert not commands_that_name(str(run))
  assert list(run.glob("checkpoints/*")), "what it had learned is not kept"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_token_opens_the_page_and_a_signal_ends_it(weights_directory, number, status):
  with exclusive(create_project(default_folder())):  # as another page has it
    process = start("--port=0", f"--model-path={weights_directory}", "--token=secret")
    ready = process.stdout.readline()
  try:
    assert "/project_2" in ready
    address = re.search(r"http://\S+", ready)[0]
    assert address.endswith("/?token=secret")
    opened = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    assert b"<!doctype html>" in opened.open(address).read()
    with pytest.raises(urllib.error.HTTPError, match="401"):
      urllib.request.urlopen(address.partition("?")[0])
    process.send_signal(number)
    assert process.wait(60) == status
  finally:
    process.kill()
    process.communicate()
