"""Measures the peak of a device: the fastest of some large matrix products, in JAX and in PyTorch.

Neither library is imported before it is needed; call each function in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from benchmarks import timing


def jax_product(dtype: str) -> tuple[str, float, float]:
  """Measures a large matrix product in JAX.

  Returns:
    The kind of device, operations per second, and the share of the processors that other processes used.
  """
  import jax
  import jax.numpy as jnp

  device = jax.devices()[0]
  size = 4096 if device.platform == "cpu" else 8192
  factor = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
  precision = "highest" if dtype == "float32" else None
  product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
  return device.device_kind, *_best(lambda: product(factor, factor).block_until_ready(), size)


def torch_product(dtype: str) -> tuple[str, float, float]:
  """Measures a large matrix product in PyTorch; returns the same as `jax_product`."""
  import torch

  on_gpu = torch.cuda.is_available()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  size = 8192 if on_gpu else 4096
  factor = torch.randn(size, size, device="cuda" if on_gpu else "cpu", dtype=getattr(torch, dtype))

  def call() -> None:
    factor @ factor
    if on_gpu:
      torch.cuda.synchronize()

  return torch.cuda.get_device_name() if on_gpu else "cpu", *_best(call, size)


def _best(call: Callable[[], Any], size: int) -> tuple[float, float]:
  timing.timed(call, 0.0)  # compiled, and warm
  fastest = min(timing.take_turn(call, 0.1) for _ in range(5))
  return 2 * size**3 / fastest.seconds, fastest.others
