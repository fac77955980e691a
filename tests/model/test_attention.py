"""Implementations of attention with relative positions: each must compute the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax.model.attention import blockwise, dispatch, flash, parts
from seggpt_jax.model.config import VARIANTS


def _plain_forward(query, key, value):
  scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32)
  log_sums = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.exp(scores - log_sums[..., None]).astype(value.dtype)
  return jnp.einsum("bnqk,bknd->bqnd", weights, value), log_sums


def _plain_backward(query, key, value, log_sums, output, gradient):
  scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32)
  weights = jnp.exp(scores - log_sums[..., None])
  mean = jnp.swapaxes(jnp.sum((output * gradient).astype(jnp.float32), axis=-1), 1, 2)[..., None]
  of_weights = jnp.einsum("bqnd,bknd->bnqk", gradient, value, preferred_element_type=jnp.float32)
  of_scores, weights = (x.astype(query.dtype) for x in (weights * (of_weights - mean), weights))
  return (
    jnp.einsum("bnqk,bknd->bqnd", of_scores, key),
    jnp.einsum("bnqk,bqnd->bknd", of_scores, query),
    jnp.einsum("bnqk,bqnd->bknd", weights, gradient),
  )


# The kernels for GPUs and TPUs run without these devices, with the same operands: by XLA, and in an interpreter.
ON_ANY_DEVICE = {
  **dispatch.IMPLEMENTATIONS,
  "cudnn": functools.partial(flash.cudnn, implementation="xla"),
  # In 4, 5 and 7 parts.
  "cudnn_parts": functools.partial(parts.cudnn_parts, kernel=parts.Kernel(_plain_forward, _plain_backward), longest=19),
  "splash": functools.partial(flash.splash, interpret=True),
}


def operands(grid, dtype, stored=None, seed=0):
  """Draws operands with which the softmax is far from uniform; relative positions may be stored for another size."""
  generator = np.random.default_rng(seed)
  rows, cols = grid
  stored_rows, stored_cols = stored or grid
  dim = 12

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  return (
    normal(2, rows * cols, 3, 3, dim).astype(dtype),
    0.5 * normal(2 * stored_rows - 1, dim),
    0.5 * normal(2 * stored_cols - 1, dim),
  )


def by_hand(qkv, rel_pos_h, rel_pos_w, grid):
  """Computes the formula of the package's docstring in float64, one query and one key at a time."""
  rows, cols = grid
  qkv, rel_pos_h, rel_pos_w = (np.asarray(a, np.float64) for a in (qkv, rel_pos_h, rel_pos_w))
  query, key, value = np.transpose(qkv, (2, 0, 3, 1, 4))  # each [B, heads, rows * cols, head_dim]
  logits = np.zeros((*query.shape[:3], rows * cols))
  for q in range(rows * cols):
    for k in range(rows * cols):
      distance_h, distance_w = q // cols - k // cols, q % cols - k % cols
      direction = (
        key[:, :, k] * query.shape[-1] ** -0.5 + rel_pos_h[distance_h + rows - 1] + rel_pos_w[distance_w + cols - 1]
      )
      logits[:, :, q, k] = np.sum(query[:, :, q] * direction, axis=-1)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return np.swapaxes(weights / weights.sum(-1, keepdims=True) @ value, 1, 2)


GRIDS = [(8, 4), (5, 3), (7, 1)]


@pytest.mark.parametrize("implementation", ON_ANY_DEVICE)
@pytest.mark.parametrize("grid", GRIDS)
def test_formula(implementation, grid):
  """With a wrong sign, order or scale of the relative positions, released weights are worthless.

  Reference: the formula in float64. Float32, 1e-5.
  """
  args = operands(grid, jnp.float32)
  found = jax.jit(lambda *a: ON_ANY_DEVICE[implementation](*a, grid))(*args)
  np.testing.assert_allclose(found, by_hand(*args, grid), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("implementation", [name for name in ON_ANY_DEVICE if name != "reference"])
@pytest.mark.parametrize(("grid", "stored"), [*((g, None) for g in GRIDS), ((5, 3), (8, 4))])
def test_implementations_agree(implementation, grid, stored, dtype, tolerance):
  """Every implementation trains as the formula does, also on odd grids and with resized tables.

  Reference: `reference`. Tolerance: 1e-5 in float32 and 2e-2 in bfloat16, relative to the norm of the output and of
  each operand's gradient. A grid with one column is an exception: its relative positions shift all logits alike, so
  their gradient is zero except for rounding. That rounding is compared with the norm of the query's gradient.
  """
  args = operands(grid, dtype, stored)
  cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(args[0][:, :, 0].shape), dtype)

  @functools.partial(jax.jit, static_argnums=0)
  def run(implementation):
    output, pullback = jax.vjp(lambda *a: ON_ANY_DEVICE[implementation](*a, grid), *args)
    return output, *pullback(cotangent)

  found, wanted = ([np.asarray(a, np.float64) for a in run(name)] for name in (implementation, "reference"))
  assert [a.shape for a in found] == [cotangent.shape, *(a.shape for a in args)]
  norms = [np.linalg.norm(a) for a in wanted]
  if grid[1] == 1:
    norms[3] = norms[1]
  for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
    assert np.linalg.norm(a - b) < tolerance * norms[index], index


