"""The parameters of a SegGPT as one flat dictionary: split, merge, check, fingerprint, resize.

Everywhere outside the network, parameters are this flat dictionary from dotted names to arrays. It is one pytree for
jit, the optimizer, sharding rules, checkpoints and conversion. Reading and writing it is done in `weights.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seggpt_jax.compilation import default_device
from seggpt_jax.errors import InputError
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.matcher import Matcher
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.typing import Params


def find_device(named: jax.Device | str) -> jax.Device:
  """Returns a device as it is, or the first one of a platform.

  Raises:
    InputError: JAX finds no such platform.
  """
  try:
    return jax.devices(named)[0] if isinstance(named, str) else named
  except RuntimeError as error:
    raise InputError(f"device: found {named!r}, expected a platform that JAX finds here, such as 'cpu'") from error


def default_dtype(device: jax.Device | None = None) -> jnp.dtype:
  """Returns the default compute dtype of a device, by default that of new arrays: float32 on CPUs, else bfloat16."""
  platform = (default_device() if device is None else device).platform
  return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)


def split(model: SegGPT) -> tuple[nnx.GraphDef, Params]:
  """Splits a model into its structure (static, hashable) and its parameters under dotted names."""
  graph, state = nnx.split(model)
  return graph, {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def merge(graph: nnx.GraphDef, params: Mapping[str, Any]) -> SegGPT:
  """Inverts `split`; cheap enough to be called inside jit."""

  def path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))

  return nnx.merge(graph, nnx.from_flat_state([(path(name), value) for name, value in params.items()]))


def network(config: SegGPTConfig, seed: int = 0, **options: Any) -> SegGPT:
  """Returns a network of an architecture with random parameters.

  Args:
    config: the architecture; with a backbone it is a `Matcher`, else a `SegGPT`.
    seed: of the parameters.
    **options: options of the network, such as `dtype`.
  """
  return (Matcher if config.backbone else SegGPT)(config, rngs=nnx.Rngs(seed), **options)


def abstract(config: SegGPTConfig, **options: Any) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
  """Returns what `split` would return, with shapes in place of parameters and without initializing any."""
  graph, shapes = _abstract(config, default_device(), **options)
  return graph, dict(shapes)


@functools.lru_cache(maxsize=8)  # building a network takes a second, and a run asks three times
def _abstract(
  config: SegGPTConfig, chosen_for: jax.Device, /, **options: Any
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
  """Returns what `abstract` returns; attention and number format are by default those of the device `chosen_for`."""
  return split(nnx.eval_shape(lambda: network(config, **options)))


def build_model(config: SegGPTConfig, params: Mapping[str, Any], **options: Any) -> SegGPT:
  """Returns a SegGPT with the given parameters, converted to float32 and put on the default device."""
  return fill(abstract(config, **options)[0], params)


def fill(graph: nnx.GraphDef, params: Mapping[str, Any]) -> SegGPT:
  """Returns the SegGPT of a structure with the given parameters, see `build_model`."""
  return merge(graph, {name: jnp.asarray(value, jnp.float32) for name, value in params.items()})


def check_shapes(source: str, params: Mapping[str, Any], expected: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Checks that parameters have exactly the expected names and shapes.

  Args:
    source: where the parameters come from, for the error.
    params: parameters.
    expected: names and shapes, as the second result of `abstract`.

  Raises:
    InputError: a name is missing, unexpected, or has another shape.
  """
  for kind, names in (("missing", expected.keys() - params.keys()), ("unexpected", params.keys() - expected.keys())):
    if names:
      raise InputError(f"{source}: {len(names)} {kind} parameters, first {sorted(names)[0]!r}")
  for name, shape in expected.items():
    if tuple(params[name].shape) != shape.shape:
      raise InputError(f"{source}: {name} has shape {tuple(params[name].shape)}, expected {shape.shape}")


def check_depth(source: str, params: Mapping[str, Any], config: SegGPTConfig) -> None:
  """Checks that parameters have the blocks of an architecture, before seconds are spent on building a deep network.

  Args:
    source: where the parameters come from, for the error.
    params: parameters of the network, or of an adapter, which may have none of blocks.
    config: the architecture.

  Raises:
    InputError: there are more or fewer blocks.
  """
  found = {match[1] for name in params if (match := re.search(r"^(?:lora\.)?blocks\.(\d+)\.", name))}
  if found and len(found) != config.depth:
    raise InputError(f"{source}: found parameters of {len(found)} blocks, expected depth = {config.depth}")


def check_finite(source: str, params: Mapping[str, np.ndarray]) -> None:
  """Checks that all parameters are finite, which they are not after a training that diverged.

  Raises:
    InputError: a parameter holds infinite values or NaN.
  """
  for name, value in params.items():
    with np.errstate(over="ignore"):
      total = np.sum(value, dtype=np.float32)
    # A sum is quick and finds every such value. It may also overflow, so only the count decides.
    if not np.isfinite(total):
      count = int(np.sum(~np.isfinite(value.astype(np.float32))))
      if count:
        raise InputError(f"{source}: {name} holds {count} values that are not finite, expected numbers")


def to_float16(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Rounds parameters to float16, as host arrays.

  Raises:
    ValueError: a parameter is too large for float16.
  """
  with np.errstate(over="ignore"):  # the loop below raises an error that names the parameter
    halves = {name: np.asarray(value).astype(np.float16) for name, value in params.items()}
  for name, value in halves.items():
    if not np.isfinite(value).all():
      raise ValueError(f"{name}: found values beyond the range of float16, expected at most 65504")
  return halves


StoredDtype = Literal["float32", "float16"]


def stored_params(params: Mapping[str, Any], dtype: StoredDtype) -> dict[str, Any]:
  """Returns parameters for an exported file: the kernels of blocks and of the decoder's first layer in a dtype.

  These kernels are more than 95% of a network. The others stay float32, because rounding the rest doubles the error:
  each scale of a normalization, for instance, changes all products behind it.

  Raises:
    ValueError: a large kernel holds values beyond float16.
  """
  large = [name for name in params if name.endswith(".kernel") and name.startswith(("blocks.", "decoder_embed."))]
  return dict(params) if dtype == "float32" else {**params, **to_float16({name: params[name] for name in large})}


def fingerprint(params: Mapping[str, Any]) -> str:
  """Returns a content hash that identifies parameters wherever they are stored.

  The hash covers names, shapes and values as float32. It identifies parameters as they are stored, before they are
  resized for another canvas. It takes a second or two for the released weights.

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
  """Resizes the tables of relative positions for another canvas, linearly as PyTorch's SegGPT does.

  The network also resizes them at every call with canvases of another size. Fine-tuning needs it done once, so that the
  trained tables have the size of the canvases.
  """
  resized = dict(params)
  grid = dataclasses.replace(config, canvas_size=canvas_size).grid
  for name, value in params.items():
    for suffix, size in zip(("rel_pos_h", "rel_pos_w"), grid, strict=True):
      if name.endswith(suffix) and value.shape[0] != 2 * size - 1:
        table = np.ascontiguousarray(value, np.float32)
        resized[name] = cv2.resize(table, (value.shape[1], 2 * size - 1), interpolation=cv2.INTER_LINEAR)
  return resized
