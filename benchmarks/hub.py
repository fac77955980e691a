"""Measures weights by their name on the Hugging Face hub: the first start, a killed download, later starts, no network.

  python -m benchmarks.hub --variant=vit_large

A server on this machine speaks the hub's protocol (hub_server.py). Each start is a process of its own that loads the
weights: seconds until the model is there, and the megabytes that the server sent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from flax import nnx

from benchmarks import report
from benchmarks.hub_server import serve
from seggpt_jax.model import parameters, torch_files
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.seggpt import SegGPT

_VARIANT = flags.DEFINE_enum("variant", "vit_large", list(VARIANTS), "Network, with random parameters.")
_KEEP = flags.DEFINE_bool("keep", True, "Write benchmarks/results/hub.json.")

_NAME, _FILE = "someone/seggpt", "model.safetensors"
_LOAD = "import sys, seggpt_jax; seggpt_jax.load_model(sys.argv[1])"
_PIECE = 10 * 1024 * 1024  # bytes that huggingface_hub writes at once, so that a kill loses no more
_MISSING = "import sys; from seggpt_jax.model import weights; weights.find_weights(sys.argv[1])"


def start(code: str, home: Path, address: str, **environment: str) -> subprocess.Popen:
  """Starts a process that loads the weights."""
  hub = {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(
    [sys.executable, "-c", code, f"hf://{_NAME}"],
    env={**os.environ, **hub, **environment},
    stderr=subprocess.PIPE,
    text=True,
  )


def unfinished(home: Path) -> int:
  """Returns the bytes of the largest file that is being downloaded."""
  return max((path.stat().st_size for path in home.glob("seggpt_jax/*/downloads/**/*.incomplete")), default=-1)


def sent(requests: list[str]) -> float:
  """Returns the megabytes that the server has sent of the weights."""
  return sum(int(line.split()[1]) for line in requests if line.startswith("sends ") and line.endswith(_FILE)) / 1e6


def measure(what: str, home: Path, address: str, requests: list[str], **environment: str) -> dict[str, Any]:
  """Loads the weights once; returns a table row."""
  before, began = sent(requests), time.perf_counter()
  process = start(_LOAD, home, address, **environment)
  _, errors = process.communicate()
  if process.returncode:
    raise RuntimeError(errors[-2000:])
  warnings = [line for line in errors.splitlines() if "hub does not answer" in line]
  row = {"start": what, "seconds": time.perf_counter() - began, "megabytes": sent(requests) - before}
  print({**row, "message": (warnings or [""])[0]}, flush=True)
  return row


def refusal(home: Path, address: str, environment: Mapping[str, str]) -> str:
  """Returns the message of a start that finds nothing and may not ask."""
  _, errors = start(_MISSING, home, address, **environment).communicate()
  return errors.strip().splitlines()[-1].rpartition("InputError: ")[2]


def main(argv: list[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    config = VARIANTS[_VARIANT.value]
    params = parameters.split(SegGPT(config, rngs=nnx.Rngs(0)))[1]
    torch_files.write(folder / "hf", dict(params), config, "hf")
    del params
    size = (folder / "hf" / _FILE).stat().st_size
    rows = []
    with serve({_NAME: folder / "hf"}, stall={_FILE: size // 2}) as (address, requests):
      piece = min(_PIECE, size // 20)
      small_pieces = f"from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = {piece}; "
      killed = start(small_pieces + _LOAD, folder / "killed", address)
      while unfinished(folder / "killed") < size // 2 - 2 * piece:  # what came last may be in buffers
        time.sleep(0.1)
      killed.kill()
      killed.wait()
      rows.append(measure("killed half-way and restarted", folder / "killed", address, requests))
      shutil.rmtree(folder / "killed")
      rows.append(measure("the first", folder / "home", address, requests))
      rows.append(measure("the second", folder / "home", address, requests))
    rows.append(measure("without a network", folder / "home", address, requests))
    rows.append(measure("HF_HUB_OFFLINE=1", folder / "home", address, requests, HF_HUB_OFFLINE="1"))
    messages = [refusal(folder / "empty", address, each) for each in ({}, {"HF_HUB_OFFLINE": "1"})]
  print(*messages, sep="\n")
  if _KEEP.value:
    content = {"variant": _VARIANT.value, "megabytes": size / 1e6, "rows": rows}
    report.write("hub", {"machine": report.machine(["jax", "huggingface_hub", "orbax-checkpoint"]), **content})


if __name__ == "__main__":
  app.run(main)
