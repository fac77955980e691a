"""Compilation: options for XLA where its own choice is slow, and the folder where compiled programs are kept.

Functions that run the network are compiled with `jit` or with `options`. Commands call `keep_programs` before they
compile anything.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from seggpt_jax.errors import InputError
from seggpt_jax.files import cache_folder

# XLA's CPU compiler hands matrix products to a library (YNNPACK) that takes 1.3 to 2.2 times as long as its predecessor
# (Eigen) for products of this network's sizes. It also fuses softmax into them in a way that writes broadcasts to
# memory. Seen with jaxlib 0.10; the option can go once YNNPACK is as fast.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}

# Seconds of the first call, compilation and one execution, on two cores: the variants "small" (4 blocks and ImageNet
# features and a decoder to compile), "drawn" (8, batch 8 in training) and "vit_large" (24, batch 1).
# `benchmarks.train_step` prints the training times.
_MEASURED_DEPTHS = (4, 8, 24)
_FORWARD_SECONDS = (11, 3, 11)
_TRAINING_SECONDS = (30, 12, 60)


def default_device() -> jax.Device:
  """Returns the device that JAX puts new arrays on."""
  chosen = jax.config.jax_default_device
  return chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]


def options(backend: str) -> dict[str, Any]:
  """Returns the options to compile with, for `jax.jit`'s `compiler_options`.

  Options that this version of XLA does not know are left out, with one warning each.
  """
  return dict(_known_options(backend))


@functools.cache
def _known_options(backend: str) -> dict[str, Any]:
  known = {}
  for name, value in (_CPU_OPTIONS if backend == "cpu" else {}).items():
    try:
      with jax.default_device(jax.local_devices(backend=backend)[0]):
        jax.jit(lambda x: x, compiler_options={name: value})(0.0)
    except jax.errors.JaxRuntimeError as error:
      if "No such compile option" not in str(error):
        raise
      logging.warning("compiling without %s, which this version of XLA does not know; CPUs may be slower", name)
    else:
      known[name] = value
  return known


def jit(function: Callable | None = None, **arguments: Any) -> Callable:
  """Compiles a function with `jax.jit` and the `options` of the default device.

  The device is looked up at the first call, so decorating a function starts none.

  Args:
    function: the function to compile; without it, the result is a decorator.
    **arguments: further arguments of `jax.jit`.
  """
  if function is None:
    return functools.partial(jit, **arguments)

  @functools.cache
  def compiled() -> Callable:
    return jax.jit(function, compiler_options=options(default_device().platform), **arguments)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    return compiled()(*args, **kwargs)

  call.compiled = compiled
  return call


def compile_notice(what: str, depth: int, *, training: bool) -> str:
  """Returns the line that a command prints before the first call of a compiled program.

  The estimate is interpolated between measurements of three networks. It holds for the first time only:
  later runs read the program from the folder of `keep_programs`.

  Args:
    what: name of the program, such as "the training step".
    depth: number of blocks of the network.
    training: whether the program includes the backward pass.
  """
  seconds = np.interp(depth, _MEASURED_DEPTHS, _TRAINING_SECONDS if training else _FORWARD_SECONDS)
  return f"compiling {what}, about {seconds:.0f} seconds the first time"


def keep_programs() -> None:
  """Keeps compiled programs on disk for later runs, so that the next run loads them instead of compiling.

  The folder is JAX_COMPILATION_CACHE_DIR if that is set (an empty value turns keeping off), else seggpt_jax in the
  user's cache folder. There, each kind of processor has its own subfolder, because machines that share a home folder
  may not share instructions. Programs that compile within a second are not kept. Nothing is kept, with one warning,
  where there is no home folder or no permission to write.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  try:
    cache = cache_folder(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "seggpt_jax" / _processor())
  except InputError as error:
    logging.warning("compiled programs are not kept for the next run: %s; set JAX_COMPILATION_CACHE_DIR", error)
    return
  jax.config.update("jax_compilation_cache_dir", str(cache))


def _processor() -> str:
  """Returns a short hash of the instructions that this machine's processor supports."""
  described, cpuinfo = [platform.machine(), platform.processor()], Path("/proc/cpuinfo")
  if cpuinfo.exists():
    described += sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))})
  return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
