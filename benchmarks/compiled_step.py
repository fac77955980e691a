"""Compiles one program for chips that are not there and prints what the compiler reports, as JSON.

  python -m benchmarks.compiled_step --chip=v5e --fsdp=4 --variant=vit_large

Nothing runs: only shapes go in. Each program needs a new process, because the compiler is chosen when JAX starts, and
so that the memory of one compilation does not add to that of the next.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from typing import Any

from absl import app, flags

from benchmarks import absent, collectives

WORKS = ("train", "predict")
_CHIP = flags.DEFINE_enum("chip", "v5e", absent.NAMES, "What is compiled for.")
_WORK = flags.DEFINE_enum("work", "train", WORKS, "A step of `seggpt train`, or what `seggpt infer` runs on one chip.")
_VARIANT = flags.DEFINE_string("variant", "drawn", "Architecture, a key of seggpt_jax.model.config.VARIANTS.")
_DATA = flags.DEFINE_integer("data", 1, "Chips that copy parameters.")
_FSDP = flags.DEFINE_integer("fsdp", 1, "Chips that share a copy.")
_BATCH = flags.DEFINE_integer("batch", 4, "Canvases on each chip.")
_REMAT = flags.DEFINE_string("remat", "full", "model.remat")
_ADAPTER = flags.DEFINE_string("adapter", "none", "adapter.kind")
_ATTENTION = flags.DEFINE_string("attention", "auto", "model.attention")
_SCAN = flags.DEFINE_bool("scan", None, "Whether equal blocks are a loop; by default as in training.")
_PROGRAM = flags.DEFINE_string("program", "", "File for the text of the compiled program.")
_KERNELS = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w+)"')


def lower_train(mesh) -> tuple[Any, Any, Any]:
  """Returns the lowered training step as `seggpt train` makes it, its abstract state, and the state's shardings."""
  import jax
  import jax.numpy as jnp

  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training import setup
  from seggpt_jax.training.config import default_config
  from seggpt_jax.training.step import make_train_step

  config, model_config, shape = default_config(), VARIANTS[_VARIANT.value], jax.ShapeDtypeStruct
  config.model.update(remat=_REMAT.value, attention=_ATTENTION.value, dtype="bfloat16")
  config.adapter.kind = _ADAPTER.value
  config.model.init_from = _VARIANT.value  # an adapter must name its weights, which are not read here
  plan = setup.make_plan(config, model_config, mesh, scan=_SCAN.value)
  size, num_classes = _BATCH.value * mesh.size, config.data.num_classes
  batch = {
    "images": shape((size, *model_config.canvas_size, 3), jnp.uint8),
    "labels": shape((size, *model_config.canvas_size), jnp.uint8),
    "palette": shape((size, num_classes, 3), jnp.uint8),
    "patch_mask": shape((size, *model_config.grid), jnp.bool_),
    "valid": shape((size,), jnp.bool_),
  }
  optimizer, where = plan.optimizer, plan.state_sharding
  step = make_train_step(
    *(plan.graph, model_config, optimizer.transform, mesh, where), frozen=optimizer.frozen, adapter=plan.adapter
  )
  return step.lower(plan.abstract_state, batch, jax.eval_shape(lambda: jax.random.key(0))), plan.abstract_state, where


def lower_predict(mesh) -> tuple[Any, Any, Any]:
  """Returns the lowered program of inference with one prompt, its abstract parameters, and their shardings."""
  import jax
  import jax.numpy as jnp

  from seggpt_jax.inference import forward
  from seggpt_jax.model import parameters
  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training import sharding

  config, shape, whole = VARIANTS[_VARIANT.value], jax.ShapeDtypeStruct, sharding.replicated(mesh)
  options = {"dtype": jnp.bfloat16, "attention": _ATTENTION.value, "training": False, "device": mesh.devices.flat[0]}
  graph, params = parameters.abstract(config, **options, scan=_SCAN.value)
  height, width = config.canvas_size[0] // 2, config.canvas_size[1]
  pixels = shape((_BATCH.value, height, width, 3), jnp.uint8)
  prompts = shape((_BATCH.value, 1, height, width, 3), jnp.uint8)
  mask = shape((_BATCH.value, config.grid[0] // 2, config.grid[1]), jnp.bool_)
  run = jax.jit(
    lambda params, *arrays: forward.predict_colors.__wrapped__(graph, params, *arrays, "semantic"),
    in_shardings=whole,
    out_shardings=whole,
  )
  return run.lower(params, pixels, prompts, prompts, pixels, mask), params, jax.tree.map(lambda _: whole, params)


def bytes_per_device(tree: Any, where: Any) -> int:
  """Returns the bytes that a sharded tree takes on one device."""
  import jax
  import numpy as np

  leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
  return sum(int(np.prod(s.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, s in leaves)


def main(argv: list[str]) -> None:
  del argv
  absent.prepare(_CHIP.value)
  import jax

  mesh = absent.make_mesh(_CHIP.value, _DATA.value, _FSDP.value)
  started = time.perf_counter()
  lowered, state, where = (lower_train if _WORK.value == "train" else lower_predict)(mesh)
  lowered_at = time.perf_counter()
  compiled = lowered.compile()
  seconds = {"lower": lowered_at - started, "compile": time.perf_counter() - lowered_at}
  program, memory = compiled.as_text(), compiled.memory_analysis()
  if _PROGRAM.value:
    with open(_PROGRAM.value, "w") as file:
      file.write(program)
  results = {
    "jax": jax.__version__,
    "seconds": seconds,
    "state_bytes": bytes_per_device(state, where),
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "code_bytes": memory.generated_code_size_in_bytes,
    "kernels": len(_KERNELS.findall(program)),
    "collectives": [dataclasses.asdict(c) for c in collectives.find_collectives(program)],
  }
  print(json.dumps(results))


if __name__ == "__main__":
  app.run(main)
