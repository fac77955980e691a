"""The network as a StableHLO program with its parameters, serialized by `jax.export`."""

from __future__ import annotations

import functools
import gc
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from seggpt_jax import canvas
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.ensemble import predict_queries
from seggpt_jax.model.parameters import StoredDtype, stored_params
from seggpt_jax.model.seggpt import SegGPT, SegType

PLATFORMS = ("cpu", "cuda", "tpu")


def build_stablehlo(
  model: SegGPT, num_prompts: int, *, dtype: StoredDtype = "float32", seg_type: SegType = "semantic"
) -> bytearray:
  """Returns the network as a serialized program, which `jax.export.deserialize` loads on any of `PLATFORMS`.

  Args:
    model: the network, with an implementation of attention that compiles everywhere, such as "folded".
    num_prompts: K.
    dtype: type in which large kernels are stored, see `stored_params`.
    seg_type: "semantic" or "instance".

  Raises:
    InputError: the package `flatbuffers` is missing.
    ValueError: a large kernel holds values beyond float16.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise InputError("flatbuffers is not installed; pip install 'seggpt-jax[export]'")
  config, (graph, params) = model.config, parameters.split(model)
  params = stored_params(params, dtype)
  height, width = config.canvas_size[0] // 2, config.canvas_size[1]
  grid = canvas.grid_size((height, width), config.patch_size)

  def predict_one(model: SegGPT, *pixels: jax.Array) -> jax.Array:
    query, images, targets = (canvas.normalize(x, config.image_mean, config.image_std)[None] for x in pixels)
    hidden = np.ones((1, *grid), bool)
    colors = predict_queries(model, query, images, targets, jnp.zeros_like(query), hidden, seg_type)
    return canvas.unnormalize(colors[0], config.image_mean, config.image_std)

  # One query at a time as the network sees it, so that no shape inside depends on the size of the batch.
  @jax.jit
  def predict(query: jax.Array, prompt_images: jax.Array, prompt_colors: jax.Array) -> jax.Array:
    # The conversion is part of the program: `jnp.asarray` with a dtype would convert before anything is stored.
    model = parameters.merge(graph, {name: jnp.asarray(value).astype(jnp.float32) for name, value in params.items()})
    return jax.vmap(functools.partial(predict_one, model))(query, prompt_images, prompt_colors)

  (batch,) = jax.export.symbolic_shape("batch")
  shapes = [(batch, height, width, 3), *[(batch, num_prompts, height, width, 3)] * 2]
  inputs = [jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in shapes]
  exported = jax.export.export(predict, platforms=PLATFORMS)(*inputs)
  gc.collect()  # frees the compiler's copy of the parameters, which reference cycles hold, before they are copied again
  return exported.serialize()
