"""The small network: masks are carried from prompts to a query by matching frozen ImageNet features.

In: canvases, as for `SegGPT`. Out: colors of the same form. Each color channel is one mask, and all channels share the
weights, so three classes in pure red, green and blue are asked at once without a blend that means another class. The
prompts' side never sees the query: `remember` computes it once for all queries.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from seggpt_jax import canvas
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.imagenet import CHANNELS, ImageNetFeatures, PixelHead
from seggpt_jax.model.layers import ContextBlock, Conv3x3, Linear, gelu, weighted_mean
from seggpt_jax.model.seggpt import SegGPT, SegType
from seggpt_jax.typing import AnyArray

FROZEN = ("features.", "feature_")  # starts of the names of parameters that fine-tuning does not change
PATCH = 8  # pixels of a token's side
KEY_DIM = 32  # channels of one matching head
HEADS = {4: 1, 8: 2}  # matching heads by stride
RIDGE = (0.2, 0.2, 0.05, 0.05)  # of the two linear and the two kernel heads, as a share of the number of pixels
TEXTURES = sum(CHANNELS.values()) + 3  # random features of texture; as many as a linear head has, to solve both in one
FREQUENCIES = 5  # of the position code


class Image(NamedTuple):
  """Holds what the network computes from an image alone."""

  tokens: Array  # contextual tokens of stride 8, [N, rows, cols, width]
  keys: dict[int, Array]  # normalized features that are matched, by stride 4 and 8: [N, pixels, heads, channels]
  heads: dict[int, Array]  # what linear heads (stride 4) and kernel heads (2) see: [N, 2, rows, cols, channels]
  skips: dict[int, Array]  # features for the decoder, by stride 4 and 2


class Memory(NamedTuple):
  """Holds what the network keeps of prompts. Memories can be stacked: no array depends on another prompt."""

  keys: dict[int, Array]  # features to match with, by stride: [B, K, pixels, heads, channels]
  values: dict[int, Array]  # 4 x 4 mask values of each place, by stride: [B, K, pixels, C, 16]
  gram: Array  # products of the heads' features, summed over pixels: [B, K, 4, channels, channels]
  target: Array  # products of these features and the masks, summed over pixels: [B, K, 4, channels, C]
  tokens: list[Array]  # tokens of the prompts in front of each layer: [B, K, C, tokens, width]


def _standardize(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
  """Normalizes each channel of each image by its own mean and standard deviation."""
  mean = jnp.mean(x, axis=(1, 2), keepdims=True)
  return (x - mean) / (jnp.std(x, axis=(1, 2), keepdims=True) + 1e-2)


def _pool(x: Float[AnyArray, "n h w c"], size: int) -> Float[AnyArray, "n h2 w2 c"]:
  """Averages square blocks of pixels."""
  n, height, width, channels = x.shape
  return x.reshape(n, height // size, size, width // size, size, channels).mean(axis=(2, 4))


def _upsample(x: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c"]:
  """Enlarges feature maps bilinearly."""
  n, height, width, channels = x.shape
  return jax.image.resize(x, (n, height * factor, width * factor, channels), "linear")


def _flat(x: Float[AnyArray, "n h w *c"]) -> Float[AnyArray, "n hw *c"]:
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _mask_patches(masks: Float[AnyArray, "n h w c"], stride: int) -> Float[AnyArray, "n places c 16"]:
  """Returns 4 x 4 values of each square of a mask."""
  values = canvas.patchify(_pool(masks, stride // 4) if stride > 4 else masks, 4)
  return values.reshape(len(masks), -1, 16, masks.shape[-1]).swapaxes(2, 3)


def _texture(images: Float[AnyArray, "n h w 3"]) -> Float[Array, "n h2 w2 16"]:
  """Returns color and deviation of gray in squares of 2 to 16 pixels, at stride 2."""
  gray, maps = images.mean(axis=-1, keepdims=True), []
  for size in (2, 4, 8, 16):
    variance = _pool(gray * gray, size) - _pool(gray, size) ** 2
    level = jnp.concatenate([_pool(images, size), 2 * jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-5)], axis=-1)
    maps.append(_upsample(level, size // 2) if size > 2 else level)
  return jnp.concatenate(maps, axis=-1)


def _head_features(x: Float[Array, "n t h w f"], stride: int) -> Float[Array, "n t pixels g"]:
  """Returns the features of the heads of a stride, and a constant one.

  Those of stride 2 are cosines of random projections of several scales, so that their linear head is one of a Gaussian
  kernel (Rahimi, Recht 2007: Random Features for Large-Scale Kernel Machines).
  """
  x = x.reshape(*x.shape[:2], -1, x.shape[-1])
  if stride == 2:
    generator, depth = np.random.default_rng(0), x.shape[-1]
    scales = np.exp(generator.uniform(np.log(1.0), np.log(4.0), TEXTURES))
    weights = generator.normal(size=(depth, TEXTURES)) * scales / np.sqrt(depth)
    phases = generator.uniform(0, 2 * np.pi, TEXTURES)
    angles = jnp.clip(x, -8, 8) @ jnp.asarray(weights, x.dtype) + jnp.asarray(phases, x.dtype)[None, None, None]
    x = np.sqrt(2) * jnp.cos(angles)
  return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


@functools.cache
def position_code(rows: int, cols: int) -> Float[np.ndarray, "rows cols d"]:
  """Returns sines and cosines of the place in the image, which do not depend on its size in pixels."""
  axes = []
  for size in (rows, cols):
    place = (np.arange(size) + 0.5) / size
    angles = np.pi * place[:, None] * 2.0 ** np.arange(FREQUENCIES)
    axes.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
  by_row = np.broadcast_to(axes[0][:, None], (rows, cols, axes[0].shape[1]))
  by_col = np.broadcast_to(axes[1][None], (rows, cols, axes[1].shape[1]))
  return np.concatenate([by_row, by_col], axis=-1).astype(np.float32)


class Matcher(SegGPT):
  """A small network that segments by example with frozen ImageNet features. It is called as a `SegGPT` is.

  Args:
    config: the architecture; the first `merge_block + 1` blocks look at one image, the others at prompts and query.
    dtype: dtype of the computation.
    rngs: random streams for the parameters.
    **options: further options of `SegGPT`, which a network of this size does not need.
  """

  def __init__(self, config: SegGPTConfig, *, dtype=jnp.float32, rngs: nnx.Rngs, **options: Any):
    del options
    self.config, self.dtype = config, jnp.dtype(dtype)
    width, dim = config.width, config.decoder_dim
    self.features = ImageNetFeatures(rngs)
    self.feature_mean = nnx.Param(jnp.zeros(sum(CHANNELS.values())))
    self.feature_scale = nnx.Param(jnp.ones(sum(CHANNELS.values())))
    linear = functools.partial(Linear, dtype=dtype, rngs=rngs)
    total = 2 * sum(CHANNELS.values()) + 6
    self.embed = linear(total + 4 * FREQUENCIES, width)
    self.blocks = nnx.List([ContextBlock(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
    self.key4 = linear(total, HEADS[4] * KEY_DIM)
    self.key8 = linear(width, HEADS[8] * KEY_DIM)
    self.sharpness = nnx.Param(jnp.full(sum(HEADS.values()), np.log(12.0), jnp.float32))
    self.prompt_embed = linear(width + 16, width)
    self.query_embed = linear(width + HEADS[8] * 16 + 16 + 4 * (4 + HEADS[4]) + 4, width)
    self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
    self.to4 = linear(width, 4 * dim)
    self.skip4 = linear(total, dim)
    self.conv4a = Conv3x3(2 * dim + HEADS[4] + 4 + 1 + 4, dim, dtype=dtype, rngs=rngs)
    self.conv4b = Conv3x3(dim, dim, dtype=dtype, rngs=rngs)
    half = dim // 2
    self.to2 = linear(dim, 4 * half)
    fine = 2 * CHANNELS[2] + 2 * 12
    self.conv2a = Conv3x3(half + fine + HEADS[4] * 4 + 4 + 4, half, dtype=dtype, rngs=rngs)
    self.conv2b = Conv3x3(half, half, dtype=dtype, rngs=rngs)
    # At first the answer is that of the linear heads; the decoder learns what they miss.
    self.to1 = linear(half, 4, kernel_init=nnx.initializers.zeros)
    self.hint_weights = nnx.Param(jnp.asarray([0.0] * HEADS[4] + [2.0, 2.0, 0.0, 0.0]))
    self.hint_trust = nnx.Param(jnp.zeros(4))  # how much more a head weighs that explains the prompts' masks
    if config.head_classes:
      self.pixel_head = PixelHead(config.head_classes, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    images: Float[AnyArray, "b h w 3"],
    targets: Float[AnyArray, "b h w 3"],
    patch_mask: Bool[AnyArray, "b rows cols"],
    *,
    seg_type: SegType | Int[AnyArray, "b"] = "semantic",
    prompts_per_query: int = 1,
    deterministic: bool = True,
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "b h w 3"]:
    """Predicts the colors of target canvases; see `SegGPT.__call__`.

    Each channel of the targets is a mask. Of the prompts' half, hidden patches count as outside the mask, and their
    prediction is gray: this network only answers the query's half.
    """
    del seg_type, deterministic, key
    mean, std = self.config.image_mean, self.config.image_std
    groups = (-1, prompts_per_query)
    half = images.shape[1] // 2
    hidden = canvas.upsample_mask(patch_mask, PATCH)[..., None]
    masks = jnp.where(hidden, 0.0, canvas.unnormalize(targets, mean, std) / 255.0)[:, :half]
    logits = self.logits(
      jnp.asarray(images)[::prompts_per_query, half:],
      jnp.asarray(images)[:, :half].reshape(*groups, half, *images.shape[2:]),
      masks.reshape(*groups, *masks.shape[1:]),
    )
    lower = jnp.repeat(jax.nn.sigmoid(logits.astype(jnp.float32)), prompts_per_query, axis=0)
    colors = jnp.concatenate([jnp.full_like(lower, 0.5), lower], axis=1)
    return jnp.where(hidden, canvas.normalize(255.0 * colors, mean, std), targets)

  def _maps(self, images: Float[AnyArray, "n h w 3"]) -> tuple[dict[int, Array], dict[int, Array]]:
    """Returns the ImageNet features by stride, as they are and normalized by the statistics of pretraining."""
    maps, ends = self.features(images), np.cumsum(list(CHANNELS.values()))[:-1]
    means, scales = (jnp.split(part[...], ends) for part in (self.feature_mean, self.feature_scale))
    return maps, {
      stride: (maps[stride] - mean[None, None, None]) * scale[None, None, None]
      for stride, mean, scale in zip(CHANNELS, means, scales, strict=True)
    }

  def pixel_features(self, images: Float[AnyArray, "n h w 3"]) -> dict[int, Float[Array, "n h2 w2 c"]]:
    """Returns what the trained head sees of normalized images: features of strides 2 to 16, and the pixels at stride 2.

    All are there twice: normalized by the statistics of pretraining, and by those of the image itself.
    """
    maps, fixed = self._maps(images)
    pixels = canvas.patchify(jnp.asarray(images), 2)
    raw, fixed = (
      {**maps, 2: jnp.concatenate([maps[2], pixels], axis=-1)},
      {**fixed, 2: jnp.concatenate([fixed[2], pixels], axis=-1)},
    )
    return {stride: jnp.concatenate([fixed[stride], _standardize(raw[stride])], axis=-1) for stride in CHANNELS}

  def patches(self, images: Float[AnyArray, "n h w 3"]) -> Float[Array, "n rows cols d"]:
    """Returns features of each patch of images that say what it shows, for retrieval: those of strides 8 and 16."""
    _, fixed = self._maps(images)
    return jnp.concatenate([fixed[8], _upsample(fixed[16], 2)], axis=-1)

  def describe(self, images: Float[AnyArray, "n h w 3"]) -> Image:
    """Computes everything that needs no mask."""
    maps, fixed = self._maps(images)
    own = {stride: _standardize(x) for stride, x in maps.items()}
    pixels = jnp.concatenate([images, _standardize(images)], axis=-1)
    # All features at stride 4, of training's statistics and of the image's own.
    rich = [
      jnp.concatenate([_pool(part[2], 2), part[4], _upsample(part[8], 2), _upsample(part[16], 4), colors], axis=-1)
      for part, colors in ((fixed, _pool(pixels[..., :3], 4)), (own, _pool(pixels[..., 3:], 4)))
    ]
    all4 = jnp.concatenate(rich, axis=-1)
    n, rows, cols = len(images), images.shape[1] // PATCH, images.shape[2] // PATCH
    code = jnp.broadcast_to(position_code(rows, cols)[None], (n, rows, cols, 4 * FREQUENCIES))
    tokens = _flat(self.embed(jnp.concatenate([_pool(all4, 2), code], axis=-1)))
    for block in self.blocks[: self.config.merge_block + 1]:
      tokens = block(tokens)

    def keys(x):
      x = x.reshape(*x.shape[:-1], -1, KEY_DIM)
      return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)

    fine, texture = canvas.patchify(pixels, 2), _texture(jnp.asarray(images))
    textures = [texture, _standardize(texture) / 2]
    return Image(
      tokens,
      {4: keys(self.key4(_flat(all4))), 8: keys(self.key8(tokens))},
      {4: jnp.stack(rich, axis=1), 2: jnp.stack(textures, axis=1)},
      {4: self.skip4(all4), 2: jnp.concatenate([fixed[2], own[2], fine], axis=-1)},
    )

  def remember(self, prompts: Image, masks: Float[AnyArray, "b k h w c"]) -> Memory:
    """Computes everything that needs no query.

    Args:
      prompts: the descriptions of B * K prompts.
      masks: their masks, 0..1, of C classes that are asked one by one.
    """
    b, k, _, _, c = masks.shape
    flat = masks.reshape(b * k, *masks.shape[2:])
    patches = {stride: _mask_patches(flat, stride) for stride in (4, 8)}
    own = jnp.broadcast_to(prompts.tokens[:, None], (b * k, c, *prompts.tokens.shape[1:]))
    tokens = self.prompt_embed(jnp.concatenate([own, patches[8].swapaxes(1, 2)], axis=-1))
    tokens, kept = tokens.reshape(b * k * c, *tokens.shape[2:]), []
    across = self.blocks[self.config.merge_block + 1 :]
    for index, block in enumerate(across):
      kept.append(tokens.reshape(b, k, c, *tokens.shape[1:]))
      if index < len(across) - 1:
        tokens = block(tokens)
    gram, target = [], []
    for stride in (4, 2):
      some, seen = 4 // stride, prompts.heads[stride]  # a quarter of the pixels of stride 2 is enough
      features = _head_features(jax.lax.stop_gradient(seen[:, :, ::some, ::some].astype(jnp.float32)), stride)
      gram.append(jnp.einsum("ntpf,ntpg->ntfg", features, features))
      target.append(jnp.einsum("ntpf,npc->ntfc", features, _flat(_pool(flat, stride)[:, ::some, ::some])))
    gram, target = (jnp.concatenate(each, axis=1) for each in (gram, target))

    def grouped(x):
      return x.reshape(b, k, *x.shape[1:])

    return Memory(*jax.tree.map(grouped, (prompts.keys, patches, gram, target)), kept)

  def answer(self, query: Image, memory: Memory) -> tuple[Float[Array, "b h w c"], dict[int, Array]]:
    """Computes the logits of each query's pixels for each class.

    Returns:
      Logits, and by stride the shares of the mask that the matches found, [B, h, w, C, heads], for a loss of their own.
    """
    b, c = query.tokens.shape[0], memory.target.shape[-1]
    height, width = (side * 2 for side in query.skips[2].shape[1:3])
    rows, cols = height // PATCH, width // PATCH

    def match(stride, sharpness):
      values = memory.values[stride].reshape(b, -1, c * 16)
      keys = memory.keys[stride].reshape(b, values.shape[1], len(sharpness), KEY_DIM)
      found = [
        weighted_mean(query.keys[stride][:, :, head] * jnp.exp(sharp), keys[:, :, head], values)
        for head, sharp in enumerate(sharpness)
      ]
      return jnp.stack([each.reshape(b, -1, c, 16) for each in found], axis=3).swapaxes(1, 2)  # b c places heads 16

    sharpness = self.sharpness[...]
    fine, coarse = match(4, sharpness[: HEADS[4]]), match(8, sharpness[HEADS[4] :])
    matches = {
      stride: found.mean(axis=-1).transpose(0, 2, 1, 3).reshape(b, height // stride, width // stride, c, -1)
      for stride, found in ((4, fine), (8, coarse))
    }

    def image(x, stride):  # b c places d -> (b c) h w d
      return x.reshape(b * c, height // stride, width // stride, -1)

    gram, target = memory.gram.sum(axis=1), memory.target.sum(axis=1)
    pixels, found = memory.keys[4].shape[1] * memory.keys[4].shape[2], {}
    # All in one call: XLA's CPU runtime hangs now and then in a program with two factorizations.
    weights = _solve(gram, target, pixels)
    for stride, own in ((4, weights[:, :2]), (2, weights[:, 2:])):
      each = jnp.einsum("btpf,btfc->bcpt", _head_features(query.heads[stride], stride), own)
      found[stride] = image(jnp.clip(each, -1.0, 2.0), stride)
    trust = _explained(gram, target, weights, pixels).swapaxes(1, 2).reshape(b * c, 1, 1, 4)

    def trusted(x):
      return jnp.broadcast_to(trust, (*x.shape[:3], 4))

    fine_means = jnp.concatenate([image(fine.mean(axis=-1), 4), found[4], _pool(found[2], 2)], axis=-1)
    own = jnp.broadcast_to(query.tokens[:, None], (b, c, *query.tokens.shape[1:])).reshape(b * c, rows, cols, -1)
    copy = image(memory.values[8].mean(axis=1).swapaxes(1, 2), 8)  # the mean of the prompts' masks
    hints = jnp.concatenate([own, image(coarse, 8), copy, canvas.patchify(fine_means, 2), trusted(own)], axis=-1)
    tokens = _flat(self.query_embed(hints))
    for block, others in zip(self.blocks[self.config.merge_block + 1 :], memory.tokens, strict=True):
      tokens = block(tokens, others.swapaxes(1, 2).reshape(b * c, -1, tokens.shape[-1]))
    x = self.to4(self.norm(tokens)).reshape(b * c, rows, cols, -1)
    repeat = functools.partial(jnp.repeat, repeats=c, axis=0)
    copy4 = canvas.unpatchify(
      copy.reshape(*copy.shape[:3], 2, 2, 2, 2).mean(axis=(4, 6)).reshape(*copy.shape[:3], 4), 2
    )
    x = jnp.concatenate([canvas.unpatchify(x, 2), repeat(query.skips[4]), fine_means, copy4, trusted(copy4)], axis=-1)
    x = gelu(self.conv4a(x))
    x = gelu(x + self.conv4b(x))
    # A match carries 4 x 4 pixels of the prompt's mask: 2 x 2 pixels of stride 2.
    fine = fine.reshape(b * c, height // 4, width // 4, HEADS[4], 2, 2, 2, 2)
    fine = fine.transpose(0, 1, 4, 2, 6, 3, 5, 7).reshape(b * c, height // 2, width // 2, -1)
    x = [canvas.unpatchify(self.to2(x), 2), repeat(query.skips[2]), fine, _upsample(found[4], 2), found[2]]
    x = jnp.concatenate([*x, trusted(fine)], axis=-1)
    x = gelu(self.conv2a(x))
    x = gelu(x + self.conv2b(x))
    hints = jnp.einsum("nhwd,d->nhw", fine_means - 0.5, self.hint_weights[...])[..., None]
    hints += jnp.sum((fine_means[..., HEADS[4] :] - 0.5) * trust * self.hint_trust[None, None, None], -1, keepdims=True)
    logits = canvas.unpatchify(self.to1(x), 2) + _upsample(hints, 4)
    return logits.reshape(b, c, height, width).transpose(0, 2, 3, 1), matches

  def logits(
    self,
    queries: Float[AnyArray, "b h w 3"],
    prompts: Float[AnyArray, "b k h w 3"],
    masks: Float[AnyArray, "b k h w c"],
  ) -> Float[Array, "b h w c"]:
    """Returns the logits of each query's pixels for each of C masks of its K prompts; images are normalized."""
    b, k = prompts.shape[:2]
    everything = self.describe(jnp.concatenate([queries, prompts.reshape(b * k, *prompts.shape[2:])]))
    query, shown = jax.tree.map(lambda x: x[:b], everything), jax.tree.map(lambda x: x[b:], everything)
    return self.answer(query, self.remember(shown, masks))[0]


