"""A utilization is only as good as the count of operations: checked against the compiler's own count."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from benchmarks import cost
from benchmarks.peaks import find_chip
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS

BATCH = 4


def counted(config, attention, kind):
  """Returns XLA's count for the lowered program, divided by the number of canvases."""
  graph, params = parameters.abstract(config, attention=attention, remat="none" if kind == "forward" else kind)
  height, width = config.canvas_size
  canvases = jax.ShapeDtypeStruct((BATCH, height, width, 3), jnp.float32)
  mask = jax.ShapeDtypeStruct((BATCH, *config.grid), jnp.bool_)

  def forward(params, canvases, mask):
    return jnp.sum(parameters.merge(graph, params)(canvases, canvases, mask))

  function = forward if kind == "forward" else jax.grad(forward)
  return jax.jit(function).lower(params, canvases, mask).cost_analysis()["flops"] / BATCH


@pytest.mark.parametrize("kind", ["forward", "none", "dots", "full"])
@pytest.mark.parametrize("attention", ["reference", "folded"])
@pytest.mark.parametrize("variant", ["tiny", "drawn"])
def test_the_count_is_the_compilers(variant, attention, kind):
  """XLA also counts other operations, about 2 % in such narrow networks, so our count is never the larger."""
  config = VARIANTS[variant]
  ours = cost.forward_flops(config, attention) if kind == "forward" else cost.train_flops(config, attention, kind)
  assert 0.97 < ours / counted(config, attention, kind) <= 1.0


def test_the_released_network_takes_1_6_teraflop_a_canvas():
  config = VARIANTS["vit_large"]
  assert cost.forward_flops(config) == pytest.approx(1.6e12, rel=0.01)
  assert cost.train_flops(config) == pytest.approx(3 * cost.forward_flops(config), rel=0.01)
  assert cost.forward_flops(config, "folded") > cost.forward_flops(config)
  # remat recomputes all products of the blocks except the last one of each MLP.
  again = cost.train_flops(config, remat="full") - cost.train_flops(config)
  assert 0.6 < again / cost.forward_flops(config) < 0.7


def test_blocks_before_the_merge_count_twice():
  early = dataclasses.replace(VARIANTS["tiny"], merge_block=0)
  late = dataclasses.replace(VARIANTS["tiny"], merge_block=1)
  blocks = sum(p.flops for p in cost.products(early) if p.in_block) / (early.depth + 1)
  assert cost.forward_flops(late) - cost.forward_flops(early) == pytest.approx(blocks)


def test_utilization_is_of_the_model_and_of_all_devices():
  """The utilization is 1 at the peak of one H200, and 0.5 when two of them give the same rate."""
  config = VARIANTS["vit_large"]
  h200 = types.SimpleNamespace(device_kind="NVIDIA H200")
  rate = 989e12 / cost.train_flops(config)
  assert cost.model_flops_utilization(config, rate, [h200]) == pytest.approx(1.0)
  assert cost.model_flops_utilization(config, rate, [h200] * 2) == pytest.approx(0.5)


def test_nothing_is_said_about_chips_that_are_not_known():
  assert cost.model_flops_utilization(VARIANTS["tiny"], 8.0, jax.devices()) is None
  for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "TPU v4 lite", "TPU v3"):
    assert find_chip(kind) is None, kind


@pytest.mark.parametrize(
  ("kind", "name"),
  [("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e"), ("NVIDIA H100 80GB HBM3", "H100")],
)
def test_chips_are_found_by_the_names_jax_has(kind, name):
  assert find_chip(kind).name == name
