"""Tiles, stitched seams and the ensemble against a slow, simple implementation.

The reference runs the network of tests/reference.py, float64, one query at a time. Everything around it is written here
with loops, from the description of the original tool. Colors are rounded to 0..255 on the way, so a predicted color may
be one step away.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from PIL import Image

from seggpt_jax import palette
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model import parameters, torch_weights, weights
from seggpt_jax.synthetic.boards import BoardSource
from tests import reference


class SlowPredictor:
  """A predictor on the reference network, written with loops."""

  def __init__(self, model):
    self.config = model.config
    params = {name: np.array(value) for name, value in parameters.split(model)[1].items()}
    self.state = torch_weights.to_torch(params, self.config.depth, "baai")

  def run(self, query, known, patch_mask, prompts):
    """Predicts the masked patches of one query of a tile's size; returns all of its colors."""
    config, side = self.config, len(query)

    def normalized(pixels):
      return (pixels / 255.0 - np.array(config.image_mean)) / np.array(config.image_std)

    images = np.stack([normalized(np.concatenate([image, query])) for image, _ in prompts])
    targets = np.stack([normalized(np.concatenate([colors, known])) for _, colors in prompts])
    mask = np.concatenate([np.zeros_like(patch_mask), patch_mask])
    colors = reference.forward(
      self.state,
      images,
      targets,
      np.stack([mask] * len(prompts)),
      merge_block=config.merge_block,
      feature_taps=config.feature_taps,
      prompts_per_query=len(prompts),
    )[0, side:]
    colors = (colors * np.array(config.image_std) + np.array(config.image_mean)) * 255
    return np.round(np.clip(colors, 0, 255)).astype(np.uint8)

  def predict(self, image, prompts, split, stitch_width=0):
    """Returns colors and labels of an image, and with a stitch width those after the seams were predicted again."""
    side, patch = self.config.canvas_size[1], self.config.patch_size
    whole, cells = split * side, side // patch
    entries = palette.fixed_palette(1 + max(int(labels.max()) for _, labels in prompts))
    tiles = []
    for pixels, labels in prompts:
      pixels, colors = resized(pixels, whole, Image.BICUBIC), entries[resized(labels, whole, Image.NEAREST)]
      for top in range(0, whole, side):
        for left in range(0, whole, side):
          place = np.s_[top : top + side, left : left + side]
          tiles.append((pixels[place], colors[place]))
    query = resized(image, whole, Image.BICUBIC)
    painted = np.zeros_like(query)
    for top in range(0, whole, side):
      for left in range(0, whole, side):
        place = np.s_[top : top + side, left : left + side]
        painted[place] = self.run(query[place], painted[place], np.ones((cells, cells), bool), tiles)
    found = [self.decoded(painted, image.shape[:2], entries)]
    if stitch_width:
      self.stitch(query, painted, tiles, split, stitch_width)
      found.append(self.decoded(painted, image.shape[:2], entries))
    return found

  def stitch(self, query, painted, tiles, split, width):
    """Predicts the seams again, in place: first across all edges, independently, then around all corners."""
    side, patch = self.config.canvas_size[1], self.config.patch_size
    middle, band = side // 2, width * patch
    along, across = np.s_[:], np.s_[middle - band : middle + band]
    edges = [(i * side, j * side - middle, along, across) for i in range(split) for j in range(1, split)]
    edges += [(i * side - middle, j * side, across, along) for i in range(1, split) for j in range(split)]
    corners = [(i * side - middle, j * side - middle, None, None) for i in range(1, split) for j in range(1, split)]
    if split == 2:
      assert (len(edges), len(corners)) == (4, 1)  # the five of the original tool
    for windows in (edges, corners):
      seen = painted.copy()
      for top, left, rows, cols in windows:
        place = np.s_[top : top + side, left : left + side]
        pixel_mask = np.zeros((side, side), bool)
        if rows is None:
          pixel_mask[across] = pixel_mask[:, across] = True
        else:
          pixel_mask[rows, cols] = True
        again = self.run(query[place], seen[place], pixel_mask[::patch, ::patch], tiles)
        painted[place][pixel_mask] = again[pixel_mask]

  def decoded(self, painted, size, entries):
    colors = np.asarray(Image.fromarray(painted).resize(size[::-1], Image.BILINEAR))
    distance = np.linalg.norm(colors[:, :, None].astype(float) - entries[None, None], axis=-1)
    return colors, np.argmin(distance, axis=-1)


def resized(pixels, side, resampling):
  return np.asarray(Image.fromarray(pixels).resize((side, side), resampling))


@functools.cache
def packaged():
  model = weights.load_model("drawn")
  return Predictor(model), SlowPredictor(model)


def boards(count):
  source = BoardSource(num_boards=count, size=140, seed=3, labels="etched", scale=3.0)
  return [(source[index]["image"], source[index]["label"]) for index in range(count)]


def check(prediction, expected, classes):
  colors, labels = expected
  assert np.mean(prediction.labels == labels) >= 0.999
  # Where the network is undecided, a rounding step in a window's inputs can grow, which is rare.
  assert np.mean(np.abs(prediction.colors.astype(int) - colors) > 1) < 0.005
  assert len(np.unique(labels)) == classes  # otherwise nothing was compared


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_an_ensemble_of_the_small_weights(num_prompts):
  fast, slow = packaged()
  (query, _), *prompts = boards(1 + num_prompts)
  check(fast.predict(query, prompts), *slow.predict(query, prompts, split=1), 2)


@pytest.mark.slow  # .ci/run runs it
def test_tiles_and_stitched_seams_of_the_small_weights():
  fast, slow = packaged()
  (query, _), prompt = boards(2)
  plain, stitched = slow.predict(query, [prompt], split=2, stitch_width=2)
  found = fast.predict(query, [prompt], split=2, stitch_width=2)
  check(found, stitched, 2)
  check(found.unstitched, plain, 2)
  assert np.any(found.labels != found.unstitched.labels)


def test_more_tiles_than_the_original_stitches(model):
  slow, generator = SlowPredictor(model), np.random.default_rng(0)
  query = generator.integers(0, 256, (100, 90, 3), np.uint8)
  prompts = [(generator.integers(0, 256, (50, 60, 3), np.uint8), generator.integers(0, 2, (50, 60), np.uint8))]
  plain, stitched = slow.predict(query, prompts, split=3, stitch_width=1)
  found = Predictor(model).predict(query, prompts, split=3, stitch_width=1)
  check(found, stitched, 2)
  check(found.unstitched, plain, 2)
