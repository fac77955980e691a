"""The network as a StableHLO program, serialized by `jax.export`; ONNX is written from the same function."""

from __future__ import annotations

import functools
import gc
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seggpt_jax import canvas
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.ensemble import predict_queries
from seggpt_jax.model.parameters import StoredDtype, stored_params
from seggpt_jax.model.seggpt import SegGPT, SegType


def tile_size(model: SegGPT) -> tuple[int, int]:
  """Returns height and width in pixels of what the network sees at once: half a canvas."""
  height, width = model.config.canvas_size
  return height // 2, width


def input_shapes(model: SegGPT, num_prompts: int, batch: Any) -> dict[str, tuple]:
  """Returns the shapes of the inputs, uint8, by their names; `batch` is a number, a symbol or a name."""
  pixels = (*tile_size(model), 3)
  prompts = (batch, num_prompts, *pixels)
  return {"query": (batch, *pixels), "prompt_images": prompts, "prompt_colors": prompts}


def predict_function(model: SegGPT, seg_type: SegType) -> Callable[..., jax.Array]:
  """Returns a function of parameters, which may be stored in float16, and of the inputs.

  It takes one query at a time as the network sees it, so that no shape inside depends on the size of the batch.
  """
  graph, config = parameters.split(model)[0], model.config
  hidden = np.ones((1, *canvas.grid_size(tile_size(model), config.patch_size)), bool)

  def predict_one(model: SegGPT, *pixels: jax.Array) -> jax.Array:
    query, images, targets = (canvas.normalize(x, config.image_mean, config.image_std)[None] for x in pixels)
    colors = predict_queries(model, query, images, targets, jnp.zeros_like(query), hidden, seg_type)
    return canvas.unnormalize(colors[0], config.image_mean, config.image_std)

  def predict(params: parameters.Params, *inputs: jax.Array) -> jax.Array:
    # The conversion is part of the program: `jnp.asarray` with a dtype would convert before anything is stored.
    full = parameters.merge(graph, {name: jnp.asarray(value).astype(jnp.float32) for name, value in params.items()})
    return jax.vmap(functools.partial(predict_one, full))(*inputs)

  return predict


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
  function, params = predict_function(model, seg_type), stored_params(parameters.split(model)[1], dtype)
  (batch,) = jax.export.symbolic_shape("batch")
  inputs = [jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in input_shapes(model, num_prompts, batch).values()]
  predict = jax.jit(functools.partial(function, params))
  exported = jax.export.export(predict, platforms=PLATFORMS)(*inputs)
  gc.collect()  # frees the compiler's copy of the parameters, which reference cycles hold, before they are copied again
  return exported.serialize()