@pytest.mark.parametrize("scores", [1, 5, 7, 100])
def test_blocks_of_any_size_are_the_same(scores, monkeypatch):
  """Blocks of one head, of all heads of a canvas, and of several canvases agree with `reference`: 1e-5 of the norm."""
  grid = (5, 3)
  generator = np.random.default_rng(0)
  qkv = jnp.asarray(generator.standard_normal((6, 15, 3, 4, 12)), jnp.float32)
  tables = operands(grid, jnp.float32)[1:]
  monkeypatch.setattr(blockwise, "_BLOCK_BYTES", scores * 4 * 15**2)

  def run(implementation):
    def both(*operands):
      output, pullback = jax.vjp(lambda *a: implementation(*a, grid), *operands)
      return output, *pullback(jnp.cos(output))

    return jax.jit(both)(qkv, *tables)

  for found, wanted in zip(run(blockwise.blockwise), run(dispatch.reference), strict=True):
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_scores_of_all_heads_are_never_held():
  """A training step would otherwise need 157 MB for the scores of each canvas, forward and backward."""
  config = VARIANTS["vit_large"]
  shapes = (1, 1568, 3, 16, 64), (111, 64), (55, 64)
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

  def temporary(name):
    gradient = jax.grad(lambda *a: jnp.sum(dispatch.IMPLEMENTATIONS[name](*a, config.grid)), argnums=(0, 1, 2))
    return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

  scores = 4 * 16 * 1568**2
  assert temporary("blockwise") < 0.7 * scores < 2 * scores < temporary("folded")


def test_auto_is_the_best_that_compiles_for_the_device(monkeypatch, caplog):
  config, device = VARIANTS["tiny"], jax.devices("cpu")[0]
  assert dispatch.choose("auto", config, jnp.dtype("float32")) == "blockwise"
  assert dispatch.choose("folded", config, jnp.dtype("float32"), device=device) == "folded"
  # cuDNN fails to compile here, as it does on a machine whose library is too old.
  monkeypatch.setitem(dispatch._BEST, "cpu", ("cudnn", "cudnn_parts"))
  assert dispatch.choose("auto", config, jnp.dtype("bfloat16"), device=device) == "folded"
  assert "attention: folded in place of cudnn: " in caplog.text and "; cudnn_parts: " in caplog.text
  with pytest.raises(ValueError, match="attention: found 'flash', expected auto or one of reference, folded"):
    dispatch.choose("flash", config, jnp.dtype("float32"))


def test_keys_are_cut_where_a_gpu_takes_short_heads_only():
  """Released weights: 64 + 56 + 28 = 148 numbers a key, and 64 + 28 + 28 = 120 in halves."""
  config = VARIANTS["vit_large"]
  assert dispatch.cudnn_problem(config, "9.0") is None and dispatch.cudnn_problem(VARIANTS["tiny"], "8.0") is None
  for capability in ("8.0", "8.9", "10.0", "12.0"):
    assert "found heads of 148 numbers" in dispatch.cudnn_problem(config, capability)
  assert parts._num_parts(config.grid, config.head_dim) == 2
  with pytest.raises(NotImplementedError, match=r"found keys of 64 \+ 1 \+ 80 numbers"):
    parts._num_parts((160, 80), 64)


def test_parts_ask_cudnn_for_heads_that_it_takes():
  """The program for a GPU holds one call for each half, forward and backward, and no scores."""
  config = VARIANTS["vit_large"]
  shapes = ((2, 1568, 3, 16, 64), jnp.bfloat16), ((111, 64), jnp.float32), ((55, 64), jnp.float32)
  gradient = jax.grad(lambda *a: jnp.sum(parts.cudnn_parts(*a, config.grid).astype(jnp.float32)), argnums=(0, 1, 2))
  traced = str(jax.jit(gradient).trace(*(jax.ShapeDtypeStruct(*s) for s in shapes)).jaxpr)
  assert traced.count("dot_product_attention_fwd") == traced.count("dot_product_attention_bwd") == 2
  assert "bf16[2,784,16,120]" in traced and "1568,1568" not in traced


@pytest.mark.parametrize("tokens", [130, 1030])
def test_blocks_of_the_tpu_kernel_are_few_and_their_padding_has_no_say(tokens):
  """Reference: `reference`; one and two blocks, partly filled. Float32, 1e-5 of the norm of output and gradients."""
  grid, generator = (tokens // 10, 10), np.random.default_rng(0)
  qkv = jnp.asarray(generator.standard_normal((1, tokens, 3, 1, 12)), jnp.float32)
  tables = [jnp.asarray(0.5 * generator.standard_normal((2 * n - 1, 12)), jnp.float32) for n in grid]

  def run(implementation):
    def both(*operands):
      output, pullback = jax.vjp(lambda *a: implementation(*a, grid), *operands)
      return output, *pullback(jnp.cos(output))

    return jax.jit(both)(qkv, *tables)

  for found, wanted in zip(run(ON_ANY_DEVICE["splash"]), run(dispatch.reference), strict=True):
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_the_tpu_kernel_is_a_program_at_full_size():
  """The kernel compiles for TPUs in bfloat16, forward and backward. Its speed can only be tested on a TPU."""
  config = VARIANTS["vit_large"]
  shapes = ((2, 1568, 3, 16, 64), jnp.bfloat16), ((111, 64), jnp.float32), ((55, 64), jnp.float32)
  gradient = jax.grad(lambda *a: jnp.sum(flash.splash(*a, config.grid).astype(jnp.float32)), argnums=(0, 1, 2))
  exported = jax.export.export(jax.jit(gradient), platforms=["tpu"])(*(jax.ShapeDtypeStruct(*s) for s in shapes))
  assert exported.mlir_module().count("@tpu_custom_call") == 2
