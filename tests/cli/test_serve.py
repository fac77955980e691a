"""The service as a process: it starts with one command, answers, and ends when it is told to."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model.adapters import LearnedPrompt
from tests import adapter_runs
from tests.app.conftest import noise, prompt_of
from tests.app.test_limits import png
from tests.commands import seggpt
from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[2]
# Clients that never send the rest of a request are waited for a second, not ten.
MAIN = "from seggpt_jax.app import http; http._DRAIN_SECONDS = 1.0; from seggpt_jax.cli.main import main; main()"


def command(*arguments: object, **environment: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", MAIN, "serve", *map(str, arguments)],
    env={**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def serving(*arguments: object, **environment: str):
  """Starts a service at a free port; yields its process and its address."""
  process = command("--port=0", *arguments, **environment)
  try:
    for line in process.stdout:
      if found := re.match(r"ready: (\S+) ", line):
        yield process, found[1]
        break
    else:
      pytest.fail(process.stderr.read())
  finally:
    process.kill()
    process.wait()


@pytest.fixture
def prompts(tmp_path) -> Path:
  """A folder with two sets of prompts."""
  for name, seeds in (("parts", (1, 2)), ("scratches", (3,))):
    for seed in seeds:
      for kind, pixels in (("images", prompt_of(seed).image), ("labels", prompt_of(seed).labels)):
        path = tmp_path / "sets" / name / kind / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
  return tmp_path / "sets"


def labels_of(answer: httpx2.Response) -> np.ndarray:
  assert answer.status_code == 200, answer.text
  return np.asarray(Image.open(io.BytesIO(answer.content)))


@contextlib.contextmanager
def begun(request: httpx2.Request):
  """Sends the head of a request, waits until the service asks for its body, and yields what sends it and reads on."""
  body = request.read()
  with socket.create_connection((request.url.host, request.url.port), 60) as connection:
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    head = "\r\n".join([f"POST {request.url.path} HTTP/1.1", *lines, "Expect: 100-continue", "", ""])
    connection.sendall(head.encode())
    assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")

    def finish() -> np.ndarray:
      connection.sendall(body)
      answer = http.client.HTTPResponse(connection)
      answer.begin()
      content = answer.read()
      assert answer.status == 200, content
      assert connection.recv(1) == b""  # closed after the answer
      return np.asarray(Image.open(io.BytesIO(content)))

    yield finish


def wait_until_refused(address: str) -> None:
  """Waits until the service accepts no more connections."""
  until = time.monotonic() + 60
  # It also closes connections that have sent nothing yet.
  while time.monotonic() < until:
    try:
      httpx2.get(f"{address}/health")
    except httpx2.ConnectError:
      return
    except httpx2.TransportError:
      continue
  pytest.fail("still accepts connections after 60 seconds")


def test_a_service_from_start_to_end(weights_directory, prompts):
  """Stored prompts, a token, many clients, requests that run while it is told to end."""
  arguments = (
    "--model-path",
    weights_directory,
    "--model-path",
    f"other={weights_directory}",
    "--prompts",
    prompts,
    "--prompts",
    f"more={prompts / 'parts'}",
  )
  more = f"one={prompts}/scratches/images/3.png,{prompts}/scratches/labels/3.png"
  predictor = Predictor.from_checkpoint(weights_directory)
  with serving(*arguments, "--prompts", more, SEGGPT_TOKEN="s3cret") as (process, address):
    assert address.startswith("http://127.0.0.1:")
    assert httpx2.get(f"{address}/prompts").status_code == 401
    headers = {"authorization": "Bearer s3cret"}
    found = httpx2.get(f"{address}/prompts", headers=headers).json()["prompts"]
    assert {each["name"]: len(each["sizes"]) for each in found} == {"more": 2, "one": 1, "parts": 2, "scratches": 1}

    def request(seed: int) -> httpx2.Request:
      return httpx2.Request(
        "POST",
        f"{address}/predict",
        files={"image": png(noise(seed))},
        data={"prompts": "parts", "split": "2", "model": ("other", weights_directory.name)[seed % 2]},
        headers=headers | {"accept": "image/png"},
      )

    with httpx2.Client(timeout=60) as client, ThreadPoolExecutor(8) as threads:
      answers = [labels_of(answer) for answer in threads.map(client.send, map(request, range(16)))]
    with contextlib.ExitStack() as stack:
      running = [stack.enter_context(begun(request(seed))) for seed in range(4)]
      process.send_signal(signal.SIGTERM)
      wait_until_refused(address)
      answers += [finish() for finish in running]
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
  pairs = [prompt_of(1), prompt_of(2)]
  for seed, labels in zip([*range(16), *range(4)], answers, strict=True):
    np.testing.assert_array_equal(labels, predictor.predict(noise(seed), pairs, split=2).labels)


def test_ctrl_c_and_clients_that_are_slow_or_gone(weights_directory):
  with serving("--model-path", weights_directory, "--max-seconds=1") as (process, address):
    host, port = address.removeprefix("http://").split(":")
    start = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection((host, int(port)), 30) as slow, socket.create_connection((host, int(port))) as gone:
      slow.sendall(start.encode())
      gone.sendall(start.encode())
      gone.close()
      answer = slow.makefile("rb").readline()
      assert answer.split()[1] == b"408"
    with socket.create_connection((host, int(port)), 30) as broken:
      broken.sendall(b"\x16\x03\x01\x02 this is no HTTP\r\n\r\n")
      assert broken.makefile("rb").readline().split()[1] == b"400"
    assert httpx2.get(f"{address}/health").json()["status"] == "ready"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read().splitlines()[-1] == "interrupted"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_examples_of_the_page_run_in_their_order(weights_directory, tmp_path):
  page = (ROOT / "docs" / "serve.md").read_text()
  for name, pixels in (("query.jpg", noise(1)), ("prompt.jpg", prompt_of(1).image)):
    Image.fromarray(pixels).save(tmp_path / name)
  (tmp_path / "prompt_label.png").write_bytes(png(prompt_of(1).labels))
  with serving("--model-path", weights_directory) as (_, address):
    blocks = [block for _, block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)]
    blocks = [block.replace("http://127.0.0.1:8000", address) for block in blocks if "127.0.0.1:8000" in block]
    assert len(blocks) == 3
    for block in blocks:
      line = ["bash", "-euc", block] if block.startswith("curl") else [sys.executable, "-c", block]
      done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
      assert done.returncode == 0, f"{block}\n{done.stderr}"
  expected = Predictor.from_checkpoint(weights_directory).predict(
    tmp_path / "query.jpg", [(tmp_path / "prompt.jpg", tmp_path / "prompt_label.png")]
  )
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), expected.labels)


def taken() -> socket.socket:
  return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--host=0.0.0.0"], "--token: missing with --host=0.0.0.0"),
    (["--token="], "--token: found an empty one"),
    (["--token=a b"], "--token: found other characters"),
    (["--prompts=nothing"], "--prompts: found 'nothing'"),
    (["--prompts=a=nothing.png"], "--prompts: a: found 'nothing.png'"),
    (["--prompts=a=x.png,y.png"], "x.png: not found"),
    (["--model-path=small", "--model-path=a/small"], "--model-path: found small twice"),
    (["--model-path=other=small", "--adapter=small"], "--adapter cannot be combined with several"),
    (["--host=no.such.host.invalid", "--token=a"], "cannot listen there"),
  ],
  ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_flags_end_with_one_line(weights_directory, arguments, expected):
  done = seggpt("serve", "--port=0", "--model-path", weights_directory, *arguments)
  assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_port_that_is_taken(weights_directory):
  with taken() as other:
    done = seggpt("serve", "--model-path", weights_directory, f"--port={other.getsockname()[1]}")
  assert done.returncode == 2 and "cannot listen there: Address already in use" in done.stderr


def test_prompts_beside_a_learned_prompt_end_with_one_line(config, weights_directory, prompts, tmp_path):
  adapter_runs.write_run(tmp_path / "run", LearnedPrompt(), config, weights_directory)
  arguments = ("--port=0", "--model-path", weights_directory, "--adapter", tmp_path / "run", "--prompts", prompts)
  done = seggpt("serve", *arguments)
  assert done.returncode == 2 and done.stderr == (
    "error: --prompts cannot be combined with a learned prompt or a trained head, which serves every query\n"
  )
