"""The ways to compute attention with relative positions: each must be the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax.model import attention


def operands(grid, dtype, stored=None, seed=0):
  """Random operands, scaled so that the softmax is far from uniform; relative positions may be of another size."""
  generator = np.random.default_rng(seed)
  rows, cols = grid
  stored_rows, stored_cols = stored or grid
  dim = 12

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  return normal(2, rows * cols, 3, 3, dim).astype(dtype), 0.5 * normal(2 * stored_rows - 1, dim), 0.5 * normal(2 * stored_cols - 1, dim)


def by_hand(qkv, rel_pos_h, rel_pos_w, grid):
  """The formula of the module's docstring, one query and one key at a time, in float64."""
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


@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS)
@pytest.mark.parametrize("grid", GRIDS)
def test_formula(implementation, grid):
  """Sign, order and scale of the relative positions: swap one and every released weight is worthless.

  Reference: the formula by hand in float64. Float32, 1e-5.
  """
  args = operands(grid, jnp.float32)
  found = attention.IMPLEMENTATIONS[implementation](*args, grid)
  np.testing.assert_allclose(found, by_hand(*args, grid), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("implementation", [name for name in attention.IMPLEMENTATIONS if name != "reference"])
@pytest.mark.parametrize(("grid", "stored"), [*((g, None) for g in GRIDS), ((5, 3), (8, 4))])
def test_implementations_agree(implementation, grid, stored, dtype, tolerance):
  """The fast attention trains as the formula does, on odd grids and resized tables too.

  Reference: `reference`. Relative to the norm of the output and of each operand's gradient: 1e-5 in float32, 2e-2 in
  bfloat16. Except with one column: its relative positions shift all logits alike, and their gradient is zero but for
  rounding, which is held to the same share of the query's gradient, where it stems from.
  """
  args = operands(grid, dtype, stored)
  cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(args[0][:, :, 0].shape), dtype)

  @functools.partial(jax.jit, static_argnums=0)
  def run(implementation):
    output, pullback = jax.vjp(lambda *a: attention.IMPLEMENTATIONS[implementation](*a, grid), *args)
    return output, *pullback(cotangent)

  found, wanted = ([np.asarray(a, np.float64) for a in run(name)] for name in (implementation, "reference"))
  assert [a.shape for a in found] == [cotangent.shape, *(a.shape for a in args)]
  norms = [np.linalg.norm(a) for a in wanted]
  if grid[1] == 1:
    norms[3] = norms[1]
  for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
    assert np.linalg.norm(a - b) < tolerance * norms[index], index
