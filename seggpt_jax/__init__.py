"""SegGPT (segmentation by example) in JAX: fine-tune on your own images, segment, measure.

  import seggpt_jax

  predictor = seggpt_jax.Predictor.from_checkpoint("small")
  prediction = predictor.predict(image, [(prompt_image, prompt_labels)])
  prediction.labels

Each name is imported when it is first used, so that `import seggpt_jax` is fast and reading data never starts JAX:

  Predictor         segments images by example: the class to start with
  Prediction        the result of `Predictor.predict`: labels, colors, confidence
  InferenceOptions  options of a prediction: tiles, overlap, mirrored copies
  instances         lists the objects of a prediction, with area, box, confidence and polygon
  trained_options   the options that fit trained weights: their scale, their operating point
  load_model        loads a network from weights, a training run, or a packaged name
  SegGPT            the network, a Flax NNX module: canvases in, colors out
  SegGPTConfig      the architecture of a network
  masked_smooth_l1  the training loss
  canvas            module: puts prompt and query on one canvas, and hides patches
  palette           module: turns class indices into colors and colors into class indices
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
  from seggpt_jax import canvas, palette
  from seggpt_jax.inference.instances import instances
  from seggpt_jax.inference.options import InferenceOptions
  from seggpt_jax.inference.prediction import Prediction
  from seggpt_jax.inference.predictor import Predictor
  from seggpt_jax.inference.trained import trained_options
  from seggpt_jax.model.config import SegGPTConfig
  from seggpt_jax.model.seggpt import SegGPT
  from seggpt_jax.model.weights import load_model
  from seggpt_jax.training.loss import masked_smooth_l1

_MODULES = {
  "InferenceOptions": "seggpt_jax.inference.options",
  "Prediction": "seggpt_jax.inference.prediction",
  "Predictor": "seggpt_jax.inference.predictor",
  "SegGPT": "seggpt_jax.model.seggpt",
  "SegGPTConfig": "seggpt_jax.model.config",
  "canvas": "seggpt_jax.canvas",
  "instances": "seggpt_jax.inference.instances",
  "load_model": "seggpt_jax.model.weights",
  "masked_smooth_l1": "seggpt_jax.training.loss",
  "palette": "seggpt_jax.palette",
  "trained_options": "seggpt_jax.inference.trained",
}

__all__ = [
  "InferenceOptions",
  "Prediction",
  "Predictor",
  "SegGPT",
  "SegGPTConfig",
  "canvas",
  "instances",
  "load_model",
  "masked_smooth_l1",
  "palette",
  "trained_options",
]


def __getattr__(name: str) -> object:
  """Imports a public name when it is first used."""
  if name not in _MODULES:
    raise AttributeError(f"module 'seggpt_jax' has no attribute {name!r}")
  module = importlib.import_module(_MODULES[name])
  value = module if _MODULES[name] == f"seggpt_jax.{name}" else getattr(module, name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """Lists the public names, and not the machinery."""
  return [*__all__, "__version__"]
