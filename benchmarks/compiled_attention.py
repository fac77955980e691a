"""Compiles attention of ViT-Large, forward and backward in bfloat16, for a chip that need not be there.

Prints the bytes of temporary memory for one canvas, which is one stream of the network.

  python -m benchmarks.compiled_attention --chip=a100 --attention=cudnn_parts
"""

from __future__ import annotations

from absl import app, flags

from benchmarks import absent

_CHIP = flags.DEFINE_enum("chip", "v5e", absent.NAMES, "What is compiled for.")
_ATTENTION = flags.DEFINE_string("attention", "splash", "Implementation, a key of dispatch.IMPLEMENTATIONS.")


def main(argv: list[str]) -> None:
  del argv
  absent.prepare(_CHIP.value)

  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from seggpt_jax.model.attention.dispatch import IMPLEMENTATIONS
  from seggpt_jax.model.config import VARIANTS

  config = VARIANTS["vit_large"]
  where = NamedSharding(absent.make_mesh(_CHIP.value, 1, 1), PartitionSpec())
  (rows, cols), dim = config.grid, config.head_dim

  def attend(qkv, rel_pos_h, rel_pos_w):
    return IMPLEMENTATIONS[_ATTENTION.value](qkv, rel_pos_h, rel_pos_w, config.grid)

  def both(gradient, *inputs):
    return jax.vjp(attend, *inputs)[1](gradient)

  shapes = ((1, rows * cols, 3, config.num_heads, dim), (2 * rows - 1, dim), (2 * cols - 1, dim))
  inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in shapes]
  output = jax.eval_shape(attend, *inputs)
  gradient = jax.ShapeDtypeStruct(output.shape, output.dtype, sharding=where)
  memory = jax.jit(both).lower(gradient, *inputs).compile().memory_analysis()
  print(
    f"{_ATTENTION.value} on {_CHIP.value}: {memory.temp_size_in_bytes / 1e6:.1f} MB of temporary memory for a canvas"
  )


if __name__ == "__main__":
  app.run(main)
