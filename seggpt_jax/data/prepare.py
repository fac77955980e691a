"""Alias: this command is now `seggpt_jax.cli.prepare`."""

import runpy

if __name__ == "__main__":
  runpy.run_module("seggpt_jax.cli.prepare", run_name="__main__")
