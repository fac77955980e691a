"""Alias: `python -m seggpt_jax.data.boards` is now `seggpt boards`."""

from seggpt_jax.cli.main import run_alias

if __name__ == "__main__":
  run_alias("seggpt_jax.data.boards", "boards")
