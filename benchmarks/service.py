"""Loads a service with many clients at once, and checks every answer.

  python -m benchmarks.service                       # two minutes of load, on a machine that is otherwise idle
  python -m benchmarks.service --seconds=10 --clients=4
  python -m benchmarks.service --keep                # writes benchmarks/results/service.json

Starts `seggpt serve` in a process of its own, on loopback. Each client sends its own drawn board again and again, with
prompts that are stored under one name, and compares the answer with that of `Predictor.predict`. One client at a time
comes first, for comparison, in the same run. Malformed requests follow. Memory is that of the process of the service.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
from absl import app, flags
from PIL import Image

from benchmarks import report
from benchmarks.children import ROOT
from seggpt_jax.child_processes import start_command
from seggpt_jax.inference.pictures import encode_png
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.synthetic.boards import BoardSource

_MODEL = flags.DEFINE_string("model", "small", "Weights.")
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at once.", 1, 256)
_SECONDS = flags.DEFINE_float("seconds", 120.0, "Seconds of load.", 1, 3600)
_ALONE = flags.DEFINE_float("alone", 20.0, "Seconds of one client before.", 1, 3600)
_MALFORMED = flags.DEFINE_integer("malformed", 1000, "Malformed requests.", 0, 10**6)
_SIZE = flags.DEFINE_integer("size", 192, "Side of the images in pixels.", 32, 4096)
_KEEP = flags.DEFINE_bool("keep", False, "Write benchmarks/results/service.json.")

_BOUNDARY = b"boundary-of-this-benchmark"
_PACKAGES = ("jax", "fastapi", "starlette", "uvicorn")


class Load(NamedTuple):
  """Holds what a time of load has given.

  Attributes:
    seconds: how long it took.
    latencies: seconds of each answered request.
    refused: requests that were answered with 429, and sent again.
    errors: other answers than a right one, in words.
    memory: memory of the service in MiB, measured every half second.
  """

  seconds: float
  latencies: list[float]
  refused: int
  errors: list[str]
  memory: list[float]

  def row(self) -> dict[str, Any]:
    """Returns what is printed and kept."""
    latencies, half = sorted(self.latencies), len(self.memory) // 2
    return {
      "requests": len(latencies),
      "refused": self.refused,
      "errors": len(self.errors),
      "requests_per_second": len(latencies) / self.seconds,
      "p50_seconds": latencies[len(latencies) // 2],
      "p99_seconds": latencies[int(0.99 * (len(latencies) - 1))],
      "memory_mib": [max(self.memory[:half]), max(self.memory[half:])],
    }


@contextlib.contextmanager
def service(*arguments: str) -> Iterator[tuple[subprocess.Popen, int]]:
  """Starts a service, yields its process and its port, and ends it.

  Raises:
    RuntimeError: it does not start, or does not end with status 0.
  """
  line = ["serve", "--model-path", _MODEL.value, "--port=0", *arguments]
  process = start_command(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  try:
    ready = next((text for text in process.stdout if text.startswith("ready: ")), "")
    if not ready:
      raise RuntimeError(f"the service ended with status {process.wait()}")
    yield process, int(ready.split()[1].rpartition(":")[2])
    process.send_signal(signal.SIGTERM)
    if process.wait(60):
      raise RuntimeError(f"the service ended with status {process.returncode}, expected 0")
  finally:
    process.kill()
    process.wait()


def multipart(parts: Sequence[tuple[str, bytes]]) -> bytes:
  """Returns a body with files."""
  body = b""
  for name, data in parts:
    head = f'Content-Disposition: form-data; name="{name}"; filename="file.png"\r\n\r\n'
    body += b"--" + _BOUNDARY + b"\r\n" + head.encode() + data + b"\r\n"
  return body + b"--" + _BOUNDARY + b"--\r\n"


def ask(
  connection: http.client.HTTPConnection, method: str, path: str, body: bytes, kind: str = ""
) -> tuple[int, bytes]:
  """Sends a request; returns the status and the body of the answer."""
  kind = kind or f"multipart/form-data; boundary={_BOUNDARY.decode()}"
  connection.request(method, path, body, {"Content-Type": kind, "Accept": "image/png"})
  answer = connection.getresponse()
  return answer.status, answer.read()


def run_load(
  process: subprocess.Popen, port: int, bodies: Sequence[bytes], expected: Sequence[np.ndarray], seconds: float
) -> Load:
  """Sends requests from one client for each body, all at once, for some time."""
  latencies, errors, refused, memory = [], [], [], []
  began = time.perf_counter()
  until = began + seconds

  def client(index: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.perf_counter() < until:
      start = time.perf_counter()
      status, content = ask(connection, "POST", "/predict?prompts=boards", bodies[index])
      if status == 429:
        refused.append(1)
        time.sleep(0.2)
        continue
      latencies.append(time.perf_counter() - start)
      if status != 200:
        errors.append(f"client {index}: {status} {content[:200]!r}")
      elif not np.array_equal(np.asarray(Image.open(io.BytesIO(content))), expected[index]):
        errors.append(f"client {index}: another answer than that to its image")

  def guarded(index: int) -> None:
    try:
      client(index)
    except (OSError, http.client.HTTPException) as error:
      errors.append(f"client {index}: {error!r}")

  threads = [threading.Thread(target=guarded, args=(index,)) for index in range(len(bodies))]
  for thread in threads:
    thread.start()
  observed = psutil.Process(process.pid)
  while any(thread.is_alive() for thread in threads):
    memory.append(observed.memory_info().rss / 2**20)
    time.sleep(0.5)
  return Load(time.perf_counter() - began, latencies, len(refused), errors, memory)


def send_malformed(port: int, body: bytes, count: int) -> dict[str, int]:
  """Sends damaged requests; returns how many were answered with each status."""
  generator, statuses = random.Random(0), dict[str, int]()
  kinds = ("", "application/json", "text/plain", "multipart/form-data; boundary=other", "multipart/form-data")
  paths = ("/predict", "/predict?prompts=boards", "/predict?split=x", "/prompts/a", "/prompts/%00", "/nothing")
  for _ in range(count):
    damaged, cut = bytearray(body), generator.randrange(len(body))
    for _ in range(generator.randrange(20)):
      damaged[generator.randrange(min(len(damaged), 400))] = generator.randrange(256)
    data = bytes(damaged[:cut] if generator.random() < 0.5 else damaged + damaged[:cut])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    method = generator.choice(("POST", "POST", "PUT", "DELETE", "GET"))
    status, _ = ask(connection, method, generator.choice(paths), data, generator.choice(kinds))
    connection.close()
    statuses[str(status)] = statuses.get(str(status), 0) + 1
  return dict(sorted(statuses.items()))


def main(_: list[str]) -> None:
  clients = _CLIENTS.value
  source = BoardSource(clients + 2, 0, size=_SIZE.value, scale=3.0, labels="etched")
  samples = [source[index] for index in range(clients + 2)]
  prompts = [(sample["image"], sample["label"]) for sample in samples[:2]]
  images = [sample["image"] for sample in samples[2:]]
  predictor = Predictor.from_checkpoint(_MODEL.value)
  expected = [predictor.predict(image, prompts).labels for image in images]
  bodies = [multipart([("image", encode_png(image))]) for image in images]
  files = [
    part
    for image, labels in prompts
    for part in (("prompt_image", encode_png(image)), ("prompt_label", encode_png(labels)))
  ]
  with service() as (process, port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    status, content = ask(connection, "PUT", "/prompts/boards", multipart(files))
    assert status == 201, content
    run_load(process, port, bodies, expected, 5.0)  # compiles for two prompts
    loads = {
      "one": run_load(process, port, bodies[:1], expected, _ALONE.value),
      "many": run_load(process, port, bodies, expected, _SECONDS.value),
    }
    statuses = send_malformed(port, multipart([("image", encode_png(images[0])), *files]), _MALFORMED.value)
    after = run_load(process, port, bodies, expected, 5.0)
  rows = {name: load.row() for name, load in loads.items()}
  results = {
    "machine": report.machine(_PACKAGES),
    "model": _MODEL.value,
    "clients": clients,
    "different_answers": len({labels.tobytes() for labels in expected}),
    **rows,
    "times_the_throughput_of_one": rows["many"]["requests_per_second"] / rows["one"]["requests_per_second"],
    "malformed": statuses,
    "others": _others(),
  }
  print(json.dumps(results, indent=2))
  problems = [error for load in (*loads.values(), after) for error in load.errors]
  problems += [f"{count} malformed requests: {status}" for status, count in statuses.items() if status >= "500"]
  if problems:
    print(*problems[:10], sep="\n", file=sys.stderr)
    sys.exit(1)
  if _KEEP.value:
    print(f"written: {report.write('service', results)}")


def _others() -> float:
  """Returns the load of the machine over the last minute, for each core; the run itself counts."""
  return os.getloadavg()[0] / (os.cpu_count() or 1)


if __name__ == "__main__":
  app.run(main)
