"""SegGPT (segmentation by example) in JAX: convert the PyTorch weights, fine-tune, segment.

The names below are the public face; each is imported when it is first used, so that reading data never loads the
network and running the network never loads what reads data.
"""

import importlib

_HOME = {
  "InferenceOptions": "seggpt_jax.inference.options",
  "Prediction": "seggpt_jax.inference.prediction",
  "Predictor": "seggpt_jax.inference.predictor",
  "SegGPT": "seggpt_jax.model.seggpt",
  "SegGPTConfig": "seggpt_jax.model.config",
  "load_model": "seggpt_jax.model.weights",
  "masked_smooth_l1": "seggpt_jax.training.loss",
}
_ROOMS = ("canvas", "palette")

__all__ = [
  "InferenceOptions",
  "Prediction",
  "Predictor",
  "SegGPT",
  "SegGPTConfig",
  "canvas",
  "load_model",
  "masked_smooth_l1",
  "palette",
]


def __getattr__(name: str):
  if name in _ROOMS:
    return importlib.import_module(f"seggpt_jax.{name}")
  if name in _HOME:
    return getattr(importlib.import_module(_HOME[name]), name)
  raise AttributeError(f"module 'seggpt_jax' has no attribute {name!r}")
