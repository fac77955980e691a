"""Finds the operations that send data between devices in the text of a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from seggpt_jax.training.chips import Chip

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$", re.MULTILINE)
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation between devices.

  Attributes:
    kind: one of `KINDS`.
    payload: bytes of the result on each device; for a reduce-scatter, of the operand.
    group: number of devices that take part.
    stride: distance of the group's first two devices in the numbering of devices.
  """

  kind: str
  payload: int
  group: int
  stride: int

  @property
  def sent(self) -> float:
    """Bytes that each device sends with ring algorithms, without help from switches."""
    share = (self.group - 1) / self.group
    if self.kind == "all-reduce":  # a reduce-scatter, then an all-gather
      return 2 * share * self.payload
    return self.payload if self.kind == "collective-permute" else share * self.payload


def bandwidth(chip: Chip, group: int, stride: int = 1) -> float:
  """Returns the bytes per second that each device of a group can send at best in a collective of the group.

  Within a node that is the rate of the link. A group over several nodes is limited by the network cards; all cards of
  its members in a node share the work, as in rings that enter and leave a node at every card.

  Args:
    chip: the devices.
    group: number of devices that take part.
    stride: distance of neighbors among them, in devices; the devices of a node are numbered consecutively.
  """
  if group * stride <= chip.node:
    return chip.link
  return min(chip.link, chip.network * max(1, chip.node // stride))


def find_collectives(program: str) -> list[Collective]:
  """Returns all collectives of a compiled program.

  Args:
    program: HLO text of one device's part, from `compiled.as_text()`. The body of a loop counts once, however often it
      runs; see `count_loops`.

  Raises:
    ValueError: a collective is split into start and end, as compilers for accelerators do, or its replica groups have
      an unknown form.
  """
  found = []
  for shapes, kind, start, rest in _OPERATION.findall(program):
    if start:
      raise ValueError(f"{kind}-start: found an asynchronous collective, expected a program compiled for CPUs")
    payload = sum(_BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in _shapes(shapes))
    group = _pairs(rest) if kind == "collective-permute" else _first_group(rest)
    payload *= len(group) if kind == "reduce-scatter" else 1
    if len(group) > 1:
      found.append(Collective(kind, payload, len(group), abs(group[1] - group[0])))
  return found


def count_loops(program: str) -> int:
  """Returns the number of loops in a program."""
  return len(re.findall(r" while\(", program))


def _shapes(text: str) -> list[tuple[str, str]]:
  return [shape for shape in _SHAPE.findall(text) if shape[0] in _BYTES]


def _pairs(rest: str) -> list[int]:
  """Returns the pair of a permutation whose devices are farthest apart, which is the slowest."""
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
  numbers = [int(number) for number in re.findall(r"\d+", pairs.group(1))] if pairs else []
  return max((list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)), key=lambda p: abs(p[1] - p[0]))


def _first_group(rest: str) -> list[int]:
  """Returns the devices of the first group, which XLA writes in one of three forms."""
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return [int(number) for number in listed.group(1).split(",")]
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
    groups, dims, order = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
    devices = np.arange(math.prod(dims)).reshape(dims)
    return (devices.transpose(order) if order else devices).reshape(groups)[0].tolist()
  if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", rest):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
    chosen, names = re.findall(r"'(\w+)'", mesh.group(3)), list(sizes)
    if ":" not in mesh.group(3):  # a colon means a part of an axis, which is not supported
      devices = _device_order(mesh.group(2), math.prod(sizes.values())).reshape(tuple(sizes.values()))
      order = [axis for axis, name in enumerate(names) if name not in chosen] + [names.index(name) for name in chosen]
      return devices.transpose(order).reshape(-1, math.prod(sizes[name] for name in chosen))[0].tolist()
  raise ValueError(f"replica_groups: found {rest[:200]!r}, expected lists, an iota or axes of a mesh")


def _device_order(text: str | None, count: int) -> np.ndarray:
  """Returns the devices of a mesh in its order: `[2,4]T(1,0)` is an iota of that shape, transposed."""
  if not text:
    return np.arange(count)
  dims, order = ([int(n) for n in part.split(",")] for part in re.fullmatch(r"\[(.*?)\]T\((.*?)\)", text).groups())
  return np.arange(count).reshape(dims).transpose(order).reshape(-1)
