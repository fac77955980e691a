"""Places arrays on devices: a mesh ("data", "fsdp"), one table of rules for the parameters, and batches ahead of time.

A batch is split over both axes, so every device gets different pairs. Parameters, gradients and optimizer state are
split over "fsdp" and copied over "data"; `jax.jit` inserts the gathers and reductions.
"""

from __future__ import annotations

import collections
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seggpt_jax.data.pipeline import DEVICE_KEYS, Batch
from seggpt_jax.errors import InputError

# The first match wins; a specification lists the dimensions of the parameter. A dimension that the fsdp axis does not
# divide is not split. All other parameters (norms, biases, tokens, relative positions: under 1 % of the network) are
# copied.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r"(qkv|fc1)\.kernel$", PartitionSpec(None, "fsdp")),  # [in, out]: split the wide output
  (r"(proj|fc2)\.kernel$", PartitionSpec("fsdp", None)),  # [in, out]: split the wide input
  (r"(patch_embed|decoder_embed)\.kernel$", PartitionSpec(None, "fsdp")),
  (r"", PartitionSpec()),
)
_MICRO_BATCHES = PartitionSpec(None, ("data", "fsdp"))


def make_mesh(data: int, fsdp: int) -> Mesh:
  """Returns the mesh of all devices.

  Args:
    data: size of the axis that copies parameters; -1 takes all devices that `fsdp` leaves.
    fsdp: size of the axis that splits parameters.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  count = jax.device_count()
  data = count // fsdp if data == -1 else data
  if data * fsdp != count:
    raise InputError(f"mesh.data x mesh.fsdp: found {data} x {fsdp}, expected them to multiply to {count} devices")
  return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that copies an array to all devices."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the leading dimension over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def cut_batch(mesh: Mesh, batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
  """Cuts each array of a batch, [N, ...], into micro-batches, [count, N / count, ...], inside jit.

  Each device cuts its own share of the batch into consecutive parts. So every micro-batch is spread over all devices,
  and nothing is sent between them.
  """

  def cut(value: jax.Array) -> jax.Array:
    size, *rest = value.shape
    shares = value.reshape(mesh.size, count, size // (mesh.size * count), *rest)
    parts = jnp.swapaxes(shares, 0, 1).reshape(count, size // count, *rest)
    return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, _MICRO_BATCHES))

  return {key: cut(value) for key, value in batch.items()}


def join_batch(mesh: Mesh, parts: jax.Array) -> jax.Array:
  """Joins one array of micro-batches, as the inverse of `cut_batch`."""
  count, size, *rest = parts.shape
  parts = jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, _MICRO_BATCHES))
  shares = jnp.swapaxes(parts.reshape(count, mesh.size, size // mesh.size, *rest), 0, 1)
  return shares.reshape(count * size, *rest)


def _param_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
  """Returns the sharding of one parameter by the table of rules."""
  spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
  fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False)]
  return NamedSharding(mesh, PartitionSpec(*fits))


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
  """Returns the shardings of a tree with parameter names as keys at any depth, such as an optimizer state."""

  def leaf(path: tuple[Any, ...], value: Any) -> NamedSharding:
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return _param_sharding(mesh, names[-1], value.shape) if names else replicated(mesh)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """Turns this process's share of a batch into arrays of the whole batch, split over the mesh."""
  sharding = batch_sharding(mesh)
  return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def put_pairs(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
  """Puts what the devices need of a batch of pairs on the mesh."""
  return put_batch(mesh, {key: batch[key] for key in DEVICE_KEYS})


class DeviceFeed:
  """Takes batches from a pipeline and puts them on the devices ahead of time.

  Copies to a device are asynchronous, so `prefetch` right after a step was dispatched costs the device nothing. After
  a pause for numbers or pictures the next step can begin at once.
  """

  def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any]):
    self._batches, self._put = batches, put
    self._ready: collections.deque[tuple[Any, Any]] = collections.deque()
    self._error: InputError | None = None
    self._waited, self._since = 0.0, time.perf_counter()

  def prefetch(self) -> None:
    """Reads the next batch and starts copying it; an error in it is kept until `next_batch`."""
    started = time.perf_counter()
    try:
      batch = next(self._batches)
    except InputError as error:
      # The current step has yet to be recorded and saved, so the error has to wait.
      self._error = error
      return
    finally:
      self._waited += time.perf_counter() - started
    self._ready.append((self._put(batch), batch))

  def next_batch(self) -> tuple[Any, Any]:
    """Returns the next batch, on the devices and on the host.

    Raises:
      InputError: one of its files is bad.
    """
    if not self._ready and self._error is None:
      self.prefetch()
    if not self._ready:
      raise self._error
    return self._ready.popleft()

  def wait_share(self) -> float:
    """Returns the share of the time since the last call, 0..1, that the host has waited for batches.

    A device may have been busy meanwhile. It is kept waiting too only when the share comes close to 1.
    """
    now = time.perf_counter()
    share = self._waited / max(now - self._since, 1e-9)
    self._waited, self._since = 0.0, now
    return share
