"""Converts SegGPT weights between PyTorch and JAX.

  seggpt convert seggpt_vit_large.pth weights/vit_large          # PyTorch to JAX
  seggpt convert --to baai runs/mine finetuned.pth               # back, with the names of the original
  seggpt convert --to hf runs/mine finetuned_hf                  # back, as a transformers directory
  seggpt convert --to hf runs/mine mine_hf --push me/scratches   # the same, uploaded to the Hugging Face hub

INPUT is a .pth, .pt or .bin pickle, a .safetensors file, a Hugging Face model directory, or a weights directory or
training run of this package, or hf://OWNER/NAME, a repository on the hub.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from seggpt_jax.cli import model_card
from seggpt_jax.errors import InputError
from seggpt_jax.files import expand, writing
from seggpt_jax.model import hub, torch_files, torch_weights, weights

ARGUMENTS = ("INPUT", "OUTPUT")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  to = flags.DEFINE_enum(
    "to", None, ["baai", "hf"], "Write PyTorch weights instead of JAX weights, named as BAAI or Hugging Face name them."
  )
  push = flags.DEFINE_string(
    "push", "", "Repository OWNER/NAME on the Hugging Face hub that gets OUTPUT and a model card."
  )
  private = flags.DEFINE_bool("private", False, "Create the repository such that only its owner can read it.")
  return {"Output": [to], "Upload": [push, private]}


def main(source: str, destination: str) -> None:
  """Converts one file or directory to another."""
  values = flags.FLAGS
  (weights.check_new if values.to else weights.check_new_weights)(destination)
  if values.private and not values.push:
    raise InputError("--push: not found; --private needs it")
  with writing(destination):  # before minutes are spent on reading
    Path(destination).absolute().parent.mkdir(parents=True, exist_ok=True)
  if weights.has_weights(source):
    config, unexpected = weights.load_config(source), ()
    params = weights.load_params(source, config)
  else:
    conversion = torch_files.read(source)
    params, config, unexpected = conversion.params, conversion.config, conversion.unexpected
  if values.push:  # before anything is written, and not for an input that cannot be read
    hub.create(values.push, private=values.private)
  print(torch_weights.summary(params, unexpected))
  if values.to:
    torch_files.write(destination, params, config, values.to)
  else:
    weights.save_weights(destination, params, config)
  height, width = config.canvas_size
  print(f"depth {config.depth}, width {config.width}, heads {config.num_heads}, canvas {height} x {width}")
  print(f"written: {destination}")
  if values.push:
    output = Path(expand(destination))
    name = f"hf://{values.push}/{output.name}" if output.is_file() else f"hf://{values.push}"
    print(f"uploaded: {hub.upload(values.push, output, model_card.model_card(name, source, params, config))}")
