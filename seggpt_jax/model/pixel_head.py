"""A head that is trained on one task's labels: frozen ImageNet features in, the classes of pixels out, without prompts.

In: feature maps of strides 2 to 16 of `Matcher.pixel_features`. Out: logits of the classes at stride 2. It is a decoder
as in U-Net (arXiv 1505.04597): from coarse to fine, each level adds what the finer features know. At stride 2 it has no
3x3 convolution, which there would take more time than everything else.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seggpt_jax import canvas
from seggpt_jax.model.imagenet import CHANNELS
from seggpt_jax.model.layers import Conv3x3, Linear

WIDTHS = {16: 96, 8: 64, 4: 48, 2: 24}  # channels by stride
_CONVOLUTIONS = {16: 2, 8: 1, 4: 2, 2: 0}
PIXELS = 12  # channels of an image at stride 2: the colors of 2 x 2 pixels
_MOST = 6.0  # standard deviations; rare larger features are clipped
_BACKGROUND = 3.0  # logit at the start: most pixels are background


class PixelHead(nnx.Module):
  """Tells the classes of pixels from frozen features."""

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
