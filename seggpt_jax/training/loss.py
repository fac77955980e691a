"""Computes the training loss: smooth L1 on the hidden patches of the target canvas, and losses of decoded classes.

In: predicted and true colors, and the mask of hidden patches. Out: one float32 scalar. SegGPT's own loss is the smooth
L1 alone, with every pixel of equal weight. It is close to a median: where a class is less than half likely, background
is the best answer, so small and rare classes vanish. Cross-entropy and Dice read the predicted colors as class
probabilities, by their distances to the palette, so that the colors stay the language of the network.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num, Shaped

from seggpt_jax import canvas, palette
from seggpt_jax.typing import AnyArray

BETA = 0.01
# The weight of a foreground pixel, at most. A canvas with a handful of them would else be decided by these alone.
_MAX_WEIGHT = 20.0


@dataclasses.dataclass(frozen=True)
class LossOptions:
  """Weights of the parts of the training loss. The defaults are SegGPT's loss.

  Attributes:
    smooth_l1: weight of the smooth L1 of the normalized colors.
    cross_entropy: weight of the cross-entropy of the classes of each pixel.
    dice: weight of the soft Dice loss of each canvas's foreground.
    temperature: squared distance of colors that changes the odds of two classes by a factor of e, as a share of that
      between the two most similar colors of a canvas. It must be well below 1: at 1, even a perfect prediction leaves
      each pixel uncertain, and the sum over many uncertain pixels hides a small object from Dice.
    foreground: least share of the foreground in the weights of each canvas's pixels, 0 to below 1, reached with weights
      of at most 20; 0 weighs all pixels equally. Concerns smooth L1 and cross-entropy.
  """

  smooth_l1: float = 1.0
  cross_entropy: float = 0.0
  dice: float = 0.0
  temperature: float = 0.125
  foreground: float = 0.0


def smooth_l1(difference: Float[Array, "*b"], beta: float = BETA) -> Float[Array, "*b"]:
  """Returns PyTorch's `smooth_l1_loss` of each difference: a parabola below `beta`, a straight line above."""
  size = jnp.abs(difference)
  return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def masked_smooth_l1(
  colors: Float[AnyArray, "b h w 3"],
  targets: Float[AnyArray, "b h w 3"],
  patch_mask: Bool[AnyArray, "b rows cols"],
  valid: Shaped[AnyArray, "b h w"] | Shaped[AnyArray, "b h w 3"] | None = None,
) -> Float[Array, ""]:
  """Returns the mean smooth L1 over all color channels of the hidden, valid pixels.

  Examples:
    >>> colors, targets = jnp.zeros((1, 32, 16, 3)), jnp.ones((1, 32, 16, 3))  # a canvas of two patches
    >>> float(seggpt_jax.masked_smooth_l1(colors, targets, patch_mask=jnp.array([[[False], [True]]])))
    0.99...

  Args:
    colors: predicted colors, normalized.
    targets: true colored canvases, normalized.
    patch_mask: True for hidden patches; only these are scored. The patch size follows from the shapes.
    valid: pixels or single channels that count: bool, or a weight where 1 counts fully. By default all.

  Returns:
    A float32 scalar. It is 0 when no pixel is scored: a batch can consist of invalid pixels only, and one NaN would
    spoil every parameter of the run.
  """
  patch_size = colors.shape[1] // patch_mask.shape[1]
  mask = canvas.upsample_mask(patch_mask, patch_size)[..., None].astype(jnp.float32)
  if valid is not None:
    valid = valid if valid.ndim == 4 else valid[..., None]
    mask = mask * valid.astype(jnp.float32)
  mask = jnp.broadcast_to(mask, colors.shape)
  loss = smooth_l1(colors.astype(jnp.float32) - targets.astype(jnp.float32)) * mask
  total = jnp.sum(mask)
  return jnp.sum(loss) / jnp.where(total > 0, total, 1.0)


def foreground_weights(
  labels: Integer[AnyArray, "b h w"], scored: Bool[AnyArray, "b h w"], share: float
) -> Float[Array, "b h w"]:
  """Returns the weights of pixels with which the foreground has a share of the weights of its canvas.

  The mean weight of a canvas's scored pixels is 1, so that a canvas with a speck counts as much as one that is full.

  Args:
    labels: class indices.
    scored: True for pixels that count; the others get the weight 0.
    share: the share, 0 to below 1. Foreground that has more of the pixels, or would need weights above 20, has the
      nearest share that it can have.

  Returns:
    For each canvas one number for background, and another one, at least as large, for foreground.
  """
  is_foreground = scored & (labels != 0)
  foreground, total = (jnp.sum(pixels, axis=(1, 2), keepdims=True) for pixels in (is_foreground, scored))
  wanted = share / (1.0 - share) * (total - foreground) / jnp.maximum(foreground, 1)
  weights = jnp.where(is_foreground, jnp.clip(wanted, 1.0, _MAX_WEIGHT), scored.astype(jnp.float32))
  return weights * total / jnp.maximum(jnp.sum(weights, axis=(1, 2), keepdims=True), 1.0)


