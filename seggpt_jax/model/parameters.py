"""The parameters of a SegGPT as one flat dictionary: split, merge, compare, resize.

Everywhere outside the network itself parameters are this flat dictionary: one pytree for jit, the optimizer, sharding
rules, checkpoints and conversion.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seggpt_jax.errors import InputError
from seggpt_jax.model.attention.relative_positions import linear_resize_matrix
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT

Params = dict[str, Any]  # jax.Array, np.ndarray, or only its ShapeDtypeStruct


def default_dtype() -> jnp.dtype:
  """What is computed in unless asked otherwise: float32 on CPUs, bfloat16 on accelerators."""
  return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def split(model: SegGPT) -> tuple[nnx.GraphDef, Params]:
  """The model's structure (static, hashable) and its parameters under dotted names."""
  graph, state = nnx.split(model)
  return graph, {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def merge(graph: nnx.GraphDef, params: Mapping[str, Any]) -> SegGPT:
  """Inverse of `split`; cheap enough to stand inside jit."""

  def path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))

  return nnx.merge(graph, nnx.from_flat_state([(path(name), value) for name, value in params.items()]))


def abstract(config: SegGPTConfig, **options: Any) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
  """`split` of a model that was never initialized: structure, and shapes instead of parameters."""
  return split(nnx.eval_shape(lambda: SegGPT(config, rngs=nnx.Rngs(0), **options)))


def check_shapes(source: str, params: Mapping[str, Any], config: SegGPTConfig) -> None:
  """Raises InputError, naming `source`, unless the parameters are exactly those of the architecture."""
  check_like(source, params, abstract(config)[1])


def check_like(source: str, params: Mapping[str, Any], expected: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Raises InputError, naming `source`, unless the parameters have exactly these names and shapes."""
  for kind, names in (("missing", expected.keys() - params.keys()), ("unexpected", params.keys() - expected.keys())):
    if names:
      raise InputError(f"{source}: {len(names)} {kind} parameters, first {sorted(names)[0]!r}")
  for name, shape in expected.items():
    if tuple(params[name].shape) != shape.shape:
      raise InputError(f"{source}: {name} has shape {tuple(params[name].shape)}, expected {shape.shape}")


def check_finite(source: str, params: Mapping[str, np.ndarray]) -> None:
  """Raises InputError, naming `source`, for parameters that are not all numbers, as a training leaves that diverged."""
  for name, value in params.items():
    # A sum is quick and catches them all; only where it is not finite they are counted, for it may have overflowed.
    if not np.isfinite(np.sum(value, dtype=np.float32)):
      count = int(np.sum(~np.isfinite(value.astype(np.float32))))
      if count:
        raise InputError(f"{source}: {name} holds {count} values that are not finite, expected numbers")


def fingerprint(params: Mapping[str, Any]) -> str:
  """By which parameters are known again wherever they lie: a digest of their names, shapes and values as float32.

  It is of parameters as they are stored, before they are resized for a canvas. One after the other is made float32 and
  read, a second or two for the released weights.

  Args:
    params: parameters, on the host or not.

  Returns:
    32 hexadecimal digits.
  """
  digest = hashlib.blake2b(digest_size=16)
  for name in sorted(params):
    value = np.asarray(params[name], np.dtype("<f4"), order="C")
    digest.update(f"{name} {value.shape}\n".encode())
    digest.update(value)
  return digest.hexdigest()


def resize_canvas(
  params: Mapping[str, np.ndarray], config: SegGPTConfig, canvas_size: tuple[int, int]
) -> dict[str, np.ndarray]:
  """The same network for another canvas: its relative positions are resized linearly, as PyTorch's SegGPT does.

  The network does this by itself at every call with canvases of another size; a fine-tuning wants it done once, so
  that the tables it trains are those of its own canvas.

  Args:
    params: parameters.
    config: their architecture.
    canvas_size: height and width in pixels.

  Returns:
    Parameters for that canvas.
  """
  resized = dict(params)
  grid = dataclasses.replace(config, canvas_size=canvas_size).grid
  for name, value in params.items():
    for suffix, size in zip(("rel_pos_h", "rel_pos_w"), grid, strict=True):
      if name.endswith(suffix) and value.shape[0] != 2 * size - 1:
        resized[name] = linear_resize_matrix(2 * size - 1, value.shape[0]) @ value.astype(np.float32)
  return resized
