"""Implementations of attention with relative positions: each must compute the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax.model.attention import blockwise, dense, dispatch, flash
from seggpt_jax.model.config import VARIANTS

# The kernels for GPUs and TPUs run without these devices, with the same operands: by XLA, and in an interpreter.
ON_ANY_DEVICE = {
  **dispatch.IMPLEMENTATIONS,
  "cudnn": functools.partial(flash.cudnn, implementation="xla"),
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
  found = ON_ANY_DEVICE[implementation](*args, grid)
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
    output, pullback = jax.vjp(lambda *a: implementation(*a, grid), qkv, *tables)
    return output, *pullback(jnp.cos(output))

  for found, wanted in zip(run(blockwise.blockwise), run(dense.reference), strict=True):
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


def test_auto_is_the_best_that_compiles(monkeypatch, caplog):
  config = VARIANTS["tiny"]
  assert dispatch.choose("auto", config, jnp.dtype("float32")) == "blockwise"
  assert dispatch.choose("folded", config, jnp.dtype("float32")) == "folded"
  # cuDNN fails to compile here, as it does on a machine whose library is too old.
  monkeypatch.setattr(dispatch.jax, "default_backend", lambda: "gpu")
  assert dispatch.choose("auto", config, jnp.dtype("bfloat16")) == "folded"
  assert "attention: folded in place of cudnn: " in caplog.text
  with pytest.raises(ValueError, match="attention: found 'flash', expected auto or one of reference, folded"):
    dispatch.choose("flash", config, jnp.dtype("float32"))


def test_the_tpu_kernel_is_a_program_at_full_size():
  """The kernel compiles for TPUs in bfloat16, forward and backward. Its speed can only be tested on a TPU."""
  config = VARIANTS["vit_large"]
  shapes = ((2, 1568, 3, 16, 64), jnp.bfloat16), ((111, 64), jnp.float32), ((55, 64), jnp.float32)
  gradient = jax.grad(lambda *a: jnp.sum(flash.splash(*a, config.grid).astype(jnp.float32)), argnums=(0, 1, 2))
  exported = jax.export.export(jax.jit(gradient), platforms=["tpu"])(*(jax.ShapeDtypeStruct(*s) for s in shapes))
  assert exported.mlir_module().count("@tpu_custom_call") == 2
