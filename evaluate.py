"""Runs a public benchmark: `seggpt evaluate`; --help lists the flags."""

from seggpt_jax.cli.main import run

if __name__ == "__main__":
  run("seggpt_jax.cli.evaluate", "python evaluate.py")
