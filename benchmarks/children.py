"""Runs benchmark modules in processes of their own, where memory or the number of devices must be fresh."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_module(name: str, *arguments: str) -> dict[str, Any]:
  """Runs `python -m benchmarks.NAME` and returns the JSON in the last line of its output.

  Raises:
    subprocess.CalledProcessError: the process ended with another status than 0.
  """
  line = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
  done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])
