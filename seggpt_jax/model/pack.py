"""Alias: `python -m seggpt_jax.model.pack` is now `python -m seggpt_jax.cli.pack`."""

import sys

from seggpt_jax.cli.main import run

if __name__ == "__main__":
  print("note: `python -m seggpt_jax.model.pack` is now `python -m seggpt_jax.cli.pack`", file=sys.stderr)
  run("seggpt_jax.cli.pack", "python -m seggpt_jax.cli.pack")
