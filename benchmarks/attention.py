"""Compares the implementations of attention: error, time and memory, forward and backward.

  python -m benchmarks.attention --variants=drawn,vit_large --batch_sizes=1          # two cores
  python -m benchmarks.attention --batch_sizes=1,4,16 --dtypes=float32,bfloat16      # one accelerator

Each computes the attention of one block from the same operands. The error is the norm of the difference to `reference`
in float32, relative to its norm, and the largest over output and gradients. An odd grid of 13 x 7 is tested besides the
variants. Implementations take turns, so that a machine that is slower for a while slows all of them. If one cannot run,
its row says why. Memory is the temporary memory of the compiled gradient, without operands and results.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import report, timing
from seggpt_jax import compilation
from seggpt_jax.model.attention.dispatch import IMPLEMENTATIONS
from seggpt_jax.model.config import VARIANTS, SegGPTConfig

_VARIANTS = flags.DEFINE_list("variants", ["vit_large"], "Keys of seggpt_jax.model.config.VARIANTS.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1"], "Numbers of canvases.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Dtypes of queries, keys and values.")
_NAMES = flags.DEFINE_list(
  "implementations", list(IMPLEMENTATIONS), "Names of implementations, see model/attention/dispatch.py."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of turns of each implementation.", lower_bound=1)
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/attention.json.")

ODD = dataclasses.replace(VARIANTS["drawn"], canvas_size=(13 * 8, 7 * 8))


@dataclasses.dataclass(frozen=True)
class Case:
  """The attention of one block: an architecture, a batch size and a dtype."""

  config: SegGPTConfig
  batch_size: int
  dtype: str

  def operands(self) -> tuple[jax.Array, ...]:
    """Returns queries, keys and values of standard deviation 1 and tables of 0.2, for a softmax far from uniform."""
    generator, (rows, cols) = np.random.default_rng(0), self.config.grid
    dim = self.config.head_dim
    qkv = generator.standard_normal((self.batch_size, rows * cols, 3, self.config.num_heads, dim), np.float32)
    tables = (0.2 * generator.standard_normal((2 * size - 1, dim), np.float32) for size in (rows, cols))
    return jnp.asarray(qkv, self.dtype), *map(jnp.asarray, tables)

  def programs(self, name: str) -> tuple[Any, Any]:
    """Returns the jitted forward pass, and a jitted function that returns the output and all gradients."""

    def attend(*operands):
      return IMPLEMENTATIONS[name](*operands, self.config.grid)

    def both(*operands):
      output, pull_back = jax.vjp(attend, *operands)
      return output, *pull_back(jnp.cos(output.astype(jnp.float32)).astype(output.dtype))

    options = compilation.options(jax.default_backend())
    return jax.jit(attend, compiler_options=options), jax.jit(both, compiler_options=options)


def relative_error(found: tuple[jax.Array, ...], wanted: tuple[jax.Array, ...]) -> float:
  """Returns the largest relative error, in the norm, over pairs of arrays."""
  pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(found, wanted, strict=True)]
  return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def measure(case: Case, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
  """Returns error, memory and median seconds of each implementation, or why it does not run."""
  operands = case.operands()
  exact = (operands[0].astype(jnp.float32), *operands[1:])
  with jax.default_matmul_precision("highest"):  # otherwise GPUs round the products of the reference too
    wanted = case.programs("reference")[1](*exact)
  found, programs = {name: {} for name in names}, {}
  for name in names:
    forward, both = case.programs(name)
    try:
      memory = both.lower(*operands).compile().memory_analysis()
      found[name] = {"error": relative_error(both(*operands), wanted), "temporary_bytes": memory.temp_size_in_bytes}
      jax.block_until_ready(forward(*operands))
      programs[name] = forward, both
    # Libraries raise these for shapes, dtypes, devices and versions that they do not support.
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as problem:
      found[name] = {"problem": str(problem).strip().splitlines()[0][:100]}
  calls = {
    (name, key): lambda program=program: jax.block_until_ready(program(*operands))
    for name, pair in programs.items()
    for key, program in zip(("forward_seconds", "both_seconds"), pair, strict=True)
  }
  for (name, key), turns in timing.take_turns(calls, rounds, least_seconds=0.0).items():
    found[name][key] = timing.median_seconds(turns)
  return found


def main(_: list[str]) -> None:
  cases = [
    (name, Case(config, size, dtype))
    for name, config in (("13 x 7", ODD), *((name, VARIANTS[name]) for name in _VARIANTS.value))
    for dtype in _DTYPES.value
    for size in map(int, _BATCH_SIZES.value)
  ]
  columns = ("grid of", "dtype", "batch", "implementation", "error", "forward", "and backward", "memory")
  print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
  rows = []
  for variant, case in cases:
    for name, found in measure(case, _NAMES.value, _ROUNDS.value).items():
      rows.append({"grid_of": variant, "dtype": case.dtype, "batch": case.batch_size, "implementation": name, **found})
      start = f"| {variant} | {case.dtype} | {case.batch_size} | {name} | "
      if "problem" in found:
        print(f"{start}{found['problem']} | | | |", flush=True)
      else:
        print(
          f"{start}{found['error']:.1e} | {found['forward_seconds'] * 1e3:.3g} ms | {found['both_seconds'] * 1e3:.3g} "
          f"ms | {found['temporary_bytes'] / 1e6:.0f} MB |",
          flush=True,
        )
  if _KEEP.value:
    device = {"device": jax.devices()[0].device_kind}
    print(
      f"written: {report.write('attention', {'machine': report.machine(['jax', 'jaxlib']) | device, 'rows': rows})}"
    )


if __name__ == "__main__":
  app.run(main)
