"""What every benchmark says beside its numbers: on what machine, with which versions, when."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.files import write_whole

RESULTS = Path(__file__).parent / "results"


def machine(packages: Sequence[str]) -> dict[str, Any]:
  """Processor, cores this process may use, and versions."""
  names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
  return {
    "processor": names[0] if names else platform.processor(),
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
    "date": datetime.date.today().isoformat(),
  }


def _lines(path: str) -> list[str]:
  return Path(path).read_text().splitlines() if Path(path).exists() else []


def write(name: str, results: dict[str, Any]) -> Path:
  """Keeps results beside the benchmarks, as benchmarks/results/NAME.json."""
  path = RESULTS / f"{name}.json"
  write_whole(path, lambda file: file.write((json.dumps(results, indent=2) + "\n").encode()))
  return path
