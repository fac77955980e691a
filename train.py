"""Trains or fine-tunes a network: `seggpt train`; --help lists the flags."""

from seggpt_jax.cli.main import run

if __name__ == "__main__":
  run("seggpt_jax.cli.train", "python train.py")
