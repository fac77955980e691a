"""Segments circuit boards before and after fine-tuning: `seggpt demo`; --help lists the flags."""

from seggpt_jax.cli.main import run

if __name__ == "__main__":
  run("seggpt_jax.cli.demo", "python demo.py")
