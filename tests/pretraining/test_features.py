"""ImageNet features equal PyTorch's, with small random weights under the names of the PyTorch package."""

import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from pretraining import features
from seggpt_jax import canvas
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.imagenet import STAGES, STEM, STRIDES


def random_weights(generator):
  """Returns weights of all layers up to stride 16, with batch normalization that is not the identity."""
  weights = {}

  def layer(name, shape, norm):
    weights[f"{name}.weight"] = generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
    for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5)):
      weights[f"{norm}.{part}"] = generator.uniform(low, high, shape[0]).astype(np.float32)
    weights[f"{norm}.running_var"] = generator.uniform(0.5, 2.0, shape[0]).astype(np.float32)

  layer("_conv_stem", (STEM, 3, 3, 3), "_bn0")
  index, channels = 0, STEM
  for stage in STAGES:
    for _ in range(stage.repeats):
      block, wide = f"_blocks.{index}", channels * stage.expand
      if stage.expand > 1:
        layer(f"{block}._expand_conv", (wide, channels, 1, 1), f"{block}._bn0")
      layer(f"{block}._depthwise_conv", (wide, 1, stage.kernel, stage.kernel), f"{block}._bn1")
      layer(f"{block}._project_conv", (stage.channels, wide, 1, 1), f"{block}._bn2")
      index, channels = index + 1, stage.channels
  return weights


def torch_features(weights, x):
  """Runs EfficientNet-Lite0 as its PyTorch package does: TensorFlow's SAME padding, batch normalization, ReLU6."""
  weights = {name: torch.from_numpy(value) for name, value in weights.items()}

  def convolve(x, name, norm, stride=1, groups=1):
    kernel = weights[f"{name}.weight"]
    pads = []
    for side in (x.shape[3], x.shape[2]):
      total = max((-(-side // stride) - 1) * stride + kernel.shape[2] - side, 0)
      pads += [total // 2, total - total // 2]
    x = functional.conv2d(functional.pad(x, pads), kernel, None, stride, groups=groups)
    parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, *parts, training=False, eps=1e-3)

  x = functional.relu6(convolve(x, "_conv_stem", "_bn0", 2))
  index, outputs = 0, []
  for stage in STAGES:
    for repeat in range(stage.repeats):
      block, y = f"_blocks.{index}", x
      if stage.expand > 1:
        y = functional.relu6(convolve(y, f"{block}._expand_conv", f"{block}._bn0"))
      stride = stage.stride if repeat == 0 else 1
      y = functional.relu6(convolve(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, y.shape[1]))
      y = convolve(y, f"{block}._project_conv", f"{block}._bn2")
      x = x + y if repeat else y
      index += 1
    outputs.append(x)
  return {stride: outputs[stage].numpy().transpose(0, 2, 3, 1) for stride, stage in STRIDES.items()}


def test_features_equal_pytorchs_to_1e_4():
  generator = np.random.default_rng(0)
  weights = random_weights(generator)
  graph, initial = parameters.split(parameters.network(VARIANTS["small"]))
  params = {f"features.{name}": jnp.asarray(value) for name, value in features.convert(weights).items()}
  expected = {name: value.shape for name, value in initial.items() if name.startswith("features.")}
  assert {name: value.shape for name, value in params.items()} == expected
  pixels = generator.integers(0, 256, (2, 48, 64, 3)).astype(np.float32)
  ours = parameters.merge(graph, initial | params).features(canvas.normalize(pixels))
  theirs = torch_features(weights, torch.from_numpy((pixels / 127.5 - 1).transpose(0, 3, 1, 2)))
  assert ours.keys() == theirs.keys() == {2, 4, 8, 16}
  for stride, value in theirs.items():
    np.testing.assert_allclose(ours[stride], value, atol=1e-4 * np.abs(value).max())
