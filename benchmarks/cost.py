"""Counts the operations of a step from the architecture, and the share of a chip's peak rate that a run uses.

Only matrix products and the convolution are counted, as peak rates are given for them: a multiplication and an addition
are two operations. Norms, softmax, GELU, the loss, decoding and the optimizer are about 1 % at full size. Work that
does not grow with the batch, such as resizing the position embedding, is not counted.

There are two counts. The operations of the model are those of the formula, once forward and twice backward; utilization
is based on them, so that needless work does not raise it. A step executes more: `remat` recomputes some or all of the
blocks, and the folded attention multiplies with one-hot vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.peaks import find_chip
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import Remat


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product `[m, k] x [k, n]`, `count` times for one canvas.

  Attributes:
    name: part of the network.
    count: number of these products in a forward pass of one canvas.
    m: rows of the first factor and of the result.
    k: columns of the first factor and rows of the second.
    n: columns of the second factor and of the result.
    in_block: whether it is part of a block, which remat="full" recomputes.
    in_attention: whether it has queries, keys or values as factors; remat="dots" recomputes these products.
    needed_again: whether the backward pass needs the result and has to recompute it if it was not kept.
    first: whether no trained parameter comes before it; then its input needs no gradient.
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
    """Floating-point operations of all these products."""
    return 2 * self.count * self.m * self.k * self.n

  @property
  def elements(self) -> int:
    """Numbers read and written if every product reads its factors once and writes its result once."""
    return self.count * (self.m * self.k + self.k * self.n + self.m * self.n)


def products(config: SegGPTConfig, attention: str = "reference") -> tuple[Product, ...]:
  """Returns every matrix product of a forward pass of one canvas, in the order of the network.

  The blocks up to the merge count twice, for images and targets.

  Args:
    config: architecture of the network.
    attention: "reference" counts the formula; "folded" counts the default implementation, where queries and keys are
      longer by the rows and columns of the grid.
  """
  (rows, cols), width, heads = config.grid, config.width, config.num_heads
  tokens, pixels = rows * cols, config.patch_size**2
  extra = rows + cols if attention == "folded" else 0
  runs = config.depth + config.merge_block + 1
  dim, taps = config.decoder_dim, len(config.feature_taps)
  return (
    Product("patch embedding", 2, tokens, 3 * pixels, width, in_block=False, first=True),
    Product("query, key, value", runs, tokens, width, 3 * width),
    # Each row of patches has its own table [rows, head_dim], and each column one of [columns, head_dim].
    Product("relative rows", runs * heads * rows, cols, config.head_dim, rows, in_attention=True),
    Product("relative columns", runs * heads * cols, rows, config.head_dim, cols, in_attention=True),
    Product("scores", runs * heads, tokens, config.head_dim + extra, tokens, in_attention=True),
    Product("weighted values", runs * heads, tokens, tokens, config.head_dim, in_attention=True),
    Product("projection", runs, tokens, width, width),
    Product("MLP widening", runs, tokens, width, config.mlp_dim),
    # Its result is only added to the residual stream, and the gradient of a sum does not need the summands.
    Product("MLP narrowing", runs, tokens, config.mlp_dim, width, needed_again=False),
    Product("decoder embedding", 1, tokens, width * taps, pixels * dim, in_block=False),
    Product("decoder convolution", 1, tokens * pixels, 9 * dim, dim, in_block=False),
    Product("decoder head", 1, tokens * pixels, dim, 3, in_block=False),
  )


def forward_flops(config: SegGPTConfig, attention: str = "reference") -> int:
  """Returns the floating-point operations of a forward pass of one canvas; `products` explains the arguments."""
  return sum(product.flops for product in products(config, attention))


def train_flops(config: SegGPTConfig, attention: str = "reference", remat: Remat = "none") -> int:
  """Returns the floating-point operations of a training step for each canvas of its batch.

  The gradient of a product takes two products of the same size, one for each factor.

  Args:
    config: architecture of the network.
    attention: "reference" or "folded", see `products`.
    remat: parts of the blocks that the backward pass recomputes, as in `SegGPT`.
  """
  return sum(product.flops * times_in_training(product, remat) for product in products(config, attention))


def times_in_training(product: Product, remat: Remat) -> int:
  """Returns how many products of this size a training step computes for one of the forward pass."""
  recomputed = {"none": False, "dots": product.in_attention, "full": product.in_block}[remat]
  return (2 if product.first else 3) + (recomputed and product.needed_again)


def model_flops_utilization(config: SegGPTConfig, canvases_per_second: float, devices: Sequence[Any]) -> float | None:
  """Returns the share, 0..1, of the devices' peak rate that the model's operations use (MFU, arXiv 2204.02311, B).

  Args:
    config: architecture of the network.
    canvases_per_second: canvases trained on, over all devices, with a gradient for every parameter.
    devices: devices that share a step, from `jax.devices()`.

  Returns:
    The share of the bfloat16 peak, in any number format; None when a device is not in `peaks.CHIPS`, such as a CPU.
  """
  chips = [find_chip(device.device_kind) for device in devices]
  if not chips or None in chips:
    return None
  return canvases_per_second * train_flops(config) / sum(chip.flops for chip in chips)
