"""Compares the images of a session with its examples, as `seggpt infer --prompts=similar` does.

In: the network of a session, and the files of its examples. Out: the score of each example for an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.pictures import LABEL_MAPS
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.retrieval.features import Encoder
from seggpt_jax.retrieval.prompt_index import TAP, PromptIndex

Scores = Callable[[UInt8[np.ndarray, "_ _ 3"]], dict[str, float]]  # scores of the examples for an image, by their keys


class Likeness:
  """Compares images with the encoder of a network, which is compiled in a thread of its own.

  Args:
    predictor: the network.
  """

  def __init__(self, predictor: Predictor):
    self._predictor, self._thread = predictor, ThreadPoolExecutor(1, "similarity")
    self._thread.submit(lambda: self._encoder)

  @functools.cached_property
  def _encoder(self) -> Encoder:
    # One image at a time, as the first answer must not wait for a batch.
    encoder = Encoder(self._predictor.model, min(TAP, len(self._predictor.config.feature_taps)), batch_size=1)
    encoder(np.zeros((1, *encoder.size, 3), np.uint8))
    return encoder

  def compare_with(self, examples: Mapping[str, PromptFiles], cache: Path) -> Future[Scores]:
    """Returns the future of a function that scores examples for an image. Only new examples are encoded.

    Args:
      examples: image and label files of the examples, by their keys.
      cache: folder in which the features of examples are kept.
    """

    def build() -> Scores:
      index = PromptIndex.build(self._encoder, list(examples.values()), LABEL_MAPS, cache=cache, progress=False)
      return lambda image: dict(zip(examples, next(index.score_many([image])).tolist(), strict=True))

    return self._thread.submit(build)
