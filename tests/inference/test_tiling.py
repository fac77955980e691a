"""Tiles: a tile in the wrong place would put a mask on the wrong part of the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.inference import tiling


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(12, 24), (12, 24, 3)])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_tiles_are_the_picture_read_row_by_row_and_join_to_it_again(shape, split):
  picture = noise(*shape)
  tiles = tiling.cut(picture, split)
  height, width = shape[0] // split, shape[1] // split
  for row in range(split):
    for column in range(split):
      window = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
      np.testing.assert_array_equal(tiles[row * split + column], window)
  np.testing.assert_array_equal(tiling.join(tiles), picture)


@pytest.mark.parametrize("size", [(64, 64), (7, 31), (100, 40)])
def test_labels_are_resized_as_training_does_with_pillow_and_wide_indices_survive(size):
  labels = noise(37, 53) // 50  # six classes, of which all sizes show something
  expected = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
  np.testing.assert_array_equal(tiling.resize_labels(labels, size), expected)
  np.testing.assert_array_equal(tiling.resize_labels(labels.astype(np.int64) + 1000, size), expected.astype(int) + 1000)


@pytest.mark.parametrize("size", [(128, 128), (16, 16), (16, 2000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_class_is_lost_by_resizing_wherever_it_lies(size, dtype):
  """A prompt that shows nothing of a class finds nothing of it, without a word."""
  offsets = np.random.default_rng(0).integers(0, 495, (20, 2))
  for top, left in offsets.tolist():
    labels = np.zeros((1000, 1000), dtype)
    labels[600:900, 100:900] = 1
    labels[top : top + 3, left : left + 3] = 7
    resized = tiling.resize_labels(labels, size)
    assert resized.dtype == dtype and set(np.unique(resized)) == {0, 1, 7}
    rows, cols = (np.arange(length) * 1000 // length for length in size)
    nearby = (abs(rows - top) <= 1000 // size[0] + 3)[:, None] & (abs(cols - left) <= 1000 // size[1] + 3)[None, :]
    assert not ((resized == 7) & ~nearby).any()
    # The class that is large enough is resized as before.
    plain = tiling.resize_labels(np.where(labels == 7, 0, labels).astype(dtype), size)
    np.testing.assert_array_equal(np.where(resized == 7, 0, resized), plain)


def test_small_classes_are_those_of_less_than_a_few_pixels_after_resizing():
  labels = np.zeros((1000, 1000), np.uint8)
  labels[496:501, 496:501], labels[:300, :300] = 1, 2
  assert tiling.small_classes(labels, (128, 128)) == {1: pytest.approx(0.41, abs=0.01)}
  assert tiling.small_classes(labels, (1000, 1000)) == tiling.small_classes(labels, (2000, 2000)) == {}


def test_tiles_of_an_odd_picture_have_the_network_size():
  assert tiling.cut(tiling.resize_image(noise(37, 53, 3), (48, 48)), 3).shape == (9, 16, 16, 3)
  assert tiling.cut(tiling.resize_labels(noise(37, 53), (48, 48)), 3).shape == (9, 16, 16)


def test_resizing_painted_colors_never_makes_a_color_beyond_the_painted_ones():
  edge = np.zeros((8, 8, 3), np.uint8) + 100
  edge[:, 4:] = 180
  resized = tiling.resize_colors(edge, (33, 29))
  assert resized.min() == 100
  assert resized.max() == 180


def test_blocks_hold_every_pixel_once_and_the_rest_is_filled():
  pixels = noise(10, 3)
  blocks = tiling.pixel_blocks(pixels, 4, fill=7)
  assert [block.shape for block in blocks] == [(4, 3)] * 3
  np.testing.assert_array_equal(np.concatenate(blocks)[:10], pixels)
  assert (np.concatenate(blocks)[10:] == 7).all()
