"""Alias: this command is now `seggpt_jax.synthetic.boards`."""

import runpy

if __name__ == "__main__":
  runpy.run_module("seggpt_jax.synthetic.boards", run_name="__main__")
