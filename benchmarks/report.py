"""Writes the results of benchmarks with the machine, the versions and the date."""

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
  """Returns the processor, the number of cores that this process can use, versions of packages, and the date."""
  names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
  return {
    "processor": names[0] if names else platform.processor(),
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
    "date": datetime.date.today().isoformat(),
  }


def device(kind: str) -> str:
  """Returns the name of a device in tables, from its name in JAX or PyTorch."""
  return f"CPU, {len(os.sched_getaffinity(0))} cores" if kind == "cpu" else kind


def _lines(path: str) -> list[str]:
  return Path(path).read_text().splitlines() if Path(path).exists() else []


def write(name: str, results: dict[str, Any]) -> Path:
  """Writes results to benchmarks/results/NAME.json; returns the file."""
  path = RESULTS / f"{name}.json"
  write_whole(path, lambda file: file.write((json.dumps(results, indent=2) + "\n").encode()), replace=True)
  return path


def merge_rows(
  old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], key: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns the old rows in their order, with new rows replacing those of the same key, and then the other new rows."""
  rows = {tuple(row[name] for name in key): row for row in (*old, *new)}
  return list(rows.values())


def is_disturbed(row: dict[str, Any]) -> bool:
  """Returns whether a row was measured on a CPU that other processes used noticeably at the same time."""
  return row["device"].startswith("CPU") and row.get("others", 0.0) > 0.1  # rows of failures have no "others"


def keep_rows(
  name: str, rows: Sequence[dict[str, Any]], key: Sequence[str], device: str, packages: Sequence[str]
) -> bool:
  """Adds rows to the rows of other settings and devices, with the machine of each device's last measurement.

  Rows of a CPU are not written if other processes used it at the same time.

  Args:
    name: name of the results file.
    rows: new rows.
    key: columns that identify a row; a new row replaces an old one of the same key.
    device: name of the device in tables.
    packages: packages whose versions are recorded.

  Returns:
    Whether the rows were written.
  """
  if any(map(is_disturbed, rows)):
    print(f"not kept: other processes took up to {max(row.get('others', 0.0) for row in rows):.0%} of the processors")
    return False
  path = RESULTS / f"{name}.json"
  before = json.loads(path.read_text()) if path.exists() else {"machines": {}, "rows": []}
  machines = {**before["machines"], device: machine(packages)}
  print(f"written: {write(name, {'machines': machines, 'rows': merge_rows(before['rows'], rows, key)})}")
  return True
