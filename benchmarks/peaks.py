"""Lists the peak rates of accelerators by their JAX device kind: figures of the vendors, none of them measured.

Sources:
- TPU v4, v5e, v5p, v6e: Google's pages cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: peak bf16 of a chip, HBM capacity
  and bandwidth, interchip interconnect in Gbit/s over all ports of a chip and in one direction (the same pages give
  twice that as "bidirectional" bytes).
- A100: NVIDIA A100 datasheet (2021). H100: NVIDIA H100 datasheet, SXM. H200: NVIDIA H200 datasheet, SXM. B200: NVIDIA
  HGX B200 datasheet, an eighth of the board. Tensor core figures with sparsity are halved; NVLink, given for both
  directions together, is halved too. Beyond eight GPUs: one network card for each, of the generation that NVIDIA's own
  DGX has (A100 200 Gbit/s, H100, H200 and B200 400 Gbit/s).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator as JAX counts devices; on TPU v4 and v5p that is a chip of two cores.

  Attributes:
    name: common name.
    kinds: beginnings of `jax.Device.device_kind`; the longest match wins.
    flops: floating-point operations per second of dense bfloat16 matrix products.
    memory_bandwidth: bytes per second to and from its memory.
    memory: bytes of memory.
    link: bytes per second that it can send to its neighbors, over all links together.
    node: number of devices that those links reach.
    network: bytes per second that it can send beyond them.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  memory_bandwidth: float
  memory: float
  link: float
  node: int
  network: float


CHIPS: tuple[Chip, ...] = (
  # TPU pods: the links reach all chips of a pod, 256 on v5e and v6e; more than one pod is not modeled.
  Chip("TPU v4", ("TPU v4",), 275e12, 1228e9, 32e9, 2400e9 / 8, 4096, 2400e9 / 8),
  Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 819e9, 16e9, 1600e9 / 8, 256, 1600e9 / 8),
  Chip("TPU v5p", ("TPU v5", "TPU v5p"), 459e12, 2765e9, 95e9, 4800e9 / 8, 8960, 4800e9 / 8),
  Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1638e9, 32e9, 3200e9 / 8, 256, 3200e9 / 8),
  Chip("A100 80 GB", ("NVIDIA A100-SXM4-80GB",), 312e12, 2039e9, 80e9, 300e9, 8, 200e9 / 8),
  Chip("A100 40 GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 1555e9, 40e9, 300e9, 8, 200e9 / 8),
  # "HBM3" is only in the name of the SXM board; the PCIe card is slower and not in the table.
  Chip("H100", ("NVIDIA H100 80GB HBM3",), 989e12, 3350e9, 80e9, 450e9, 8, 400e9 / 8),
  Chip("H200", ("NVIDIA H200",), 989e12, 4800e9, 141e9, 450e9, 8, 400e9 / 8),
  Chip("B200", ("NVIDIA B200",), 2250e12, 8000e9, 180e9, 900e9, 8, 400e9 / 8),
)

# Slower chips whose names begin like one in the table.
_SLOWER = ("TPU v4 lite", "NVIDIA H200 NVL")


def find_chip(device_kind: str) -> Chip | None:
  """Returns the chip with this device kind, or None when it is not in the table, such as a CPU."""
  if device_kind.startswith(_SLOWER):
    return None
  matches = [(len(kind), chip) for chip in CHIPS for kind in chip.kinds if device_kind.startswith(kind)]
  return max(matches, key=lambda match: match[0])[1] if matches else None
