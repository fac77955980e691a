"""Alias: this command is now `seggpt_jax.cli.retrieve`."""

import runpy

if __name__ == "__main__":
  runpy.run_module("seggpt_jax.cli.retrieve", run_name="__main__")
