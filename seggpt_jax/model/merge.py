"""Alias: `python -m seggpt_jax.model.merge` is now `seggpt merge`."""

from seggpt_jax.cli.main import run_alias

if __name__ == "__main__":
  run_alias("seggpt_jax.model.merge", "merge")
