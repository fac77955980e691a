"""The benchmark of exports runs each program in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).parents[2]


def row(**changes):
  found = {"device": "CPU, 2 cores", "network": "tiny", "prompts": 1, "batch": 1, "kind": "onnx", "dtype": "float16"}
  found |= {"bytes": 7.1e6, "error": 1.2e-6, "same_labels": 0.99998, "seconds": [0.1, 0.3, 0.2], "ratio": 0.754}
  return found | {"others": 0.0, "memory": 4.1e8, "export_memory": 3.8e8} | changes


def cells(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_the_table():
  assert cells(tables.export_line(row())) == [
    *("tiny", "1", "onnx", "float16", "7 MB", "1e-06", "99.998%", "200 ms", "0.75", "0.4 GB", "0.4 GB")
  ]


def test_times_beside_other_work_are_void():
  found = cells(tables.export_line(row(others=0.5)))
  assert found[7:9] == ["200 ms (void: others took 50% of the processors)", "void"]
  assert found[6] == "99.998%"  # errors do not depend on other work


def test_the_model_was_not_exported():
  found = cells(tables.export_line(row(kind="model", dtype="float32", bytes=None, export_memory=None)))
  assert (found[4], found[9]) == ("", "")


@pytest.mark.slow
def test_each_export_takes_turns_with_the_model():
  options = ["--networks=tiny", "--prompts=1", "--dtypes=float16", "--turns=1", "--nokeep"]
  environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  line = [sys.executable, "-m", "benchmarks.exports", *options]
  done = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
  pattern = r"tiny (\w+) (\w+): error (\S+), labels (\S+)%, \S+ s, (\S+) of the model's, (\S+) GB, export (\S+) GB"
  found = re.findall(pattern, done.stdout)
  assert [each[:2] for each in found] == [("onnx", "float16"), ("stablehlo", "float16"), ("model", "float32")]
  for _, _, error, labels, ratio, memory, export_memory in found[:2]:
    # The kernels are rounded, so a difference of 0 would mean that the model was compared with itself.
    assert 1e-6 < float(error) < 1e-3 and float(labels) > 99.9
    assert float(ratio) > 0 and float(memory) > 0.1 and float(export_memory) > 0.1
  assert float(found[2][2]) == 0
