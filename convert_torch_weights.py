"""Converts weights between PyTorch and JAX: `seggpt convert`; --help lists the flags."""

from seggpt_jax.cli.main import run

if __name__ == "__main__":
  run("seggpt_jax.cli.convert", "python convert_torch_weights.py")
