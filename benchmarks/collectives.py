"""Finds the operations that send data between devices in the text of a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from benchmarks.peaks import Chip

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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
  """Returns all collectives of a compiled program, those in a loop as often as it runs.

  Args:
    program: HLO text of one device's part, from `compiled.as_text()`. A collective that is split into start and end, as
      compilers for accelerators do, is one.

  Raises:
    ValueError: replica groups have an unknown form.
  """
  entry, computations = _computations(program)
  return _of_computation(computations, entry)


def loops_without_count(program: str) -> int:
  """Returns the number of loops whose number of rounds is not in the text; their collectives count once."""
  _, computations = _computations(program)
  return sum(_rounds(computations, text) is None for text in program.splitlines() if " while(" in text)


def _computations(program: str) -> tuple[str, dict[str, list[str]]]:
  """Returns the name of the first computation to run, and the lines of each."""
  entry, name, computations = "", "", {"": []}
  for text in program.splitlines():
    if opened := _COMPUTATION.match(text):
      name = opened[2]
      computations[name] = []
      entry = name if opened[1] else entry
    else:
      computations[name].append(text)
  return entry, computations


def _rounds(computations: dict[str, list[str]], loop: str) -> int | None:
  """Returns how often a loop runs: as the text says, or up to the only constant that its condition compares with."""
  if known := _TRIPS.search(loop):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop)
  lines = "\n".join(computations.get(condition[1], ())) if condition else ""
  limits = re.findall(r" constant\((\d+)\)", lines)
  return int(limits[0]) if len(limits) == 1 and "direction=LT" in lines else None


def _of_computation(computations: dict[str, list[str]], name: str) -> list[Collective]:
  """Returns the collectives of a computation and of the computations that it calls."""
  found, loops = _straight(computations, name)
  return [*found.values(), *loops]


def _straight(computations: dict[str, list[str]], name: str) -> tuple[dict[str, Collective], list[Collective]]:
  """Returns the collectives of a computation by their channel, and those of its loops."""
  found: dict[str, Collective] = {}
  loops: list[Collective] = []
  for place, text in enumerate(computations.get(name, ())):
    if operation := _OPERATION.match(text):
      channel = re.search(r"channel_id=(\d+)", text)
      # TPU programs write an operation that runs in parallel with others once for its start, its middle and its end.
      found |= {channel[1] if channel else f"{name} {place}": one for one in _read(*operation.groups())}
    for called in _CALLED.findall(text):
      if " while(" in text:
        loops += _of_computation(computations, called) * (_rounds(computations, text) or 1)
      else:
        inside, further = _straight(computations, called)
        found |= inside
        loops += further
  return found, loops


def _read(shapes: str, kind: str, start: str | None, rest: str) -> list[Collective]:
  """Returns the collective of one line, or none if a device is alone in its group."""
  # Scalars next to operand and result of a start are counters.
  arrays = [(dtype, dims) for dtype, dims in _shapes(shapes) if dims or not start]
  payload = sum(_BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)
  group = _pairs(rest) if kind == "collective-permute" else _first_group(rest)
  if start and kind == "collective-permute":
    payload //= 2  # operand and result
  elif start and kind == "all-gather":
    payload = payload * len(group) // (len(group) + 1)  # of operand and result, the result
  payload *= len(group) if kind == "reduce-scatter" else 1
  return [Collective(kind, payload, len(group), abs(group[1] - group[0]))] if len(group) > 1 else []


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
