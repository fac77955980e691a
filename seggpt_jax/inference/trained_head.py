"""Answers of a trained head: an image of any size in, its classes out, without prompts.

The network sees the image as a square of the side that the head was trained at, and mirrored in both directions. The
mean of the probabilities is resized to the size of the image and decoded there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Num, UInt8

from seggpt_jax import canvas
from seggpt_jax.compilation import jit
from seggpt_jax.data.augment import to_square
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import MIRRORED_AXES, InferenceOptions
from seggpt_jax.inference.prediction import Prediction, blend_most_likely, decode_prediction
from seggpt_jax.inference.prompts import check_palette
from seggpt_jax.model import parameters

_WITHOUT_EFFECT = ("split", "overlap", "stitch_width", "flips", "foreground_tiles", "zoom", "octaves")

Answer = Callable[[UInt8[np.ndarray, "h w 3"]], Float[np.ndarray, "h2 w2 c"]]


def answer_of(graph: nnx.GraphDef, params: parameters.Params, side: int) -> Answer:
  """Returns a function from an image to the probabilities of the classes of its square at stride 2."""

  @jit
  def run(params, image):
    model = parameters.merge(graph, params)
    copies = jnp.stack([jnp.flip(canvas.normalize(image), axes) for axes in MIRRORED_AXES["both"]])
    found = jax.nn.softmax(model.pixel_head(model.pixel_features(copies)))
    upright = [jnp.flip(each, axes) for each, axes in zip(found, MIRRORED_AXES["both"], strict=True)]
    return jnp.mean(jnp.stack(upright), axis=0)

  return lambda image: np.asarray(run(params, to_square(image, side)), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadPrediction:
  """A query that a trained head answers, in the place of a `PendingPrediction`."""

  image: UInt8[np.ndarray, "h w 3"]  # the query
  answer: Answer  # the head
  palette: Num[np.ndarray, "n 3"]  # the color of each class
  options: InferenceOptions  # how to decode
  views: tuple[()] = ()
  finished: bool = True

  def decode(self) -> Prediction:
    """Asks the head about the image and decodes its answer."""
    shape = self.image.shape[:2]
    full = cv2.resize(self.answer(self.image), shape[::-1], interpolation=cv2.INTER_LINEAR).reshape(*shape, -1)
    classes = np.arange(full.shape[-1])
    colors = blend_most_likely({int(index): full[..., index] for index in classes[1:]}, self.palette, shape)
    options = self.options
    return decode_prediction(colors, self.palette, classes, self.image, options.sensitivity, options.least_area)

  @classmethod
  def start(
    cls, image: np.ndarray, answer: Answer, classes: int, palette: np.ndarray | None, options: InferenceOptions
  ) -> HeadPrediction:
    """Returns the prediction of a query that is still to be computed; without a palette, in the fixed colors.

    Raises:
      InputError: an option cuts or mirrors images, which a head sees whole and mirrored by itself.
    """
    for name in _WITHOUT_EFFECT:
      found, default = (getattr(each, name) for each in (options, InferenceOptions()))
      if found != default:
        raise InputError(
          f"{name}: found {found}, expected {default} with a trained head, which sees whole images, mirrored too"
        )
    return cls(image, answer, check_palette(palette, classes), options)
