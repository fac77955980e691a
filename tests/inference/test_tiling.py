"""Tiles: a tile in the wrong place would put a mask on the wrong part of the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.inference import tiling
from seggpt_jax.inference.tiling import Window, blend, cut, foreground_tiles, image_windows, paste, seam_windows


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


def cells(windows, size, patch_size):
  """Counts how often each pixel of an image is predicted."""
  painted = np.zeros(size, int)
  for top, left, mask in windows:
    mask = np.kron(mask, np.ones((patch_size, patch_size), int))
    painted[top : top + mask.shape[0], left : left + mask.shape[1]] += mask
  return painted


@pytest.mark.parametrize("split", [1, 2, 3])
def test_tiles_without_overlap_are_those_that_are_cut(split):
  picture = noise(split * 12, split * 8, 3)
  windows = image_windows(picture.shape[:2], (12, 8), 4)
  for window, tile in zip(windows, cut(picture, split), strict=True):
    assert window.mask.shape == (3, 2) and window.mask.all()
    np.testing.assert_array_equal(picture[window.top : window.top + 12, window.left : window.left + 8], tile)
  np.testing.assert_array_equal(blend(cut(picture, split), windows, picture.shape[:2]), picture)


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("split", [2, 3, 5])
def test_overlapping_tiles_have_as_much_in_common_as_asked_for_and_agree_with_the_picture(split, overlap):
  picture, side = noise(split * 20, split * 20, 3), 20
  windows = image_windows(picture.shape[:2], (side, side), 4, overlap)
  tops = sorted({window.top for window in windows})
  assert (tops[0], tops[-1]) == (0, (split - 1) * side)
  assert np.max(np.diff(tops)) <= np.ceil((1 - overlap) * side)
  tiles = np.stack([picture[w.top : w.top + side, w.left : w.left + side] for w in windows])
  np.testing.assert_array_equal(blend(tiles, windows, picture.shape[:2]), picture)


def test_a_blend_goes_over_from_one_tile_to_the_next_without_a_step():
  windows = image_windows((40, 40), (20, 20), 4, 0.5)
  assert [w.left for w in windows[:3]] == [0, 10, 20]
  tiles = np.zeros((9, 20, 20, 3), np.uint8)
  tiles[[2, 5, 8]] = 200  # the right column says another thing than the others
  blended = blend(tiles, windows, (40, 40)).astype(int)
  assert (blended[:, :20] == 0).all() and (blended[:, 30:] == 200).all()
  steps = np.diff(blended[:, 19:31, 0], axis=1)
  assert (steps >= 0).all() and steps.max() <= 20


@pytest.mark.parametrize("split, patch_size, width", [(2, 4, 1), (2, 4, 2), (3, 4, 2), (4, 2, 1), (3, 5, 1)])
def test_bands_cover_every_seam_and_nothing_else(split, patch_size, width):
  """Includes tiles with an odd number of patches, whose middle is inside a patch."""
  side, whole = 20, split * 20
  edges, corners = seam_windows(split, (side, side), patch_size, width)
  assert (len(edges), len(corners)) == (2 * split * (split - 1), (split - 1) ** 2)
  for window in (*edges, *corners):
    assert 0 <= window.top <= whole - side and 0 <= window.left <= whole - side
  position = np.arange(whole)
  near = np.any([np.abs(position + 0.5 - j * side) < width * patch_size for j in range(1, split)], axis=0)
  np.testing.assert_array_equal(cells(edges, (whole, whole), patch_size) > 0, near[:, None] | near[None])
  inner = np.zeros(whole, bool)
  start = corners[0].top
  inner[start : start + side * (split - 1)] = True
  crosses = (near[:, None] | near[None]) & inner[:, None] & inner[None]
  np.testing.assert_array_equal(cells(corners, (whole, whole), patch_size), crosses)


def test_only_the_painted_patches_of_a_window_are_pasted():
  picture, tile = noise(12, 12, 3), 255 - noise(8, 8, 3)
  mask = np.array([[True, False], [False, False]])
  expected = picture.copy()
  expected[2:6, 3:7] = tile[:4, :4]
  paste(picture, tile, Window(2, 3, mask), 4)
  np.testing.assert_array_equal(picture, expected)


def test_prompt_tiles_without_foreground_are_left_out_down_to_a_power_of_two():
  labels = np.zeros((9, 4, 4), int)
  for index, pixels in {1: 3, 4: 1, 7: 16}.items():
    labels[index].flat[:pixels] = 2
  assert np.flatnonzero(foreground_tiles(labels)).tolist() == [0, 1, 4, 7]  # three, and one to fill up
  labels[8, 0, 0] = 1
  assert np.flatnonzero(foreground_tiles(labels)).tolist() == [1, 4, 7, 8]
  assert foreground_tiles(np.ones((3, 2, 2), int)).all()  # no fourth to fill up with
  assert foreground_tiles(np.zeros((4, 2, 2), int)).sum() == 1
