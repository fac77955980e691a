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


def device(kind: str) -> str:
  """A device as tables name it, from what JAX or PyTorch calls it."""
  return f"CPU, {len(os.sched_getaffinity(0))} cores" if kind == "cpu" else kind


def _lines(path: str) -> list[str]:
  return Path(path).read_text().splitlines() if Path(path).exists() else []


def write(name: str, results: dict[str, Any]) -> Path:
  """Keeps results beside the benchmarks, as benchmarks/results/NAME.json."""
  path = RESULTS / f"{name}.json"
  write_whole(path, lambda file: file.write((json.dumps(results, indent=2) + "\n").encode()))
  return path


def merge_rows(
  old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], key: Sequence[str]
) -> list[dict[str, Any]]:
  """Rows with the new ones in place of those that have the same key; others stay, and in their order."""
  rows = {tuple(row[name] for name in key): row for row in (*old, *new)}
  return list(rows.values())


def is_disturbed(row: dict[str, Any]) -> bool:
  """Whether it is of a CPU that others took more of, in some turn, than a quiet machine does by itself."""
  return row["device"].startswith("CPU") and row.get("others", 0.0) > 0.1  # what failed has none


def keep_rows(
  name: str, rows: Sequence[dict[str, Any]], key: Sequence[str], device: str, packages: Sequence[str]
) -> bool:
  """Keeps rows beside those of other settings and devices, with the machine that each device was last measured on.

  On CPUs rows are kept only if nothing else was at work while they were measured; says whether they were.
  """
  if any(map(is_disturbed, rows)):
    print(f"not kept: other processes took up to {max(row.get('others', 0.0) for row in rows):.0%} of the processors")
    return False
  path = RESULTS / f"{name}.json"
  before = json.loads(path.read_text()) if path.exists() else {"machines": {}, "rows": []}
  machines = {**before["machines"], device: machine(packages)}
  print(f"written: {write(name, {'machines': machines, 'rows': merge_rows(before['rows'], rows, key)})}")
  return True
