"""Runs `seggpt export` and prints the peak memory of the process, as JSON.

python -m benchmarks.exported drawn drawn.onnx --to=onnx --prompts=2
"""

from __future__ import annotations

import json
import sys

from benchmarks.side_process import high_water_mark
from seggpt_jax.cli.main import main

if __name__ == "__main__":
  try:
    main(["export", *sys.argv[1:]])
  except SystemExit as done:
    if done.code:
      raise
  print(json.dumps({"memory": high_water_mark()}))
