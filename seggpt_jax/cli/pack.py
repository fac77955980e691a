"""Takes the weights of a training run into the package, where `load_model(NAME)` finds them.

python -m seggpt_jax.model.pack RUN small
"""

from __future__ import annotations

from seggpt_jax.errors import InputError, run_main
from seggpt_jax.model import packaged, weights


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise InputError(f"found {len(argv) - 1} arguments, expected two: RUN_OR_WEIGHTS NAME")
  _, source, name = argv
  config = weights.load_config(source)
  path = packaged.path_of(name)
  packaged.write(path, weights.load_params(source, config), config)
  print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
  run_main(main)
