"""Starts `seggpt inspect`, for scripts that still call `python -m seggpt_jax.data.inspect`."""

import runpy
import sys

if __name__ == "__main__":
  sys.argv[:1] = ["seggpt", "inspect"]
  runpy.run_module("seggpt_jax", run_name="__main__")
