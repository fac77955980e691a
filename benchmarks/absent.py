"""Chips that are not there: meshes of TPUs and GPUs for programs that are compiled and never run.

libtpu brings the real compiler of TPUs, XLA and Mosaic; jax-cuda13-plugin brings that of NVIDIA GPUs. A topology takes
the place of devices. Call `prepare` before JAX starts. cuDNN is not asked about its own kernels where there is no GPU,
so that what it refuses must be known here (`attention.dispatch.cudnn_problem`).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from benchmarks.peaks import CHIPS, Chip

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
SLICES = {"v5e": _FLAT, "v6e": _FLAT, "v4": _CUBES, "v5p": _CUBES}  # number of chips -> shape
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  # Else libtpu asks a cloud machine's metadata server what it runs on, and locks a file.
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}
# Without a GPU nothing can be tuned by trial, and Triton's products need that.
_GPU_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU as XLA asks about it, as in its folder `xla/backends/gpu/target_config/specs`.

  Attributes:
    name: device name.
    capability: compute capability.
    cores: multiprocessors.
    fpus: float32 units of each.
    threads: threads of each.
    shared: bytes of shared memory of each.
    cache: bytes of its level-2 cache.
    clock: GHz.
    memory: bytes of its memory.
    bandwidth: bytes per second to and from it.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  fpus: int
  threads: int
  shared: int
  cache: int
  clock: float
  memory: int
  bandwidth: int


GPUS = {
  "a100": Gpu(
    "NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 167936, 41943040, 1.41, 40_000_000_000, 1_555_000_000_000
  ),
  "h100": Gpu(
    "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 233472, 52428800, 1.98, 80_000_000_000, 3_350_000_000_000
  ),
  "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 2048, 233472, 132644864, 1.965, 180_000_000_000, 8_000_000_000_000),
}
NAMES = (*SLICES, *GPUS)
_IN_TABLE = {"a100": "A100 40 GB", "h100": "H100", "b200": "B200", **{name: f"TPU {name}" for name in SLICES}}


def chip(name: str) -> Chip:
  """Returns the rates and the memory of a chip, one of `NAMES`."""
  return next(known for known in CHIPS if known.name == _IN_TABLE[name])


def prepare(name: str) -> None:
  """Sets the environment variables that compiling for a chip needs; JAX must not have been imported yet."""
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  if name in GPUS:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_GPU_FLAGS}"


def make_mesh(name: str, data: int, fsdp: int) -> Any:
  """Returns the mesh that training makes of so many chips.

  Args:
    name: one of `NAMES`.
    data: size of the axis that copies parameters.
    fsdp: size of the axis that splits parameters.

  Raises:
    ValueError: no slice of this TPU has so many chips.
  """
  import jax
  from jax.experimental import topologies

  count = data * fsdp
  if name in GPUS:
    config = _target_config(GPUS[name], _pretend(GPUS[name]))
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x1x{count}")
  else:
    if count not in SLICES[name]:
      raise ValueError(f"{name}: found {data} x {fsdp} chips, expected one of {', '.join(map(str, SLICES[name]))}")
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    if SLICES[name] is _CUBES:
      options["chip_config_name"] = "megacore"  # else a chip is two devices
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{SLICES[name][count]}", **options)
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=kinds, devices=topology.devices)


def _pretend(gpu: Gpu) -> tuple[int, int, int]:
  """Answers JAX's own questions about cuDNN for a GPU, and returns cuDNN's version."""
  from jax._src.cudnn import fused_attention_stablehlo as fused

  def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))

  version = (9, 12, 0)
  fused.check_cudnn_version = lambda: version[0] * 10000 + version[1] * 100 + version[2]
  fused.check_compute_capability = lambda asked: gpu.capability >= numbers(asked)
  fused.is_cuda_compute_capability_equal = lambda asked: gpu.capability == numbers(asked)
  return version


def _target_config(gpu: Gpu, cudnn: tuple[int, int, int]) -> str:
  """Returns XLA's `GpuTargetConfigProto` as text."""
  major, minor = gpu.capability
  feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  shared_memory_per_block_optin: {gpu.shared - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  name: "{gpu.name}"
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "{".".join(map(str, cudnn))}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} patch: {cudnn[2]} }}
device_description_str: "{gpu.name}"
"""