def class_log_probabilities(
  colors: Float[AnyArray, "b h w 3"], palettes: Num[AnyArray, "b n 3"], shown: Bool[AnyArray, "b n"], temperature: float
) -> Float[Array, "b h w n"]:
  """Returns the logarithms of class probabilities: a softmax over squared distances to the colors of the palette.

  The odds of two classes are `exp((d2**2 - d1**2) / (temperature * least))`, where `least` is the squared distance of
  the two most similar colors that are shown. They grow linearly along the line from one color to the other, so that
  this is logistic regression on the colors, and nearest colors have the largest probabilities. A prediction of exactly
  a color has odds of at least `exp(1 / temperature)` with any palette.

  Args:
    colors: predicted colors, 0..255.
    palettes: colors of the N classes, 0..255.
    shown: classes that can be meant; the others get no probability.
    temperature: see `LossOptions`.
  """
  colors, palettes = colors / 255.0, palettes.astype(jnp.float32) / 255.0
  distances = jnp.sum((colors[..., None, :] - palettes[:, None, None]) ** 2, axis=-1)
  between = jnp.sum((palettes[:, :, None] - palettes[:, None]) ** 2, axis=-1)
  # Compiled and fused, the distance of a color to itself is not always exactly 0.
  others = shown[:, :, None] & shown[:, None] & ~jnp.eye(palettes.shape[1], dtype=bool)[None]
  least = jnp.min(between, axis=(1, 2), where=others, initial=3.0)[:, None, None, None]  # black and white
  scores = jnp.where(shown[:, None, None], -distances / (temperature * least), -jnp.inf)
  return jax.nn.log_softmax(scores, axis=-1)


def training_loss(
  colors: Float[AnyArray, "b h w 3"],
  targets: Float[AnyArray, "b h w 3"],
  labels: Integer[AnyArray, "b h w"],
  palettes: Num[AnyArray, "b n 3"],
  patch_mask: Bool[AnyArray, "b rows cols"],
  valid: Bool[AnyArray, "b"],
  unnormalized: Float[AnyArray, "b h w 3"],
  options: LossOptions,
) -> Float[Array, ""]:
  """Returns the weighted sum of the parts of the loss over the hidden pixels of known class.

  The Dice loss is `1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)` over these pixels of a canvas and all foreground
  classes (V-Net, arXiv 1606.04797, without squares), averaged over the canvases with such pixels. `p` is a class's
  probability and `t` is 1 for the true class.

  Args:
    colors: predicted colors, normalized.
    targets: true colored canvases, normalized.
    labels: class indices, or IGNORE.
    palettes: colors of the N classes of each canvas, 0..255.
    patch_mask: True for hidden patches.
    valid: False for canvases that only fill up a batch.
    unnormalized: `colors` in 0..255.
    options: weights of the parts.
  """
  known = valid[:, None, None] & (labels != palette.IGNORE)
  labels = labels.astype(jnp.int32)
  scored = known & canvas.upsample_mask(patch_mask, colors.shape[1] // patch_mask.shape[1])
  weights = foreground_weights(labels, scored, options.foreground) if options.foreground else known
  loss = options.smooth_l1 * masked_smooth_l1(colors, targets, patch_mask, weights)
  if not (options.cross_entropy or options.dice):
    return loss
  shown = palette.shown_classes(labels, palettes.shape[1]).at[:, 0].set(True)
  log_probabilities = class_log_probabilities(unnormalized, palettes, shown, options.temperature)
  of_truth = jnp.take_along_axis(log_probabilities, jnp.where(scored, labels, 0)[..., None], axis=-1)[..., 0]
  weights = weights * scored
  cross_entropy = -jnp.sum(weights * of_truth) / jnp.maximum(jnp.sum(weights), 1.0)
  is_foreground = scored & (labels != 0)
  common = jnp.sum(jnp.exp(of_truth) * is_foreground, axis=(1, 2))
  found = jnp.sum((1.0 - jnp.exp(log_probabilities[..., 0])) * scored, axis=(1, 2))
  each = 1.0 - (2.0 * common + 1.0) / (found + jnp.sum(is_foreground, axis=(1, 2)) + 1.0)
  counted = jnp.any(scored, axis=(1, 2))
  dice = jnp.sum(each * counted) / jnp.maximum(jnp.sum(counted), 1)
  return loss + options.cross_entropy * cross_entropy + options.dice * dice


_DICE_PIXELS = 10.0  # smooths the Dice loss of classes that a batch hardly shows


def head_loss(logits: Float[Array, "b h w c"], labels: Integer[AnyArray, "b h2 w2"]) -> Float[Array, ""]:
  """Returns cross-entropy, plus half the soft Dice loss of the mean class, and of each image's foreground.

  Args:
    logits: at stride 2.
    labels: of the pixels; `palette.IGNORE` does not count.
  """
  b, height, width, classes = logits.shape
  labels = labels.reshape(b, height, 2, width, 2)
  share = jax.nn.one_hot(labels, classes).mean(axis=(2, 4))  # ignored pixels have none
  known = share.sum(axis=-1)
  log_p = jax.nn.log_softmax(logits)
  cross = -jnp.sum(share * log_p) / (jnp.sum(known) + 1e-6)
  p = jnp.exp(log_p) * known[..., None]

  def dice(found, truth, axis):
    common, total = (found * truth).sum(axis=axis), (found + truth).sum(axis=axis)
    return jnp.mean(1 - (2 * common + _DICE_PIXELS) / (total + _DICE_PIXELS))

  # Of each image, so that small objects count as much as large ones.
  foreground = dice(p[..., 1:].sum(axis=-1), share[..., 1:].sum(axis=-1), (1, 2))
  return cross + 0.5 * dice(p[..., 1:], share[..., 1:], (0, 1, 2)) + 0.5 * foreground
