"""Layers: linear, convolution and GELU as in Flax but faster once compiled, and a block that attends to others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.typing import AnyArray


class Linear(nnx.Linear):
  """A linear layer over flattened leading axes.

  The gradient of the kernel then is a plain matrix product. With several leading axes, XLA first copies both factors
  into another layout on some devices.
  """

  def __call__(self, x: Float[AnyArray, "*b i"]) -> Float[Array, "*b o"]:
    y = _materialize_gradient(super().__call__(x.reshape(-1, x.shape[-1])))
    return y.reshape(*x.shape[:-1], -1)


class Conv3x3(nnx.Conv):
  """A 3x3 convolution of stride 1 that keeps height and width."""

  def __init__(self, in_features: int, out_features: int, *, dtype, rngs: nnx.Rngs):
    super().__init__(in_features, out_features, (3, 3), padding="SAME", dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    x, kernel, bias = (jnp.asarray(part, self.dtype) for part in (x, self.kernel[...], self.bias[...]))
    return _convolve(x, kernel) + bias[None, None, None]


def _plain_convolution(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


_convolve = jax.custom_vjp(_plain_convolution)


def _convolve_backward(saved, gradient):
  """Returns both gradients by ordinary NHWC convolutions on CPUs.

  XLA does not transpose JAX's own back inside a loop, where micro-batches run: they took 30 times as long.
  """

  def jax_gradients(x, kernel, gradient):
    return jax.vjp(_plain_convolution, x, kernel)[1](gradient)

  def nhwc_gradients(x, kernel, gradient):
    d_x = _plain_convolution(gradient, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    # The gradient of the kernel sums over the batch as the forward pass sums over channels, so the two swap places.
    inputs, outputs = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(gradient, (1, 2, 0, 3))
    d_kernel = jax.lax.conv_general_dilated(
      inputs, outputs, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return d_x, jnp.transpose(d_kernel, (1, 2, 0, 3))

  return jax.lax.platform_dependent(*saved, gradient, cpu=nhwc_gradients, default=jax_gradients)


_convolve.defvjp(lambda x, kernel: (_plain_convolution(x, kernel), (x, kernel)), _convolve_backward)


@jax.custom_vjp
def _materialize_gradient(x: Float[Array, "t c"]) -> Float[Array, "t c"]:
  """Returns its input; on CPUs, its gradient is written to memory before it is used.

  XLA would recompute it, such as that of GELU, in the sum of a bias gradient: half of a step's time.
  """
  return x


def _materialize_gradient_backward(_, gradient):
  return (jax.lax.platform_dependent(gradient, cpu=jax.lax.optimization_barrier, default=lambda x: x),)


_materialize_gradient.defvjp(lambda x: (x, None), _materialize_gradient_backward)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Computes the exact (erf) GELU."""
  # JAX uses erfc, which keeps the negative tail accurate in 16 bits but costs several times as much as erf. float32 is
  # accurate with erf.
  return _gelu(x) if x.dtype == jnp.float32 else jax.nn.gelu(x, approximate=False)


@jax.custom_vjp
def _gelu(x):
  return x * _normal_distribution(x)


def _normal_distribution(x):
  return 0.5 * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def _gelu_backward(x, gradient):
  # Only x is saved: recomputing erf is cheaper than writing it to memory and reading it back.
  density = jnp.exp(-0.5 * x * x) * np.float32(1.0 / np.sqrt(2.0 * np.pi))
  return (gradient * (_normal_distribution(x) + x * density),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


@jax.jit  # its name tells an exporter what it is
def weighted_mean(
  query: Float[Array, "*b n d"], key: Float[Array, "*b m d"], value: Float[Array, "*b m e"]
) -> Float[Array, "*b n e"]:
  """Returns the means of values, weighted by the softmax of the products of queries and keys.

  The sum of the weights is one more value, so that no array of all weights is divided and written again.
  """
  scores = jnp.einsum("...nd,...md->...nm", query, key)
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  total = jnp.einsum("...nm,...me->...ne", weights, jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1))
  return total[..., :-1] / total[..., -1:]


class ContextAttention(nnx.Module):
  """Attention of tokens to themselves and to others."""

  def __init__(self, config: SegGPTConfig, *, dtype, rngs: nnx.Rngs):
    self.num_heads = config.num_heads
    self.qkv = Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
    self.proj = Linear(config.width, config.width, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], others: Float[Array, "b m d"] | None = None) -> Float[Array, "b n d"]:
    def heads(y):
      return y.reshape(*y.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
    if others is not None:
      added = jnp.split(self.qkv(others), 3, axis=-1)
      key, value = (jnp.concatenate(pair, axis=1) for pair in ((key, added[1]), (value, added[2])))
    scaled = heads(query) * (self.num_heads / x.shape[-1]) ** 0.5
    return self.proj(weighted_mean(scaled, heads(key), heads(value)).swapaxes(1, 2).reshape(x.shape))


class MLP(nnx.Module):
  """Two linear layers with a GELU between them."""

  def __init__(self, config: SegGPTConfig, *, dtype, rngs: nnx.Rngs):
    self.fc1 = Linear(config.width, config.mlp_dim, dtype=dtype, rngs=rngs)
    self.fc2 = Linear(config.mlp_dim, config.width, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    return self.fc2(gelu(self.fc1(x)))


class ContextBlock(nnx.Module):
  """A transformer block whose tokens attend to themselves and to others."""

  def __init__(self, config: SegGPTConfig, *, dtype, rngs: nnx.Rngs):
    self.norm1 = nnx.LayerNorm(config.width, dtype=dtype, rngs=rngs)
    self.attn = ContextAttention(config, dtype=dtype, rngs=rngs)
    self.norm2 = nnx.LayerNorm(config.width, dtype=dtype, rngs=rngs)
    self.mlp = MLP(config, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], others: Float[Array, "b m d"] | None = None) -> Float[Array, "b n d"]:
    x = x + self.attn(self.norm1(x), None if others is None else self.norm1(others))
    return x + self.mlp(self.norm2(x))
