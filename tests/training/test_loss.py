"""The loss: if it is off, fine-tuning optimizes something else than the release did."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from seggpt_jax.training.loss import masked_smooth_l1


def batch(seed=0):
  """Errors of all sizes around beta, 2 canvases of 4 x 2 patches of 4 pixels."""
  generator = np.random.default_rng(seed)
  targets = generator.standard_normal((2, 16, 8, 3)).astype(np.float32)
  errors = generator.standard_normal((2, 16, 8, 3)) * 10.0 ** generator.integers(-4, 1, (2, 16, 8, 3))
  return (
    jnp.asarray(targets + errors, jnp.float32),
    jnp.asarray(targets),
    jnp.asarray(generator.random((2, 4, 2)) < 0.5),
  )


def test_equals_pytorch_over_the_pixels_that_count():
  """Reference: torch smooth_l1_loss, beta 0.01, averaged over the selected values. Float32, 1e-6 of itself."""
  colors, targets, patch_mask = batch()
  hidden = np.asarray(patch_mask).repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
  per_value = torch.nn.functional.smooth_l1_loss(
    torch.tensor(np.asarray(colors)), torch.tensor(np.asarray(targets)), beta=0.01, reduction="none"
  ).numpy()
  valid_pixels = np.random.default_rng(1).random((2, 16, 8)) < 0.7
  valid_values = np.random.default_rng(2).random((2, 16, 8, 3)) < 0.7
  for valid, counts in (
    (None, hidden),
    (valid_pixels, hidden & valid_pixels[..., None]),
    (valid_values, hidden & valid_values),
  ):
    wanted = per_value[counts].astype(np.float64).mean()
    for dtype in (jnp.bool_, jnp.float32):
      found = masked_smooth_l1(colors, targets, patch_mask, None if valid is None else jnp.asarray(valid, dtype))
      np.testing.assert_allclose(found, wanted, rtol=1e-6)
      assert (found.shape, found.dtype) == ((), jnp.float32)


def test_nothing_to_score_is_zero():
  """A batch without a single valid pixel leaves the parameters alone instead of turning them into NaN."""
  colors, targets, patch_mask = batch()
  valid = jnp.zeros((2, 16, 8), bool)
  loss, gradient = jax.value_and_grad(masked_smooth_l1)(colors, targets, patch_mask, valid)
  assert loss == 0.0
  np.testing.assert_array_equal(gradient, 0.0)


def test_bfloat16_colors_are_summed_in_float32():
  """Reference: the float32 loss of the same rounded colors, bit for bit: no precision is lost in the sum."""
  colors, targets, patch_mask = batch()
  rounded = colors.astype(jnp.bfloat16)
  wanted = masked_smooth_l1(rounded.astype(jnp.float32), targets, patch_mask)
  np.testing.assert_array_equal(masked_smooth_l1(rounded, targets, patch_mask), wanted)
