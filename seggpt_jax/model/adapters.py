"""Small sets of parameters beside a frozen network: LoRA, and a learned prompt (in-context tuning).

In: the network's parameters and the adapter's own few. Out: parameters for the network as it is, and canvases. Nothing
in the network knows of adapters: a LoRA is added to the kernels it belongs to, a learned prompt takes the place of the
prompt half of the canvases. All are pure functions of arrays, to be differentiated by the adapter's parameters alone.
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
from seggpt_jax.typing import AnyArray

Params = dict[str, Any]

LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Low-rank updates of the blocks' kernels (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank * A B.

  The sum is made once in each step and costs no more than the kernels themselves, so the network runs at its own speed,
  and what was learned merges into plain weights exactly.

  Attributes:
    rank: columns of A and rows of B.
    alpha: scale of the update; with alpha = rank it is A B itself.
    targets: which kernels of every block: qkv and proj of the attention, fc1 and fc2 of the MLP.

  Raises:
    InputError: values that cannot be meant.
  """

  rank: int = 8
  alpha: float = 8.0
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
    """A uniform as Kaiming's, B zero: at first the network is what it was.

    Args:
      params: the network's, or their shapes.
      canvas_size: height and width in pixels; not needed here.
      key: of A.
    """
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
    """The network's parameters with the updates added.

    Args:
      params: the network's.
      adapter: as of `init`.
    """
    merged = dict(params)
    for name in self._kernels(params):
      a, b = (jnp.asarray(adapter[f"lora.{name}.{part}"]) for part in "ab")
      # In full precision: what is merged for a step and what is merged for good are the same numbers.
      update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
      merged[name] = jnp.asarray(params[name]) + self.alpha / self.rank * update
    return merged

  def prompt(
    self, images: Float[AnyArray, "b h w 3"], targets: Float[AnyArray, "b h w 3"], adapter: Mapping[str, Any]
  ) -> tuple[Array, Array]:
    """The canvases as they are."""
    del adapter
    return jnp.asarray(images), jnp.asarray(targets)


@dataclasses.dataclass(frozen=True)
class LearnedPrompt:
  """In-context tuning (Wang et al. 2023, arXiv 2304.03284, section 3.3): an image and its target, learned for a task.

  Both are normalized values [S, S, 3] in the place of the prompt half of the canvases. One palette belongs to them, so
  they are trained and used with the fixed one, and with the query's half hidden.
  """

  def init(self, params: Mapping[str, Any], canvas_size: tuple[int, int], key: PRNGKeyArray) -> Params:
    """Noise of the images' own scale.

    Args:
      params: the network's; not needed here.
      canvas_size: height and width in pixels.
      key: of the noise.
    """
    del params
    shape = (canvas_size[0] // 2, canvas_size[1], 3)
    image, target = jax.random.split(key)
    return {
      "prompt.image": jax.random.normal(image, shape, jnp.float32),
      "prompt.target": jax.random.normal(target, shape, jnp.float32),
    }

  def merge(self, params: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
    """The network's parameters as they are."""
    del adapter
    return dict(params)

  def prompt(
    self, images: Float[AnyArray, "b h w 3"], targets: Float[AnyArray, "b h w 3"], adapter: Mapping[str, Any]
  ) -> tuple[Array, Array]:
    """The learned prompt and its target over each query, in the place of those that the canvases have.

    Args:
      images: canvases, normalized.
      targets: likewise.
      adapter: as of `init`.
    """

    def over(learned: Any, canvases: Any) -> Array:
      half = canvases.shape[1] // 2
      upper = jnp.broadcast_to(jnp.asarray(learned, canvases.dtype), (len(canvases), *learned.shape))
      return jnp.concatenate([upper, jnp.asarray(canvases)[:, half:]], axis=1)

    return over(adapter["prompt.image"], images), over(adapter["prompt.target"], targets)


Adapter = LoRA | LearnedPrompt
KINDS = {"lora": LoRA, "prompt": LearnedPrompt}


def is_adapter_name(name: str) -> bool:
  """Whether a parameter is an adapter's, by its name."""
  return name.startswith(("lora.", "prompt."))


def to_dict(adapter: Adapter) -> dict[str, Any]:
  """An adapter as JSON keeps it."""
  kind = next(name for name, cls in KINDS.items() if isinstance(adapter, cls))
  return {"kind": kind, **dataclasses.asdict(adapter)}


def from_dict(values: Mapping[str, Any]) -> Adapter:
  """Inverse of `to_dict`.

  Raises:
    InputError: no adapter that is known.
  """
  values = dict(values)
  kind = values.pop("kind", None)
  if kind not in KINDS:
    raise InputError(f"adapter: found kind {kind!r}, expected one of {', '.join(KINDS)}")
  try:
    return KINDS[kind](**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
  except TypeError as error:
    raise InputError(f"adapter: cannot be read: {error}") from error
