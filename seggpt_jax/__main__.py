"""Lets `python -m seggpt_jax train` run where the `seggpt` command is not installed."""

from seggpt_jax.cli.main import main

if __name__ == "__main__":
  main()
