"""How programs are compiled: what XLA is told where its own choice is slow, and where compiled programs are kept.

The network's programs go through `jit` or take `options`; commands call `keep_programs` before the first of them.
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
from absl import logging

# XLA's CPU compiler hands matrix products to a library (YNNPACK) that takes 1.3 to 2.2 times as long as the one it used
# before (Eigen) for products of the sizes of this network, and fuses softmax into them in a way that writes broadcasts
# to memory.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def options(backend: str) -> dict[str, Any]:
  """Compiler options, for `jax.jit`'s `compiler_options`.

  Args:
    backend: as of `jax.default_backend()`.

  Returns:
    A new dictionary; an option that this version of XLA does not know is left out, and that is logged once.
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
  """`jax.jit` with the `options` of the default platform, which is only asked for at the first call.

  Args:
    function: what is compiled; without it, the result is a decorator.
    **arguments: of `jax.jit`.
  """
  if function is None:
    return functools.partial(jit, **arguments)

  @functools.cache
  def compiled() -> Callable:
    return jax.jit(function, compiler_options=options(jax.default_backend()), **arguments)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    return compiled()(*args, **kwargs)

  call.compiled = compiled
  return call


def compile_notice(what: str, depth: int, *, training: bool) -> str:
  """Returns the line that a command prints before the first call of a compiled program.

  Args:
    what: name of the program, such as "the training step".
    depth: number of blocks of the network.
    training: whether the program includes the backward pass.
  """
  seconds = 4 + depth * (1.5 if training else 0.4)
  return f"compiling {what}, about {seconds:.0f} seconds the first time"


def keep_programs() -> None:
  """Keeps compiled programs on disk for later runs: ViT-Large compiles in seconds instead of minutes.

  They go to JAX_COMPILATION_CACHE_DIR where that is set (to nothing: nowhere), else to seggpt_jax in the user's cache
  folder, apart for each kind of processor: machines that share a home need not share instructions. Programs that
  compile within a second are not kept.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  jax.config.update("jax_compilation_cache_dir", str(cache / "seggpt_jax" / _processor()))


def _processor() -> str:
  """A short name for what this machine's processor can do."""
  described, cpuinfo = [platform.machine(), platform.processor()], Path("/proc/cpuinfo")
  if cpuinfo.exists():
    described += sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))})
  return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
