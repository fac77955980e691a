"""Compiles one training step for a mesh of simulated devices and prints what the compiler reports, as JSON.

  python -m benchmarks.compiled_step --variant=small --data=1 --fsdp=8

Each mesh needs a new process, because the number of simulated devices is fixed when JAX starts. The step is compiled
from shapes; no parameter is allocated and nothing runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any

from absl import app, flags

from benchmarks import collectives

_VARIANT = flags.DEFINE_string("variant", "small", "Architecture, a key of seggpt_jax.model.config.VARIANTS.")
_DATA = flags.DEFINE_integer("data", 1, "Size of the mesh axis that replicates parameters.")
_FSDP = flags.DEFINE_integer("fsdp", 1, "Size of the mesh axis that shards parameters.")
_CANVASES = flags.DEFINE_integer("canvases", 4, "Number of canvases on each device.")
_SPREAD = flags.DEFINE_bool("spread", True, "Give the network the sharding of its batch (`batch_sharding`).")


def lower_step(variant: str, data: int, fsdp: int, canvases: int, spread: bool):
  """Returns the lowered step with AdamW, bfloat16 and remat, its abstract state, and the shardings of the state."""
  import jax  # imported here, after the number of devices is set
  import jax.numpy as jnp

  from seggpt_jax.model import parameters
  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training import sharding
  from seggpt_jax.training.optimizer import adamw
  from seggpt_jax.training.step import TrainState, make_train_step

  config, mesh, shape = VARIANTS[variant], sharding.make_mesh(data, fsdp), jax.ShapeDtypeStruct
  batch_sharding = sharding.batch_sharding(mesh) if spread else None
  options = {"dtype": jnp.bfloat16, "remat": "full", "attention": "folded"}
  graph, params = parameters.abstract(config, batch_sharding=batch_sharding, **options)
  optimizer = adamw(lambda step: 1e-4, b1=0.9, b2=0.999, weight_decay=0.01)
  state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), params)
  where = TrainState(*(sharding.tree_sharding(mesh, part) for part in state))
  size = canvases * data * fsdp
  batch = {
    "images": shape((size, *config.canvas_size, 3), jnp.uint8),
    "labels": shape((size, *config.canvas_size), jnp.uint8),
    "palette": shape((size, 2, 3), jnp.uint8),
    "patch_mask": shape((size, *config.grid), jnp.bool_),
    "valid": shape((size,), jnp.bool_),
  }
  step = make_train_step(graph, config, optimizer, mesh, where)
  return step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))), state, where


def bytes_per_device(tree: Any, where: Any) -> int:
  """Returns the bytes that a sharded tree takes on one device."""
  import jax
  import numpy as np

  leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
  return sum(int(np.prod(s.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, s in leaves)


def main(argv: list[str]) -> None:
  del argv
  os.environ["JAX_PLATFORMS"] = "cpu"
  devices = _DATA.value * _FSDP.value
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  started = time.perf_counter()
  lowered, state, where = lower_step(_VARIANT.value, _DATA.value, _FSDP.value, _CANVASES.value, _SPREAD.value)
  compiled = lowered.compile()
  seconds = time.perf_counter() - started
  program, memory = compiled.as_text(), compiled.memory_analysis()
  results = {
    "seconds_to_compile": seconds,
    "parameter_bytes": bytes_per_device(state.params, where.params),
    "optimizer_bytes": bytes_per_device(state.opt_state, where.opt_state),
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "compiler_flops": compiled.cost_analysis()["flops"],
    "loops": collectives.count_loops(program),
    "collectives": [dataclasses.asdict(c) for c in collectives.find_collectives(program)],
  }
  print(json.dumps(results))


if __name__ == "__main__":
  app.run(main)
