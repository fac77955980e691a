"""The tables of docs/speed.md: all numbers come from result files, and no run removes another machine's results."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report, tables

ROOT = Path(__file__).parents[2]

MACHINE = {"processor": "P", "cores": 2, "python": "3", "jax": "1", "date": "2026-01-01"}


def row(**changes):
  found = {"device": "CPU, 2 cores", "variant": "tiny", "dtype": "float32", "batch_size": 2, "work": "train"}
  found |= {"side": "transformers eager", "seconds": [0.2, 0.1, 0.4], "others": 0.0, "memory": 5e8}
  return found | {"flops": 2e9, "peak": 1e11, "ratios": {"seggpt_jax": 0.5}, "difference": None} | changes


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_page_holds_what_the_results_say(name):
  page = (tables.DOCS / name).read_text()
  assert tables.fill(page, tables.generate(name, report.RESULTS)) == page


def test_a_row_of_a_compiled_program_says_what_fits():
  found = {"argument_bytes": 10e9, "temporary_bytes": 5e9, "output_bytes": 0, "kernels": 6}
  found |= {"collectives": [["all-gather", 4000000, 4, 1, 2]]}
  found |= {"predicted_seconds": {"compute": 0.2, "memory": 0.1, "network": 0.0}}
  line = tables.chip_line("train:vit_large:v5e:1x4:4:full", found)
  assert line.endswith("| 10 GB | 5 GB | 94% | 6 | 6 MB | 200 ms | compute |")
  assert "**219%, does not fit**" in tables.chip_line(
    "train:vit_large:v5e:1x4:4:full", found | {"argument_bytes": 30e9}
  )
  assert tables.chip_line("train:small:v5e:1x1:4:full", {"error": "status 1"}).count("|") == line.count("|")


def test_a_row_of_the_model_table():
  cells = [cell.strip() for cell in tables.model_line(row(difference=2.4e-6)).strip("|").split("|")]
  assert cells == [
    *("tiny", "float32", "2", "train", "transformers eager", "200 ms", "100 ms .. 400 ms", "10"),
    *("0.01", "10.0%", "0.50 GB", "0.50", "2e-06"),
  ]


def test_a_failure_has_a_row_of_the_same_width():
  failed = {name: row()[name] for name in ("device", "variant", "dtype", "batch_size", "work", "side")}
  line = tables.model_line(failed | {"error": "OutOfMemoryError: a | b"})
  assert "OutOfMemoryError: a / b" in line
  assert line.count("|") == tables.model_line(row()).count("|") == tables.MODEL_HEAD.splitlines()[0].count("|")


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [(1234.5, "1234 s"), (1.5, "1.5 s"), (0.9996, "1000 ms"), (0.0123, "12.3 ms"), (5e-5, "50 µs")],
)
def test_durations(seconds, expected):
  assert tables.duration(seconds) == expected


def test_rows_of_the_same_key_are_replaced_and_others_stay():
  old = [row(), row(device="NVIDIA H200")]
  merged = report.merge_rows(old, [row(memory=7), row(work="forward")], ("device", "work"))
  assert [(one["device"], one["work"], one["memory"]) for one in merged] == [
    ("CPU, 2 cores", "train", 7),
    ("NVIDIA H200", "train", 5e8),
    ("CPU, 2 cores", "forward", 5e8),
  ]


def test_disturbed_rows_are_not_kept_on_a_cpu(tmp_path, monkeypatch):
  monkeypatch.setattr(report, "RESULTS", tmp_path)
  key = ("device", "work")
  report.keep_rows("model", [row(), row(work="forward", others=0.9)], key, "CPU, 2 cores", ["jax"])
  assert not list(tmp_path.iterdir())
  report.keep_rows("model", [row()], key, "CPU, 2 cores", ["jax"])
  report.keep_rows("model", [row(device="NVIDIA H200", others=0.9)], key, "NVIDIA H200", ["jax"])
  made = tables.generate("speed.md", tmp_path)
  assert "void" not in made
  assert "void: others took 90%" in tables.model_line(row(others=0.9))
  assert "| 0.50 |" not in tables.model_line(row(others=0.9))  # the ratio is not reliable
  assert made.index("CPU, 2 cores (") < made.index("NVIDIA H200 (")
  assert made.count("| tiny |") == 2


def test_failures_are_kept_beside_results(tmp_path, monkeypatch):
  monkeypatch.setattr(report, "RESULTS", tmp_path)
  failed = {"device": "CPU, 2 cores", "variant": "tiny", "dtype": "float32", "batch_size": 2, "work": "train"}
  failed |= {"side": "transformers compile", "error": "InvalidCxxCompiler"}
  assert report.keep_rows("model", [row(), failed], ("device", "side"), "CPU, 2 cores", ["jax"])
  assert "InvalidCxxCompiler" in tables.generate("speed.md", tmp_path)


def test_rows_are_grouped_by_device():
  results = {"machines": {"CPU, 2 cores": MACHINE, "NVIDIA H200": MACHINE}, "rows": [row(device="NVIDIA H200"), row()]}
  made = tables.model_tables(results)
  assert made.index("CPU, 2 cores (P") < made.index("| tiny |") < made.index("NVIDIA H200 (P")


@pytest.mark.slow  # .ci/run runs it
def test_the_model_is_measured_beside_transformers():
  options = ["--variants=tiny", "--batch_sizes=1", "--rounds=1", "--ways=eager", "--work=forward"]
  line = [sys.executable, "-m", "benchmarks.model", *options, "--least_seconds=0"]
  environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
  rows = [line for line in done.stdout.splitlines() if line.startswith("| tiny |")]
  assert [re.split(r" *\| *", line)[5] for line in rows] == ["seggpt_jax", "transformers eager"]
  differs = re.split(r" *\| *", rows[1])[13]
  assert float(differs) < 1e-4
