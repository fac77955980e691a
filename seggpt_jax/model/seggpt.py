"""SegGPT (arXiv 2304.03284) in Flax NNX: canvases in, predicted colors out.

The network computes what the released code computes, which differs from what that code seems to say. Every block
attends globally, because the list of windowed blocks in the original's constructor is mis-nested and selects none. The
relative position logits use the unscaled query. All four feature taps share the final layer norm.

Dimensions: B canvases, rows x cols patches (the grid), D channels, K prompts for one query.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Literal, get_args

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from seggpt_jax import canvas
from seggpt_jax.compilation import default_device
from seggpt_jax.model.attention import dispatch as attention_lib
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.layers import Conv3x3, Linear, gelu
from seggpt_jax.typing import AnyArray

SegType = Literal["semantic", "instance"]
Remat = Literal["none", "dots", "full"]

_trunc_normal = nnx.initializers.truncated_normal(stddev=0.02)
_normal = nnx.initializers.normal(stddev=0.02)
# The original draws from a normal of deviation 0.02. Xavier's deviation is nearly the same at the original's width of
# 1024; narrow networks hardly learn with 0.02.
_xavier_uniform = nnx.initializers.xavier_uniform()
LAYER_NORM_EPSILON = 1e-6
# What each kind of rematerialization keeps of a block for the backward pass, in addition to the block's input.
_SAVEABLE = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # linear layers, not attention's products
  "full": jax.checkpoint_policies.nothing_saveable,
}


def drop_path(
  x: Float[Array, "b *rest"], rate: float | Float[Array, ""], key: PRNGKeyArray | None
) -> Float[Array, "b *rest"]:
  """Zeroes random samples and scales up the others (stochastic depth, arXiv 1603.09382)."""
  if key is None:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def ensemble_features(x: Float[Array, "b rows cols d"], prompts_per_query: int) -> Float[Array, "b rows cols d"]:
  """Replaces the query half of the grid by its mean over the K prompts of the same query (the feature ensemble).

  The K canvases of a query are consecutive along the batch. While image and target streams are stacked along the
  batch, no group of K consecutive canvases contains both (`stack_streams`), so each stream has its own mean.
  """
  if prompts_per_query == 1:
    return x
  batch, rows, cols, width = x.shape
  prompt, query = x[:, : rows // 2], x[:, rows // 2 :]
  groups = query.reshape(batch // prompts_per_query, prompts_per_query, rows // 2, cols, width)
  # The mean is taken in float32, because K can be in the hundreds when an image is cut into tiles.
  mean = jnp.mean(groups, axis=1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
  return jnp.concatenate([prompt, jnp.broadcast_to(mean, groups.shape).reshape(query.shape)], axis=1)


def stack_streams(x: Float[AnyArray, "b *rest"], y: Float[AnyArray, "b *rest"], group: int) -> Float[Array, "b2 *rest"]:
  """Stacks image and target streams along the batch, in alternating groups of `group` canvases.

  With all image canvases before all target canvases, devices that share the batch would have to exchange canvases.
  """
  groups = [z.reshape(-1, 1, group, *z.shape[1:]) for z in (x, y)]
  return jnp.concatenate(groups, axis=1).reshape(-1, *x.shape[1:])


def unstack_streams(x: Float[Array, "b2 *rest"], group: int) -> tuple[Float[Array, "b *rest"], Float[Array, "b *rest"]]:
  """Inverts `stack_streams`."""
  groups = x.reshape(-1, 2, group, *x.shape[1:])
  return groups[:, 0].reshape(-1, *x.shape[1:]), groups[:, 1].reshape(-1, *x.shape[1:])


class Attention(nnx.Module):
  """Global multi-head attention with decomposed relative positions."""

  def __init__(
    self,
    config: SegGPTConfig,
    *,
    dtype,
    implementation: str,
    batch_sharding: jax.sharding.NamedSharding | None,
    rngs: nnx.Rngs,
  ):
    linear = functools.partial(Linear, kernel_init=_xavier_uniform, dtype=dtype, rngs=rngs)
    self.num_heads, self.implementation, self.batch_sharding = config.num_heads, implementation, batch_sharding
    self.qkv = linear(config.width, 3 * config.width)
    self.proj = linear(config.width, config.width)
    rows, cols = config.grid
    self.rel_pos_h = nnx.Param(_trunc_normal(rngs.params(), (2 * rows - 1, config.head_dim), jnp.float32))
    self.rel_pos_w = nnx.Param(_trunc_normal(rngs.params(), (2 * cols - 1, config.head_dim), jnp.float32))

  def __call__(self, x: Float[Array, "b rows cols d"]) -> Float[Array, "b rows cols d"]:
    return self.proj(self.attend(self.qkv(x)))

  def attend(self, qkv: Float[Array, "b rows cols d3"]) -> Float[Array, "b rows cols d"]:
    """Computes attention between the two linear layers: queries, keys and values of all heads in, outputs out."""
    size, rows, cols, width = qkv.shape
    attend = functools.partial(attention_lib.IMPLEMENTATIONS[self.implementation], grid=(rows, cols))
    if self.batch_sharding is not None and self.batch_sharding.mesh.size > 1:
      # XLA's partitioner cannot split loops over canvases and custom kernels, so each device runs them on its canvases.
      mesh, batch, replicated = self.batch_sharding.mesh, self.batch_sharding.spec, jax.sharding.PartitionSpec()
      specs = (batch, replicated, replicated)
      attend = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=batch, check_vma=False)
    y = attend(qkv.reshape(size, rows * cols, 3, self.num_heads, -1), self.rel_pos_h[...], self.rel_pos_w[...])
    return y.reshape(size, rows, cols, width // 3)


class Mlp(nnx.Module):
  """Two linear layers around the exact (erf) GELU."""

  def __init__(self, config: SegGPTConfig, *, dtype, rngs: nnx.Rngs):
    linear = functools.partial(Linear, kernel_init=_xavier_uniform, dtype=dtype, rngs=rngs)
    self.fc1 = linear(config.width, config.mlp_dim)
    self.fc2 = linear(config.mlp_dim, config.width)

  def __call__(self, x: Float[Array, "b rows cols d"]) -> Float[Array, "b rows cols d"]:
    # The backward pass recomputes GELU, whose gradient it needs anyway, and so saves the memory of the widest result.
    return jax.checkpoint(lambda hidden: self.fc2(gelu(hidden)))(self.fc1(x))


class Block(nnx.Module):
  """A pre-norm transformer block; the feature ensemble acts on the attention output before it is added."""

  def __init__(self, config: SegGPTConfig, *, dtype, attention: str, batch_sharding, rngs: nnx.Rngs):
    norm = functools.partial(nnx.LayerNorm, config.width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
    self.norm1 = norm()
    self.attn = Attention(config, dtype=dtype, implementation=attention, batch_sharding=batch_sharding, rngs=rngs)
    self.norm2 = norm()
    self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, "b rows cols d"],
    key: PRNGKeyArray | None = None,
    *,
    prompts_per_query: int = 1,
    drop_path_rate: float | Float[Array, ""] = 0.0,
  ) -> Float[Array, "b rows cols d"]:
    key_attn, key_mlp = (None, None) if key is None else jax.random.split(key)
    y = ensemble_features(self.attn(self.norm1(x)), prompts_per_query)
    x = x + drop_path(y, drop_path_rate, key_attn)
    return x + drop_path(self.mlp(self.norm2(x)), drop_path_rate, key_mlp)


class DecoderHead(nnx.Module):
  """3x3 convolution, layer norm over channels, GELU and a 1x1 convolution to colors, at full resolution."""

  def __init__(self, config: SegGPTConfig, *, dtype, rngs: nnx.Rngs):
    dim = config.decoder_dim
    self.conv = Conv3x3(dim, dim, dtype=dtype, rngs=rngs)
    self.norm = nnx.LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
    self.head = Linear(dim, 3, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    return self.head(gelu(self.norm(self.conv(x))))


class SegGPT(nnx.Module):
  """The SegGPT network.

  Parameters are float32. The softmax and the returned colors are float32 too, with any compute dtype.

  Args:
    config: the architecture.
    dtype: compute dtype, float32 or bfloat16.
    remat: what the backward pass recomputes of each block instead of keeping it: "none"; "dots", everything but the
      results of linear layers, which are most of the arithmetic and little of the memory; or "full", everything.
    attention: name of an attention implementation, or "auto" for the best one that compiles for the device.
    training: whether "auto" asks for gradients, too.
    device: what the program is for, maybe of a topology that is not there; by default of `batch_sharding`, or here.
    scan: whether equal blocks are one loop over their parameters instead of a program each. Compiling takes a fraction
      of the time, and the program of the memory, but all parameters are copied once in each pass. By default only for
      training on TPUs, whose compiler takes minutes for ViT-L's blocks.
    batch_sharding: sharding of the batch over a mesh; None on one device. It is needed with sharded parameters, because
      XLA would otherwise gather whole batches to split their channels, for twice the work and memory.
    rngs: random numbers for the initial parameters: Xavier's uniform ones, and for tokens a deviation of 0.02.
  """

  def __init__(
    self,
    config: SegGPTConfig,
    *,
    dtype=jnp.float32,
    remat: Remat = "none",
    attention: str = "auto",
    training: bool = True,
    scan: bool | None = None,
    device: jax.Device | None = None,
    batch_sharding: jax.sharding.NamedSharding | None = None,
    rngs: nnx.Rngs,
  ):
    self.config, self.dtype, self.batch_sharding, self.remat = config, jnp.dtype(dtype), batch_sharding, remat
    if remat not in get_args(Remat):
      raise ValueError(f"remat: found {remat!r}, expected one of {', '.join(get_args(Remat))}")
    if device is None:
      device = default_device() if batch_sharding is None else batch_sharding.mesh.devices.flat[0]
    self.scan = training and device.platform == "tpu" if scan is None else scan
    width, patch = config.width, config.patch_size
    self.patch_embed = Linear(patch * patch * 3, width, dtype=dtype, rngs=rngs)

    def token():
      return nnx.Param(_normal(rngs.params(), (1, 1, 1, width), jnp.float32))

    self.mask_token, self.segment_token_x, self.segment_token_y = token(), token(), token()
    self.type_token_cls, self.type_token_ins = token(), token()
    # The class token at the front is never used. It is kept so that a checkpoint converts back unchanged.
    self.pos_embed = nnx.Param(_trunc_normal(rngs.params(), (1, config.posemb_size**2 + 1, width), jnp.float32))
    block = functools.partial(
      Block,
      config,
      dtype=dtype,
      attention=attention_lib.choose(attention, config, self.dtype, device=device, training=training),
      batch_sharding=batch_sharding,
      rngs=rngs,
    )
    self.blocks = nnx.List([block() for _ in range(config.depth)])
    self.norm = nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
    features, values = width * len(config.feature_taps), patch * patch * config.decoder_dim
    self.decoder_embed = Linear(features, values, kernel_init=_xavier_uniform, dtype=dtype, rngs=rngs)
    self.decoder_pred = DecoderHead(config, dtype=dtype, rngs=rngs)

  def position_embedding(self, grid: tuple[int, int]) -> Float[Array, "1 rows cols d"]:
    """Returns the position embedding without its class token, resized to the grid as PyTorch's bicubic does.

    OpenCV computes the same as PyTorch: Keys' kernel with a = -0.75, half-pixel centers, repeated edges and no
    antialiasing. `jax.image.resize` uses a = -0.5 and antialiases, which gives other numbers.
    """
    size = self.config.posemb_size
    posemb = self.pos_embed[...][:, 1:].reshape(size, size, -1)
    if grid != (size, size):
      identity = np.eye(size, dtype=np.float32)
      to_rows, to_cols = (cv2.resize(identity, (size, n), interpolation=cv2.INTER_CUBIC) for n in grid)
      posemb = jnp.einsum("yi,xj,ijd->yxd", to_rows, to_cols, posemb, precision=jax.lax.Precision.HIGHEST)
    return posemb[None]

  def type_token(self, seg_type: SegType | Int[AnyArray, "b"]) -> Float[AnyArray, "_ 1 1 d"]:
    """Returns the type token of "semantic" or "instance", or one for each canvas from an array of 0 and 1."""
    if isinstance(seg_type, str):
      if seg_type not in ("semantic", "instance"):
        raise ValueError(f"seg_type: found {seg_type!r}, expected 'semantic', 'instance' or an array of 0 and 1")
      return (self.type_token_cls if seg_type == "semantic" else self.type_token_ins)[...]
    is_instance = jnp.asarray(seg_type).reshape(-1, 1, 1, 1) == 1
    return jnp.where(is_instance, self.type_token_ins[...], self.type_token_cls[...])

  def _batch_sharded(self, x: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """Keeps activations and their gradients sharded along the batch."""
    return x if self.batch_sharding is None else jax.lax.with_sharding_constraint(x, self.batch_sharding)

  def embed(
    self,
    images: Float[AnyArray, "b h w 3"],
    targets: Float[AnyArray, "b h w 3"],
    patch_mask: Bool[AnyArray, "b rows cols"],
    seg_type: SegType | Int[AnyArray, "b"],
    prompts_per_query: int,
  ) -> Float[Array, "b2 rows cols d"]:
    """Returns the tokens of images and targets, stacked by `stack_streams`; see `__call__` for the arguments."""
    patch = self.config.patch_size
    # Stacked first, so that both streams share one matrix product.
    patches = canvas.patchify(stack_streams(images, targets, prompts_per_query).astype(self.dtype), patch)
    tokens = self._batch_sharded(self.patch_embed(self._batch_sharded(patches)))
    x, y = unstack_streams(tokens, prompts_per_query)
    y = jnp.where(patch_mask[..., None], self.mask_token[...].astype(self.dtype), y)
    shared = self.position_embedding(x.shape[1:3]) + self.type_token(seg_type)
    x = x + (self.segment_token_x[...] + shared).astype(self.dtype)
    y = y + (self.segment_token_y[...] + shared).astype(self.dtype)
    return stack_streams(x, y, prompts_per_query)

  def encode(
    self, tokens: Float[Array, "b2 rows cols d"], prompts_per_query: int, key: PRNGKeyArray | None
  ) -> Float[Array, "b rows cols taps"]:
    """Runs the blocks.

    Args:
      tokens: the result of `embed`.
      prompts_per_query: K.
      key: random key for drop path; without one, there is no drop path.

    Returns:
      The normalized outputs of the feature taps, concatenated over channels.
    """
    merged, taps = self.config.merge_block + 1, [tap + 1 for tap in self.config.feature_taps]
    # Blocks between two places where something else happens, in groups of equal size.
    group = functools.reduce(math.gcd, (tap - merged for tap in taps)) or 1
    *_, x = self._run_blocks(range(merged), merged, tokens, prompts_per_query, key)
    image_stream, target_stream = unstack_streams(x, prompts_per_query)
    x = (image_stream + target_stream) * 0.5
    outputs = [x, *self._run_blocks(range(merged, max(taps)), group, x, prompts_per_query, key)]
    return jnp.concatenate([self.norm(outputs[(tap - merged) // group]) for tap in sorted(taps)], axis=-1)

  def _run_blocks(
    self, places: range, group: int, x: Float[Array, "b rows cols d"], prompts_per_query: int, key: PRNGKeyArray | None
  ) -> list[Float[Array, "b rows cols d"]]:
    """Runs blocks one after the other, and returns the output of the last one of each group of `group` blocks."""
    graphs, params = zip(*(nnx.split(self.blocks[place]) for place in places), strict=True) if places else ((), ())
    rates = jnp.linspace(0.0, self.config.drop_path_rate, self.config.depth)[np.asarray(places, int)]
    dropped = key is not None and self.config.drop_path_rate > 0
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.asarray(places, int)) if dropped else None

    def run(x, block):
      step = functools.partial(_run_block, graphs[0], prompts_per_query=prompts_per_query)
      if self.remat != "none":
        # A loop keeps its passes apart by itself.
        step = jax.checkpoint(step, policy=_SAVEABLE[self.remat], prevent_cse=not self.scan)
      return self._batch_sharded(step(*block, self._batch_sharded(x))), None

    def run_group(x, blocks):
      x, _ = jax.lax.scan(run, x, blocks)
      return x, x

    if not places:
      return []
    if self.scan:
      blocks = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *params), rates, keys)
      _, outputs = jax.lax.scan(
        run_group, x, jax.tree.map(lambda leaf: leaf.reshape(-1, group, *leaf.shape[1:]), blocks)
      )
      return list(outputs)
    outputs = []
    for place, own in enumerate(params):
      x, _ = run(x, (own, *jax.tree.map(operator.itemgetter(place), (rates, keys))))
      outputs.append(x)
    return outputs[group - 1 :: group]

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
    """Predicts the colors of target canvases.

    Args:
      images: normalized canvases, prompt over query.
      targets: normalized colored masks of the same canvases; not read where `patch_mask` is True.
      patch_mask: True for patches whose target is hidden.
      seg_type: "semantic", "instance", or an array with 0 (semantic) or 1 (instance) for each canvas.
      prompts_per_query: K. The batch size must be a multiple of it, and the K canvases of one query consecutive.
      deterministic: False turns on drop path, which needs `key`.
      key: random key for drop path.

    Returns:
      Normalized float32 colors of the whole canvas.

    Raises:
      ValueError: a side of the canvas is no multiple of the patch size, the batch size is no multiple of
        `prompts_per_query`, the number of patch rows is odd with several prompts, or `key` is missing.
    """
    rows, cols = canvas.grid_size(images.shape[1:3], self.config.patch_size)
    if patch_mask.shape[1:] != (rows, cols):
      raise ValueError(f"patch_mask: found grid {patch_mask.shape[1:]}, expected {(rows, cols)}")
    if images.shape[0] % prompts_per_query:
      raise ValueError(f"batch: found {images.shape[0]} canvases, expected a multiple of {prompts_per_query=}")
    if prompts_per_query > 1 and rows % 2:
      raise ValueError(f"canvas: found {rows} rows of patches, expected an even number to ensemble the query half")
    if not deterministic and key is None:
      raise ValueError("key: found None, expected a JAX random key when deterministic is False")
    tokens = self.embed(images, targets, patch_mask, seg_type, prompts_per_query)
    return self.decode(self.encode(tokens, prompts_per_query, None if deterministic else key))

  def decode(self, features: Float[Array, "b rows cols taps"]) -> Float[Array, "b h w 3"]:
    """Turns the features of `encode` into normalized float32 colors."""
    pixels = self._batch_sharded(canvas.unpatchify(self.decoder_embed(features), self.config.patch_size))
    return self.decoder_pred(pixels).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("prompts_per_query",))
def _run_block(graph, params, drop_path_rate, key, x, *, prompts_per_query):
  """Runs one block as a function of its parameters, so that equal blocks are traced once and remat can wrap it."""
  return nnx.merge(graph, params)(x, key, prompts_per_query=prompts_per_query, drop_path_rate=drop_path_rate)
