"""The loss: if it is off, fine-tuning optimizes something else than the release did."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from seggpt_jax.palette import IGNORE
from seggpt_jax.training.loss import (
  LossOptions,
  class_log_probabilities,
  foreground_weights,
  masked_smooth_l1,
  training_loss,
)


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


def classes(seed=0):
  """Colors 0..255, labels with ignored pixels, palettes of 3 classes, and which pixels are hidden."""
  generator = np.random.default_rng(seed)
  labels = generator.choice([0, 0, 0, 1, 2, IGNORE], (2, 16, 8)).astype(np.uint8)
  palettes = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]], [[0, 0, 0], [10, 200, 30], [0, 0, 255]]], np.uint8)
  return generator.uniform(-20, 280, (2, 16, 8, 3)).astype(np.float32), labels, palettes


def loss_of(options, seed=0, valid=(True, True)):
  colors, labels, palettes = classes(seed)
  zeros = jnp.zeros(colors.shape)
  arrays = (zeros, zeros, jnp.asarray(labels), jnp.asarray(palettes), batch()[2], jnp.asarray(valid))
  return training_loss(*arrays, jnp.asarray(colors), options)


def test_cross_entropy_and_dice_equal_their_formulas():
  """Reference: float64 NumPy and torch cross_entropy, over the hidden pixels that are not ignored. 1e-5 of itself."""
  colors, labels, palettes = classes()
  hidden = np.asarray(batch()[2]).repeat(4, axis=1).repeat(4, axis=2) & (labels != IGNORE)
  distances = (((colors[..., None, :] - palettes[:, None, None].astype(np.float64)) / 255) ** 2).sum(-1)
  between = (((palettes[:, :, None] - palettes[:, None].astype(np.float64)) / 255) ** 2).sum(-1)
  least = between[:, ~np.eye(palettes.shape[1], dtype=bool)].min(axis=1)[:, None, None, None]
  scores, truth = torch.tensor((-distances / (0.5 * least))[hidden]), torch.tensor(labels[hidden].astype(np.int64))
  plain = torch.nn.functional.cross_entropy(scores, truth)
  only = {"smooth_l1": 0.0, "temperature": 0.5}
  np.testing.assert_allclose(loss_of(LossOptions(cross_entropy=2.0, **only)), 2 * plain, rtol=1e-5)
  share, canvas_of = 0.6, np.nonzero(hidden)[0]
  foreground, each = truth > 0, torch.nn.functional.cross_entropy(scores, truth, reduction="none").numpy()
  foreground, weight = foreground.numpy(), np.ones(len(truth))
  probabilities, dices = torch.softmax(scores, dim=1).numpy(), []
  for one in (0, 1):
    there, rest = (canvas_of == one) & foreground, (canvas_of == one) & ~foreground
    weight[there] = share / (1 - share) * rest.sum() / there.sum()
    np.testing.assert_allclose(weight[there].sum() / weight[canvas_of == one].sum(), share)
    weight[canvas_of == one] /= weight[canvas_of == one].mean()
    common = probabilities[there, truth.numpy()[there]].sum()
    both = (1 - probabilities[canvas_of == one, 0]).sum() + there.sum()
    dices.append(1 - (2 * common + 1) / (both + 1))
  weighted = (weight * each).sum() / weight.sum()
  np.testing.assert_allclose(loss_of(LossOptions(cross_entropy=1.0, foreground=share, **only)), weighted, rtol=1e-5)
  np.testing.assert_allclose(loss_of(LossOptions(dice=1.0, **only)), np.mean(dices), rtol=1e-5)


def test_classes_that_a_canvas_does_not_show_get_no_probability():
  palettes = jnp.asarray(classes()[2])
  shown = jnp.array([[True, False, True], [True, True, False]])
  found = np.exp(class_log_probabilities(jnp.full((2, 1, 1, 3), 255.0), palettes, shown, 0.25))
  assert found[0, 0, 0, 1] == 0 and found[1, 0, 0, 2] == 0
  np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)


def test_the_share_of_the_foreground_is_reached_as_far_as_the_largest_weight_allows():
  labels = np.zeros((4, 10, 100), np.int32)
  counts = (100, 900, 1, 0)
  for label, count in zip(labels, counts, strict=True):
    label.flat[:count] = 1
  weights = np.asarray(foreground_weights(jnp.asarray(labels), jnp.ones(labels.shape, bool), 0.5)).reshape(4, -1)
  np.testing.assert_allclose(weights.sum(axis=1), 1000, rtol=1e-5)  # every canvas counts as much as another one
  shares = [row[:count].sum() / 1000 for row, count in zip(weights, counts, strict=True)]
  np.testing.assert_allclose(shares, [0.5, 0.9, 20 / 1019, 0], rtol=1e-5)


def test_the_default_is_the_loss_of_the_original():
  """Bit for bit that of masked_smooth_l1 over the pixels that are not ignored."""
  colors, targets, patch_mask = batch()
  _, labels, palettes = classes()
  arrays = (colors, targets, jnp.asarray(labels), jnp.asarray(palettes), patch_mask, jnp.ones(2, bool), colors)
  wanted = masked_smooth_l1(colors, targets, patch_mask, jnp.asarray(labels != IGNORE))
  np.testing.assert_array_equal(training_loss(*arrays, LossOptions()), wanted)


def test_losses_of_classes_are_finite_without_foreground_or_any_pixel():
  options = LossOptions(1.0, 1.0, 1.0, foreground=0.3)
  assert np.isfinite(loss_of(options)) and loss_of(options, valid=(False, False)) == 0.0
