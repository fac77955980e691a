"""Segments images and videos by example: `seggpt infer`; --help lists the flags."""

from seggpt_jax.cli.main import run

if __name__ == "__main__":
  run("seggpt_jax.cli.infer", "python infer.py")
