"""Alias: `python -m seggpt_jax.inference.retrieval` is now `seggpt retrieve`."""

from seggpt_jax.cli.main import run_alias

if __name__ == "__main__":
  run_alias("seggpt_jax.inference.retrieval", "retrieve")
