"""A piece of advice about a dataset, the wording of counts and keys, and the network that advice is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from seggpt_jax.audit.findings import Findings

_WEIGHTS = Path("weights/vit_large")


class Advice(NamedTuple):
  """A sentence, the keys of `config.data` that it recommends, and whether training fails without it (`fatal`)."""

  text: str
  keys: Mapping[str, Any] = MappingProxyType({})
  fatal: bool = False


def key_text(keys: Mapping[str, Any]) -> str:
  """Returns keys with their values, as in a configuration: data.labels=index."""
  return ", ".join(f"data.{key}={value}" for key, value in keys.items())


def count_text(count: int, what: str = "file") -> str:
  """Returns a count with its noun: 1 file, 2 files."""
  return f"{count} {what}{'' if count == 1 else 's'}"


class Network(NamedTuple):
  """A network with its configurations in configs/."""

  config: str  # configuration that shows it whole images
  defects_config: str  # configuration that shows it tiles, at a scale at which small objects are as large as a patch
  square: int  # side in pixels of what it sees at once
  patch: int  # side of a patch in pixels, or of the smallest object that a trained head finds well
  remedy: str  # what to do about smaller objects


SMALL = Network("head", "head", 224, 4, "a larger config.data.resize shows them larger, and takes longer")
LARGE = Network(
  *("base", "defects", 448, 16),
  "--config defects trains on tiles at a scale that shows them, and `seggpt infer` then cuts in the same way",
)


def network() -> Network:
  """Returns the network that people have: the released one if it was converted here, else the packaged small one."""
  return LARGE if _WEIGHTS.is_dir() else SMALL


def region_sides(findings: Findings, network: Network) -> dict[int, float]:
  """Returns the side in pixels of each class's regions where the network sees whole images."""
  regions = sorted(findings.train.regions.items())
  return {index: network.square * math.sqrt(found.median_of_pixels) for index, found in regions}


def needs_tiles(findings: Findings, network: Network) -> bool:
  """Returns whether the regions of a class are smaller than a patch where the network sees whole images."""
  return min(region_sides(findings, network).values(), default=network.patch) < network.patch
