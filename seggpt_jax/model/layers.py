"""Linear layer and GELU as the network uses them: the numbers of Flax and JAX, at less cost when compiled."""

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
