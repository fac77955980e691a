"""What the network's own encoder says about images, for comparing them.

In: uint8 images of half a canvas, and what share of each patch is foreground. Out: float32 vectors, one for each image
and one for its foreground, and the tokens of the patches, which stay on the device.

The image stands in both halves of the canvas, as its own prompt, with every target hidden by the mask token and the
token of semantic segmentation: what is read is the image alone, in the place where queries lie.
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
from seggpt_jax.compilation import jit
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.typing import AnyArray

# To be raised whenever the same weights and files give other features than before: stored ones are then not used again.
_VERSION = 1
# As for predictions: a CPU is no faster with larger batches.
_BATCH = {"cpu": 4}
_BLOCK = 256  # prompts that are compared at a time
_BEST_SHARE = 0.05  # of a query's patches, whose mean says whether something is found in it


class Features(NamedTuple):
  """Of a batch of images; nothing is normalized yet, since what is centered has to be centered first.

  Attributes:
    image: the mean over all patches.
    foreground: the mean weighted by the share of foreground in each patch; 0 where there is none.
    patches: the tokens of the query half.
  """

  image: Float[Array, "b d"]
  foreground: Float[Array, "b d"]
  patches: Float[Array, "b rows cols d"]


class Encoder:
  """A network as a maker of features; one compiled program for all batches.

  Args:
    model: the network; its parameters stay where they lie.
    tap: which of its feature taps is read, 1 for the first. What lies behind it is not computed.

  Raises:
    InputError: the network has no such tap.
  """

  def __init__(self, model: SegGPT, tap: int):
    taps = model.config.feature_taps
    if not 1 <= tap <= len(taps):
      raise InputError(f"tap: found {tap}, expected 1..{len(taps)}: the network has {len(taps)} feature taps")
    self.config, self.tap = model.config, tap
    self.batch_size = _BATCH.get(jax.default_backend(), 16)
    self._dtype = model.dtype
    self._graph, self._params = parameters.split(model)

  @property
  def size(self) -> tuple[int, int]:
    """Height and width in pixels of the images it takes."""
    height, width = self.config.canvas_size
    return height // 2, width

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches of an image."""
    rows, cols = self.config.grid
    return rows // 2, cols

  @functools.cached_property
  def identity(self) -> str:
    """By which features are known as its own: a digest of the weights and of everything else that they depend on."""
    made_by = (_VERSION, self.tap, str(self._dtype), json.dumps(self.config.to_dict()))
    parts = (*map(str, made_by), parameters.fingerprint(self._params))
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

  def __call__(
    self, images: UInt8[np.ndarray, "n h w 3"], shares: Float[np.ndarray, "n rows cols"] | None = None
  ) -> Features:
    """Features of up to `batch_size` images.

    Args:
      images: of `size`.
      shares: of foreground in each patch, 0..1; by default none.
    """
    count = len(images)
    if shares is None:
      shares = np.zeros((count, *self.grid), np.float32)
    # A batch that is not full is filled up with black: another size would be compiled anew.
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
  """Runs the network as far as a feature tap and pools what comes out.

  Args:
    graph: structure of the model.
    params: its parameters.
    images: of half a canvas.
    shares: of foreground in each patch.
    tap: 1 for the first.
  """
  model = parameters.merge(graph, params)
  config = model.config
  pixels = canvas.normalize(images, config.image_mean, config.image_std)
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
  """Scaled to length 1; 0 stays 0."""
  length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / jnp.maximum(length, 1e-12)


@jit
def presence(
  patches: Float[AnyArray, "b rows cols d"], foregrounds: Float[AnyArray, "blocks p d"], mean: Float[AnyArray, "d"]
) -> Float[Array, "b prompts"]:
  """How well the foreground of each prompt is found in each query.

  Args:
    patches: tokens of the queries.
    foregrounds: of the prompts, centered and normalized, in equal blocks as of `in_blocks`.
    mean: what centers the queries' patches likewise.

  Returns:
    The mean of the best twentieth of a query's patch cosines with the prompt, -1..1.
  """
  batch, rows, cols, width = patches.shape
  tokens = normalized(patches.reshape(batch, rows * cols, width) - mean[None, None])
  best = max(round(_BEST_SHARE * rows * cols), 1)

  def of_block(block: Array) -> Array:
    cosines = jnp.einsum("bnd,pd->bpn", tokens, block)
    return jnp.mean(jax.lax.top_k(cosines, best)[0], axis=-1)

  # One block after the other: cosines of all patches with all prompts at once would be gigabytes.
  found = jax.lax.map(of_block, foregrounds)
  return jnp.moveaxis(found, 0, 1).reshape(batch, -1)


def in_blocks(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "blocks p d"]:
  """Cut into blocks for `presence`, the last one filled up with 0."""
  count, width = vectors.shape
  blocks = -(-count // _BLOCK)
  return np.pad(vectors, ((0, blocks * _BLOCK - count), (0, 0))).reshape(blocks, _BLOCK, width)
