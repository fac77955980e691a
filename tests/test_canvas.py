"""Canvas geometry: a mistake here trains on masks that do not match the patches."""

import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax import canvas


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 0.999, 1.0])
@pytest.mark.parametrize("grid", [(56, 28), (7, 3)])
def test_random_patch_mask_hides_exactly_its_share(grid, ratio):
  for seed in range(5):
    mask = canvas.random_patch_mask(np.random.default_rng(seed), grid, ratio)
    assert mask.shape == grid and mask.sum() == round(ratio * grid[0] * grid[1])


def test_random_patch_mask_is_uniform_over_patches():
  generator = np.random.default_rng(0)
  mean = np.mean([canvas.random_patch_mask(generator, (8, 4), 0.75) for _ in range(4000)], axis=0)
  # The standard deviation of each mean is 0.0068: five of them.
  np.testing.assert_allclose(mean, 0.75, atol=0.035)


def test_lower_half_mask_hides_the_query_and_shows_the_prompt():
  mask = canvas.lower_half_mask((6, 3))
  assert not mask[:3].any() and mask[3:].all()


def test_patchify_lays_patches_out_row_by_row_with_channels_last():
  pixels = np.random.default_rng(0).standard_normal((2, 12, 8, 3)).astype(np.float32)
  patches = canvas.patchify(jnp.asarray(pixels), 4)
  np.testing.assert_array_equal(patches[1, 2, 1].reshape(4, 4, 3), pixels[1, 8:12, 4:8])
  np.testing.assert_array_equal(canvas.unpatchify(patches, 4), pixels)


def test_upsample_mask_covers_the_pixels_of_each_patch():
  mask = np.array([[[True, False], [False, True]]])
  np.testing.assert_array_equal(
    canvas.upsample_mask(jnp.asarray(mask), 2)[0],
    [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2,
  )


def test_normalize_is_torchvisions_and_unnormalize_its_inverse():
  pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  expected = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
  normalized = canvas.normalize(jnp.asarray(pixels))
  np.testing.assert_allclose(normalized, expected, atol=1e-6)
  np.testing.assert_allclose(canvas.unnormalize(normalized), pixels, atol=1e-3)
  assert canvas.unnormalize(normalized + 100.0).max() == 255.0


@pytest.mark.parametrize("size", [(60, 64), (64, 60), (0, 64), (-8, 8)])
def test_canvas_that_is_no_multiple_of_the_patch_is_refused(size):
  with pytest.raises(ValueError, match="multiples of the patch size 8"):
    canvas.grid_size(size, 8)


def test_stack_puts_the_prompt_on_top():
  prompt, query = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
  stacked = canvas.stack(prompt, query)
  assert stacked.shape == (8, 4, 3) and (canvas.query_half(jnp.asarray(stacked)[None]) == 1).all()
