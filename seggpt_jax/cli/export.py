"""Exports a network as a single file that programs without this package run: ONNX or StableHLO.

  seggpt export small small.onnx --to onnx --prompts 2
  seggpt export weights/vit_large mine.onnx --to onnx --adapter runs/lora --dtype float16
  seggpt export runs/mine mine.stablehlo --to stablehlo

The file predicts the colors of a tile from K prompts, the feature ensemble included; the size of the batch is free.
WEIGHTS is a weights directory, a training run, or a packaged name. docs/export.md says how to use the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from absl import flags

from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.errors import InputError
from seggpt_jax.export import build_onnx, build_stablehlo
from seggpt_jax.files import expand, write_whole
from seggpt_jax.model import weights
from seggpt_jax.model.adapter_files import load_adapted_model, load_lora
from seggpt_jax.model.seggpt import SegGPT, SegType

ARGUMENTS = ("WEIGHTS", "OUTPUT")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network": [
      define_path("adapter", "Training run that learned a LoRA for these weights; it is merged into them."),
      flags.DEFINE_integer("prompts", 1, "Number of prompts that the file takes for every query.", 1, 1000),
      flags.DEFINE_enum("seg_type", "semantic", get_args(SegType), "Whether prompts mark a class or single instances."),
    ],
    "Output": [
      flags.DEFINE_enum("to", None, ["onnx", "stablehlo"], "Format of the file.", required=True),
      flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of stored kernels; arithmetic is float32."),
    ],
  }


def main(source: str, output: str) -> None:
  """Exports weights to a file."""
  weights.check_new(output)
  values = flags.FLAGS
  model = _load(source, values.adapter)
  options = {"dtype": values.dtype, "seg_type": values.seg_type}
  try:
    if values.to == "onnx":
      data = build_onnx(model, values.prompts, **options).SerializeToString()
    else:
      data = build_stablehlo(model, values.prompts, **options)
  except InputError:
    raise
  except ValueError as error:  # a kernel is too large for float16
    raise InputError(f"{source}: {error}") from error
  write_whole(Path(expand(output)), lambda file: file.write(data))
  height, width = model.config.canvas_size
  print(f"{output}: tiles of {height // 2} x {width} pixels, prompts {values.prompts}, {values.dtype}, {values.to}")
  if model.config.backbone:
    print(f"{output}: without the head that `seggpt infer` fits to prompts (--head)")


def _load(source: str, adapter: str | None) -> SegGPT:
  """Loads weights, with a LoRA merged into them."""
  options = {"attention": "folded", "training": False, "scan": False}
  if adapter:
    return load_adapted_model(source, load_lora(adapter), **options)[0]
  model = weights.load_model(source, **options)
  if model.config.head_classes:
    raise InputError(f"{source}: found a trained head, expected a network that answers by example")
  return model
