"""A query on its way through the network: views of an image in, one prediction out."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from seggpt_jax.inference import heads, tiling
from seggpt_jax.inference.batching import TiledImage
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import (
  Prediction,
  blend_most_likely,
  class_shares,
  decode_prediction,
  nearest_blends,
)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """An image at one split and with one mirroring.

  Attributes:
    tiled: the image on its way through the network.
    axes: the mirrored axes.
    shape: height and width in pixels of the image at this split, without what fills it up to a tile.
    coarse: whether this is the second zoom.
    asked: the class of each channel, if the network answers masks.
  """

  tiled: TiledImage
  axes: tuple[int, ...]
  shape: tuple[int, int]
  coarse: bool = False
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
    fine, coarse = (
      [c for c, view in zip(colors, self.views, strict=True) if view.coarse == which] for which in (False, True)
    )
    fused = _mean(fine)
    if coarse:
      # Each zoom has been asked for its own classes, and its colors must be told from these alone.
      large = np.intersect1d(self.classes, self.options.coarse_classes)
      small = np.setdiff1d(self.classes, large)
      fused = nearest_blends(fused, self.palette, small[small > 0])
      # What was found at the first zoom lies in front: small objects lie on large ones.
      found = decode_prediction(fused, self.palette, small, None, self.options.sensitivity).labels > 0
      fused = np.where(found[..., None], fused, nearest_blends(_mean(coarse), self.palette, large))
    if combine:
      asked = self.classes[self.classes > 0]
      fused = self._blend(class_shares(fused, self.palette, asked), combine)
    return decode_prediction(fused, self.palette, self.classes, self.image, *decoding)

  def _probabilities(self, predicted: list[np.ndarray]) -> dict[int, np.ndarray]:
    """Returns the probability of each class, 0..1, from masks of all views."""
    found: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    for view, masks in zip(self.views, predicted, strict=True):
      for channel, index in enumerate(view.asked):
        # Each zoom is asked for its own classes.
        if not self.options.coarse_zoom or view.coarse == (index in self.options.coarse_classes):
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
