"""Adapters, which train a few parameters next to a frozen network: LoRA, and a learned prompt (in-context tuning).

In: the network's parameters and the adapter's. Out: parameters for an unchanged network, and canvases. The network
does not know about adapters: a LoRA is added to the network's kernels, a learned prompt replaces the prompt half of
the canvases. Everything is a pure function of arrays, differentiated with respect to the adapter's parameters only.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from seggpt_jax.errors import InputError
from seggpt_jax.typing import AnyArray, Params

LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Low-rank updates of the blocks' kernels (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank * A B.

  The sum is computed once per step and costs no more memory than the kernels, so the network runs at its usual speed.
  A trained LoRA merges into plain weights exactly.

  Raises:
    InputError: a value is out of range, or a target is unknown.
  """

  rank: int = 8  # number of columns of A and of rows of B
  alpha: float = 8.0  # scale of the update; with alpha = rank the update is A B
  # kernels to update in every block: qkv and proj of the attention, fc1 and fc2 of the MLP
  targets: tuple[str, ...] = LORA_TARGETS

  def __post_init__(self):
    if self.rank < 1 or not 0 < self.alpha < math.inf:
      raise InputError(f"lora: found rank {self.rank} and alpha {self.alpha}, expected both above 0")
    unknown = set(self.targets) - set(LORA_TARGETS)
    if unknown or not self.targets:
      raise InputError(f"lora: found targets {self.targets}, expected some of {', '.join(LORA_TARGETS)}")

  def _kernels(self, params: Mapping[str, Any]) -> list[str]:
    pattern = re.compile(rf"blocks\.\d+\.\w+\.({'|'.join(self.targets)})\.kernel")
    return [name for name in params if pattern.fullmatch(name)]

  def init(self, params: Mapping[str, Any], canvas_size: tuple[int, int], key: PRNGKeyArray) -> Params:
    """Draws A from Kaiming's uniform distribution and sets B to zero, so that the network is unchanged at first."""
    del canvas_size
    adapter: Params = {}
    for index, name in enumerate(sorted(self._kernels(params))):
      rows, cols = params[name].shape
      bound = rows**-0.5
      adapter[f"lora.{name}.a"] = jax.random.uniform(
        jax.random.fold_in(key, index), (rows, self.rank), jnp.float32, -bound, bound
      )
      adapter[f"lora.{name}.b"] = jnp.zeros((self.rank, cols), jnp.float32)
    return adapter

  def merge(self, params: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
    """Returns the network's parameters with the updates added."""
    merged = dict(params)
    for name in self._kernels(params):
      a, b = (jnp.asarray(adapter[f"lora.{name}.{part}"]) for part in "ab")
      # In full precision, so that a training step and the merged weights use the same numbers.
      update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
      merged[name] = jnp.asarray(params[name]) + self.alpha / self.rank * update
    return merged

  def prompt(
    self, images: Float[AnyArray, "b h w 3"], targets: Float[AnyArray, "b h w 3"], adapter: Mapping[str, Any]
  ) -> tuple[Array, Array]:
    """Returns the canvases unchanged."""
    del adapter
    return jnp.asarray(images), jnp.asarray(targets)


@dataclasses.dataclass(frozen=True)
class LearnedPrompt:
  """In-context tuning (Wang et al. 2023, arXiv 2304.03284, section 3.3): a prompt image and its target, both learned.

  Both are normalized values [S, S, 3] that replace the prompt half of the canvases. The learned target contains the
  colors of one palette, so it is trained and used with the fixed palette. The query's half is always hidden.
  """

  def init(self, params: Mapping[str, Any], canvas_size: tuple[int, int], key: PRNGKeyArray) -> Params:
    """Draws an image and a target of normal noise, which has the scale of normalized images."""
    del params
    shape = (canvas_size[0] // 2, canvas_size[1], 3)
    image, target = jax.random.split(key)
    return {
      "prompt.image": jax.random.normal(image, shape, jnp.float32),
      "prompt.target": jax.random.normal(target, shape, jnp.float32),
    }

  def merge(self, params: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
    """Returns the network's parameters unchanged."""
    del adapter
    return dict(params)

  def prompt(
    self, images: Float[AnyArray, "b h w 3"], targets: Float[AnyArray, "b h w 3"], adapter: Mapping[str, Any]
  ) -> tuple[Array, Array]:
    """Replaces the upper halves of images and targets by the learned prompt and its target."""

    def replace_upper(learned: Any, canvases: Any) -> Array:
      half = canvases.shape[1] // 2
      upper = jnp.broadcast_to(jnp.asarray(learned, canvases.dtype), (len(canvases), *learned.shape))
      return jnp.concatenate([upper, jnp.asarray(canvases)[:, half:]], axis=1)

    return replace_upper(adapter["prompt.image"], images), replace_upper(adapter["prompt.target"], targets)


Adapter = LoRA | LearnedPrompt
KINDS = {"lora": LoRA, "prompt": LearnedPrompt}
HEADS = ("head", "features")  # kinds of training that learn a head, the second with the features that it sees


def is_adapter_name(name: str) -> bool:
  """Returns True if a parameter of this name belongs to an adapter or a trained head, and not to the network."""
  return name.startswith(("lora.", "prompt.", "pixel_head."))


def to_dict(adapter: Adapter) -> dict[str, Any]:
  """Returns an adapter's kind and attributes as a dictionary for JSON."""
  kind = next(name for name, cls in KINDS.items() if isinstance(adapter, cls))
  return {"kind": kind, **dataclasses.asdict(adapter)}


def from_dict(values: Mapping[str, Any]) -> Adapter:
  """Inverts `to_dict`.

  Raises:
    InputError: the kind or an attribute is unknown.
  """
  values = dict(values)
  kind = values.pop("kind", None)
  if kind not in KINDS:
    raise InputError(f"adapter: found kind {kind!r}, expected one of {', '.join(KINDS)}")
  try:
    return KINDS[kind](**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
  except TypeError as error:
    raise InputError(f"adapter: cannot be read: {error}") from error
