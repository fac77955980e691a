"""Converts SegGPT weights between PyTorch and JAX.

  python convert_torch_weights.py seggpt_vit_large.pth weights/vit_large          # PyTorch -> JAX
  python convert_torch_weights.py --to baai run/best finetuned.pth                # back, the original's names
  python convert_torch_weights.py --to hf run/best finetuned_hf                   # back, a transformers directory

INPUT is a .pth/.pt/.bin pickle, a .safetensors file, a Hugging Face model directory, or a weights directory of ours.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from seggpt_jax.errors import InputError, run_main
from seggpt_jax.files import writing
from seggpt_jax.model import torch_files, torch_weights, weights

_TO = flags.DEFINE_enum("to", None, ["baai", "hf"], "Write PyTorch weights in these names instead of JAX weights.")


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise InputError(f"found {len(argv) - 1} arguments, expected INPUT and OUTPUT (--help explains)")
  source, destination = argv[1:]
  if Path(destination).exists():
    raise InputError(f"{destination}: found something there already, expected a path that does not exist")
  with writing(destination):  # before minutes are spent on reading
    Path(destination).absolute().parent.mkdir(parents=True, exist_ok=True)
  if weights.has_weights(source):
    config, unexpected = weights.load_config(source), ()
    params = weights.load_params(source, config)
  else:
    conversion = torch_files.read(source)
    params, config, unexpected = conversion.params, conversion.config, conversion.unexpected
  print(torch_weights.summary(params, unexpected))
  if _TO.value:
    torch_files.write(destination, params, config, _TO.value)
  else:
    weights.save_weights(destination, params, config)
  height, width = config.canvas_size
  print(f"depth {config.depth}, width {config.width}, heads {config.num_heads}, canvas {height} x {width}")
  print(f"written: {destination}")


if __name__ == "__main__":
  run_main(main)
