"""How much arithmetic a step is, counted from the architecture, and how much of a chip's peak a run makes use of.

Only matrix products and the convolution are counted, a multiplication and an addition as two operations: that is what
peak rates are about. Norms, softmax, GELU, the loss, decoding and the optimizer are of the order of 1 % at full size.
Not counted either is what does not grow with the batch, such as resizing the position embedding.

Two counts differ on purpose. The model's operations are those of the formula, once forward and twice backward;
utilization is quoted on them, so that it does not rise by doing needless work. What a step executes is more: `remat`
computes some or all of the blocks anew, and the folded attention multiplies with one-hot vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import Remat
from seggpt_jax.training.chips import find_chip


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product `[m, k] x [k, n]`, `count` times for one canvas.

  Attributes:
    name: the part of the network it belongs to.
    count: how often it happens in a forward pass of one canvas.
    m: rows of the first factor and of the result.
    k: length of the sums.
    n: columns of the second factor and of the result.
    in_block: whether it is in a block, which remat="full" computes anew.
    in_attention: whether it is of queries, keys or values, which remat="dots" computes anew.
    needed_again: whether the backward pass asks for its result, which has to be computed anew if it was not kept.
    first: whether nothing that is trained lies before it: then its input needs no gradient.
  """

  name: str
  count: int
  m: int
  k: int
  n: int
  in_block: bool = True
  in_attention: bool = False
  needed_again: bool = True
  first: bool = False

  @property
  def flops(self) -> int:
    return 2 * self.count * self.m * self.k * self.n

  @property
  def elements(self) -> int:
    """Numbers read and written when both factors are read and the result is written once."""
    return self.count * (self.m * self.k + self.k * self.n + self.m * self.n)


def products(config: SegGPTConfig, attention: str = "reference") -> tuple[Product, ...]:
  """Every matrix product of a forward pass of one canvas.

  Args:
    config: the architecture.
    attention: "reference" counts the formula; "folded" what is executed by default, where queries and keys are longer
      by the rows and columns of the grid.

  Returns:
    Products, in the order of the network; the blocks up to the merge count twice, for images and targets.
  """
  (rows, cols), width, heads = config.grid, config.width, config.num_heads
  tokens, pixels = rows * cols, config.patch_size**2
  extra = rows + cols if attention == "folded" else 0
  runs = config.depth + config.merge_block + 1
  dim, taps = config.decoder_dim, len(config.feature_taps)
  return (
    Product("patch embedding", 2, tokens, 3 * pixels, width, in_block=False, first=True),
    Product("query, key, value", runs, tokens, width, 3 * width),
    # Each row of patches has its own table [rows, head_dim], each column likewise.
    Product("relative rows", runs * heads * rows, cols, config.head_dim, rows, in_attention=True),
    Product("relative columns", runs * heads * cols, rows, config.head_dim, cols, in_attention=True),
    Product("scores", runs * heads, tokens, config.head_dim + extra, tokens, in_attention=True),
    Product("weighted values", runs * heads, tokens, tokens, config.head_dim, in_attention=True),
    Product("projection", runs, tokens, width, width),
    Product("MLP widening", runs, tokens, width, config.mlp_dim),
    # Its result is only added to the stream, and a sum's gradient does not ask what was added.
    Product("MLP narrowing", runs, tokens, config.mlp_dim, width, needed_again=False),
    Product("decoder embedding", 1, tokens, width * taps, pixels * dim, in_block=False),
    Product("decoder convolution", 1, tokens * pixels, 9 * dim, dim, in_block=False),
    Product("decoder head", 1, tokens * pixels, dim, 3, in_block=False),
  )


def forward_flops(config: SegGPTConfig, attention: str = "reference") -> int:
  """Floating-point operations of a forward pass of one canvas; arguments as of `products`."""
  return sum(product.flops for product in products(config, attention))


def train_flops(config: SegGPTConfig, attention: str = "reference", remat: Remat = "none") -> int:
  """Floating-point operations of a training step for each canvas of its batch.

  The gradient of a product is two products of the same size, one for each factor.

  Args:
    config: the architecture.
    attention: see `products`.
    remat: what of the blocks is computed anew in the backward pass, as in `SegGPT`.
  """
  return sum(product.flops * _times(product, remat) for product in products(config, attention))


def train_bytes(config: SegGPTConfig, attention: str = "folded", remat: Remat = "none", itemsize: int = 2) -> int:
  """Bytes that the matrix products of a training step move to and from memory for each canvas.

  Every factor is read and every result written once for each product, and all that lies between products is taken to
  happen on the way: less than a real program moves, unless it fuses products (as flash attention does, whose scores
  stay on the chip; "folded" writes and reads them whole). The weights are counted for each canvas, as if each were a
  batch of its own; with several on a device that is too much by a few per cent.

  Args:
    config: the architecture.
    attention: see `products`.
    remat: see `train_flops`.
    itemsize: bytes of a number, 2 for bfloat16.
  """
  return itemsize * sum(product.elements * _times(product, remat) for product in products(config, attention))


def _times(product: Product, remat: Remat) -> int:
  """How many products of its size a training step makes of a forward one."""
  anew = {"none": False, "dots": product.in_attention, "full": product.in_block}[remat]
  return (2 if product.first else 3) + (anew and product.needed_again)


def model_flops_utilization(config: SegGPTConfig, canvases_per_second: float, devices: Sequence[Any]) -> float | None:
  """The share, 0..1, of the devices' peak rate that the model's own operations make up (MFU, arXiv 2204.02311, B).

  Args:
    config: the architecture.
    canvases_per_second: trained on, over all devices, with a gradient for every parameter.
    devices: those that share the step, of `jax.devices()`.

  Returns:
    The utilization of bfloat16's peak, whatever is computed in; None when a device is not in `chips.CHIPS`, as CPUs
    are not.
  """
  chips = [find_chip(device.device_kind) for device in devices]
  if not chips or None in chips:
    return None
  return canvases_per_second * train_flops(config) / sum(chip.flops for chip in chips)
