"""Alias: this command is now `seggpt_jax.cli.inspect`."""

import runpy

if __name__ == "__main__":
  runpy.run_module("seggpt_jax.cli.inspect", run_name="__main__")
