"""Computes features of images with the network's encoder, to compare images.

In: uint8 images of half a canvas, and the share of foreground in each patch. Out: float32 vectors, one for each image
and one for its foreground, and the tokens of the patches, which stay on the device.

The image fills both halves of the canvas. All targets are hidden by mask tokens, with the token of semantic
segmentation, so that the features depend on the image only. They are read from the query's half.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from seggpt_jax import canvas
from seggpt_jax.compilation import default_device, jit
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.matcher import Matcher
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.typing import AnyArray

# Increase it whenever the same weights and files give other features than before; cached features are then ignored.
_VERSION = 1
# CPUs are not faster with larger batches.
_BATCH = {"cpu": 4}
_BLOCK = 256  # prompts that are compared at a time
_BEST_SHARE = 0.05  # share of a query's patches that decides how well a foreground is found in it


class Features(NamedTuple):
  """The features of a batch of images, not normalized, because some have to be centered first."""

  image: Float[Array, "b d"]  # mean over all patches
  foreground: Float[Array, "b d"]  # mean weighted by the share of foreground in each patch; 0 without foreground
  patches: Float[Array, "b rows cols d"]  # tokens of the query's half


class Encoder:
  """Computes features with a network, in one compiled program for all batches.

  Args:
    model: the network. Its parameters stay on their current devices.
    tap: feature tap to read, 1 for the first. Blocks after the tap are not computed.
    batch_size: largest number of images at once; by default the fastest for many images.

  Raises:
    InputError: the network has no such tap.
  """

  def __init__(self, model: SegGPT, tap: int, batch_size: int | None = None):
    taps = model.config.feature_taps
    if not 1 <= tap <= len(taps):
      raise InputError(f"tap: found {tap}, expected 1..{len(taps)}: the network has {len(taps)} feature taps")
    self.config, self.tap = model.config, tap
    self.batch_size = batch_size or _BATCH.get(default_device().platform, 16)
    self._dtype = model.dtype
    self._graph, self._params = parameters.split(model)

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of the input images in pixels."""
    height, width = self.config.canvas_size
    return height // 2, width

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches in an image."""
    rows, cols = self.config.grid
    return rows // 2, cols

  @functools.cached_property
  def identity(self) -> str:
    """A digest of the weights and of everything else that the features depend on."""
    made_by = (_VERSION, self.tap, str(self._dtype), json.dumps(self.config.to_dict()))
    parts = (*map(str, made_by), parameters.fingerprint(self._params))
    return hashlib.blake2b("\n".join(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()

  def __call__(
    self, images: UInt8[np.ndarray, "n h w 3"], shares: Float[np.ndarray, "n rows cols"] | None = None
  ) -> Features:
    """Computes the features of up to `batch_size` images.

    Args:
      images: images of `size`.
      shares: share of foreground in each patch, 0 to 1; 0 by default.
    """
    count = len(images)
    if shares is None:
      shares = np.zeros((count, *self.grid), np.float32)
    # A smaller batch is filled up with black images, because another size would be compiled again.
    fill = ((0, self.batch_size - count), (0, 0), (0, 0))
    images, shares = np.pad(images, (*fill, (0, 0))), np.pad(shares, fill)
    found = encode(self._graph, self._params, images, shares.astype(np.float32), self.tap)
    return Features(*(part[:count] for part in found))


@jit(static_argnames=("graph", "tap"))
def encode(
  graph: nnx.GraphDef,
  params: parameters.Params,
  images: UInt8[AnyArray, "b h w 3"],
  shares: Float[AnyArray, "b rows cols"],
  tap: int,
) -> Features:
  """Runs the network up to a feature tap and pools its tokens."""
  model = parameters.merge(graph, params)
  config = model.config
  pixels = canvas.normalize(images, config.image_mean, config.image_std)
  if isinstance(model, Matcher):
    patches = model.patches(pixels).astype(jnp.float32)
  else:
    canvases = jnp.concatenate([pixels, pixels], axis=1)
    hidden = jnp.ones((images.shape[0], *config.grid), bool)
    tokens = model.embed(canvases, jnp.zeros_like(canvases), hidden, "semantic", 1)
    taps = jnp.split(model.encode(tokens, 1, None), len(config.feature_taps), axis=-1)
    patches = canvas.query_half(taps[tap - 1]).astype(jnp.float32)
  total = jnp.sum(shares, axis=(1, 2))[:, None]
  weighted = jnp.einsum("brc,brcd->bd", shares, patches, precision=jax.lax.Precision.HIGHEST)
  foreground = weighted / jnp.where(total > 0, total, 1.0)
  return Features(jnp.mean(patches, axis=(1, 2)), foreground, patches)


def normalized(vectors: Float[AnyArray, "*b d"]) -> Float[Array, "*b d"]:
  """Returns vectors scaled to length 1; zero vectors stay zero."""
  length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / jnp.maximum(length, 1e-12)


@jit
def presence(
  patches: Float[AnyArray, "b rows cols d"], foregrounds: Float[AnyArray, "blocks p d"], mean: Float[AnyArray, "d"]
) -> Float[Array, "b prompts"]:
  """Measures how well the foreground of each prompt is found in each query.

  Args:
    patches: tokens of the queries.
    foregrounds: foreground features of the prompts, centered and normalized, in blocks from `in_blocks`.
    mean: mean that is subtracted from the tokens, the same as for the foregrounds.

  Returns:
    The mean of the largest twentieth of the cosines between a query's patches and a prompt, -1 to 1.
  """
  batch, rows, cols, width = patches.shape
  tokens = normalized(patches.reshape(batch, rows * cols, width) - mean[None, None])
  best = max(round(_BEST_SHARE * rows * cols), 1)

  def best_cosines(block: Array) -> Array:
    cosines = jnp.einsum("bnd,pd->bpn", tokens, block)
    return jnp.mean(jax.lax.top_k(cosines, best)[0], axis=-1)

  # One block after the other, because the cosines of all patches with all prompts can take gigabytes.
  found = jax.lax.map(best_cosines, foregrounds)
  return jnp.moveaxis(found, 0, 1).reshape(batch, -1)


def in_blocks(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "blocks p d"]:
  """Cuts vectors into equal blocks for `presence`; the last block is filled up with zeros."""
  count, width = vectors.shape
  blocks = -(-count // _BLOCK)
  return np.pad(vectors, ((0, blocks * _BLOCK - count), (0, 0))).reshape(blocks, _BLOCK, width)
