"""Linear layer, convolution and GELU: the numbers of Flax and JAX, at less cost once they are compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from seggpt_jax.typing import AnyArray


class Linear(nnx.Linear):
  """A linear layer over flattened leading axes.

  The gradient of the kernel then sums over one axis, a plain matrix product; over several, XLA first copies both
  factors into another layout on some devices.
  """

  def __call__(self, x: Float[AnyArray, "*b i"]) -> Float[Array, "*b o"]:
    y = _whole_gradient(super().__call__(x.reshape(-1, x.shape[-1])))
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


def _convolve_backward(kept, gradient):
  """Both gradients; on CPUs as convolutions of images with kernels.

  JAX names other dimensions as images and kernels instead. XLA's CPU compiler puts those in order, but not inside a
  loop, where micro-batches are: there they took 30 times as long.
  """

  def by_name(x, kernel, gradient):
    return jax.vjp(_plain_convolution, x, kernel)[1](gradient)

  def in_order(x, kernel, gradient):
    of_x = _plain_convolution(gradient, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    # The batch is what is summed over, as channels are in the forward pass.
    inputs, outputs = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(gradient, (1, 2, 0, 3))
    of_kernel = jax.lax.conv_general_dilated(
      inputs, outputs, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return of_x, jnp.transpose(of_kernel, (1, 2, 0, 3))

  return jax.lax.platform_dependent(*kept, gradient, cpu=in_order, default=by_name)


_convolve.defvjp(lambda x, kernel: (_plain_convolution(x, kernel), (x, kernel)), _convolve_backward)


@jax.custom_vjp
def _whole_gradient(x: Float[Array, "t c"]) -> Float[Array, "t c"]:
  """The identity; its gradient is written to memory before it is used, on CPUs.

  A bias' gradient is a sum over columns, and XLA's CPU compiler would compute what is summed, GELU's gradient say,
  anew in a loop over columns: half of a step's time.
  """
  return x


def _whole_gradient_backward(_, gradient):
  return (jax.lax.platform_dependent(gradient, cpu=jax.lax.optimization_barrier, default=lambda x: x),)


_whole_gradient.defvjp(lambda x: (x, None), _whole_gradient_backward)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """The exact (erf) GELU."""
  # JAX's goes by erfc, which keeps the negative tail in 16 bits but costs several times erf; float32 can do without.
  return _gelu(x) if x.dtype == jnp.float32 else jax.nn.gelu(x, approximate=False)


@jax.custom_vjp
def _gelu(x):
  return x * _normal_distribution(x)


def _normal_distribution(x):
  return 0.5 * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def _gelu_backward(x, gradient):
  # Only x is kept: erf again is cheaper than writing it down and reading it.
  density = jnp.exp(-0.5 * x * x) * np.float32(1.0 / np.sqrt(2.0 * np.pi))
  return (gradient * (_normal_distribution(x) + x * density),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)
