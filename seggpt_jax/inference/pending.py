"""A query on its way through the network: views of an image in, one prediction out."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from seggpt_jax.inference import heads, tiling
from seggpt_jax.inference.batching import TiledImage
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction, blend_most_likely, class_shares, decode_prediction


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """An image at one split and with one mirroring.

  Attributes:
    tiled: the image on its way through the network.
    axes: the mirrored axes.
    shape: height and width in pixels of the image at this split, without what fills it up to a tile.
    asked: the class of each channel, if the network answers masks.
  """

  tiled: TiledImage
  axes: tuple[int, ...]
  shape: tuple[int, int]
  asked: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class PendingPrediction:
  """A query on its way through the network.

  Attributes:
    image: the query.
    views: the image at every split and with every mirroring.
    palette: the color of each class.
    classes: the classes to decode to.
    options: how to decode.
    head: a classifier whose probabilities are averaged with the network's.
  """

  image: np.ndarray
  views: list[View]
  palette: np.ndarray
  classes: np.ndarray
  options: InferenceOptions
  head: heads.Head | None = None

  @property
  def finished(self) -> bool:
    """True once the network has predicted all views."""
    return all(view.tiled.finished for view in self.views)

  def decode(self) -> Prediction:
    """Averages the predicted views and decodes them."""
    combine = self.head and self.head.combine(self.image)
    prediction = self._decode([view.tiled.colors for view in self.views], combine)
    if all(view.tiled.colors is view.tiled.unstitched_colors for view in self.views):
      return prediction
    unstitched = self._decode([view.tiled.unstitched_colors for view in self.views], combine)
    return dataclasses.replace(prediction, unstitched=unstitched)

  def _decode(self, predicted: list[np.ndarray], combine: heads.Combine | None) -> Prediction:
    upright = [
      np.flip(colors, view.axes)[: view.shape[0], : view.shape[1]]
      for view, colors in zip(self.views, predicted, strict=True)
    ]
    colors = [tiling.resize_colors(pixels, self.image.shape[:2]) for pixels in upright]
    decoding = self.options.sensitivity, self.options.least_area
    if self.views[0].asked:
      colors = self._blend(self._probabilities(colors), combine)
      return decode_prediction(colors, self.palette, self.classes, self.image, *decoding)
    fused = _mean(colors)
    if combine:
      asked = self.classes[self.classes > 0]
      fused = self._blend(class_shares(fused, self.palette, asked), combine)
    return decode_prediction(fused, self.palette, self.classes, self.image, *decoding)

  def _probabilities(self, predicted: list[np.ndarray]) -> dict[int, np.ndarray]:
    """Returns the probability of each class, 0..1, from masks of all views."""
    found: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    for view, masks in zip(self.views, predicted, strict=True):
      for channel, index in enumerate(view.asked):
        found[index].append(masks[..., channel])
    return {index: np.mean(masks, axis=0, dtype=np.float32) / 255.0 for index, masks in found.items()}

  def _blend(self, probabilities: dict[int, np.ndarray], combine: heads.Combine | None) -> np.ndarray:
    """Blends each pixel's most likely class into the background, by its probability."""
    if combine:
      probabilities = {index: combine(index, each) for index, each in probabilities.items()}
    return blend_most_likely(probabilities, self.palette, self.image.shape[:2])


def _mean(colors: list[np.ndarray]) -> np.ndarray:
  """Returns the mean of predicted colors, as uint8."""
  return colors[0] if len(colors) == 1 else np.round(np.mean(colors, axis=0)).astype(np.uint8)