def _solve(gram: Float[Array, "b t f1 f1"], target: Float[Array, "b t f1 c"], pixels: int) -> Float[Array, "b t f1 c"]:
  """Returns weights of linear heads by ridge regression, from sums over pixels of features (the last is 1) and masks.

  Their outputs are 0 on average outside the masks of the prompts, and 1 inside; they have no gradient.
  """
  gram, target = jax.lax.stop_gradient((gram, target))
  penalty = jnp.diag(jnp.ones(gram.shape[-1]).at[-1].set(1e-4) * pixels)
  penalty = jnp.asarray(RIDGE)[:, None, None] * penalty[None]
  weights = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram + penalty[None]), target)
  # Products with the constant feature are sums over pixels, so the mean outputs inside and outside follow from them.
  total, inside = gram[:, :, :, -1:], target[:, :, -1:]
  high = jnp.sum(weights * target, axis=2, keepdims=True) / (inside + 1e-3)
  low = jnp.sum(weights * (total - target), axis=2, keepdims=True) / (pixels - inside + 1e-3)
  return weights.at[:, :, -1:].add(-low) / jnp.maximum(high - low, 1e-2)


def _explained(
  gram: Float[Array, "b t f1 f1"], target: Float[Array, "b t f1 c"], weights: Float[Array, "b t f1 c"], pixels: int
) -> Float[Array, "b t c"]:
  """Returns the squared correlation of linear heads' outputs with the prompts' masks."""
  product = jnp.sum(weights * target, axis=2) / pixels
  square = jnp.einsum("btfc,btfg,btgc->btc", weights, gram, weights) / pixels
  mean = jnp.einsum("btf,btfc->btc", gram[:, :, -1], weights) / pixels
  inside = target[:, :, -1] / pixels
  found = (product - mean * inside) ** 2 / ((square - mean**2) * (inside - inside**2) + 1e-4)
  return jax.lax.stop_gradient(jnp.clip(found, 0.0, 1.0))
