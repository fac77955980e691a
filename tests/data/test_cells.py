"""Cells and zoom: small objects must survive the way to the network, in training and at inference alike."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seggpt_jax.data import scale
from seggpt_jax.data.augment import Augmentation, augment
from seggpt_jax.data.scale import Scale, ZoomedSource, measured_zoom, object_sides
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE, shrink_labels


class Labels:
  """A source of given label maps; the red channel of an image is its label."""

  num_classes = 4

  def __init__(self, *labels):
    self._labels = [np.asarray(label, np.uint8) for label in labels]

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    return sample(self._labels[index])

  def name(self, index):
    return str(index)

  def label(self, index):
    return self._labels[index]

  def classes(self, index):
    return None

  def label_stamp(self, index):
    return ""

  def field(self, index, key):
    raise InputError("no fields")


def sample(label):
  label = np.asarray(label, np.uint8)
  return {"image": np.repeat(label[..., None], 3, axis=2), "label": label}


def scene(height=200, width=300):
  label = np.zeros((height, width), np.uint8)
  label[:, 50] = 1  # a crack, one pixel wide
  label[100:104, 100:104] = 2
  label[10, 200] = 3
  label[150:, 250:] = IGNORE
  return label


@pytest.mark.parametrize("factor", [0.9, 0.5, 0.31, 0.1])
def test_shrinking_keeps_every_object_at_its_place(factor):
  label = scene()
  shape = Scale(factor).size(label.shape)
  small = shrink_labels(label, shape)
  assert set(np.unique(small)) == {0, 1, 2, 3, IGNORE}
  rows, cols = np.nonzero(small == 1)
  assert set(rows) == set(range(shape[0])) and set(cols) == {int(50.5 * factor)}, "a line stays a line"
  for value, place in ((2, (102, 102)), (3, (10.5, 200.5))):
    np.testing.assert_allclose(np.argwhere(small == value).mean(axis=0) + 0.5, np.multiply(place, factor), atol=1.0)


def test_a_large_object_keeps_its_area_and_the_nearest_neighbor_enlarges():
  label = np.zeros((90, 90), np.uint8)
  label[20:63, 11:74] = 1
  assert abs((shrink_labels(label, (40, 40)) == 1).mean() - (label == 1).mean()) < 0.02
  np.testing.assert_array_equal(shrink_labels(label, (180, 180)), label.repeat(2, axis=0).repeat(2, axis=1))
  assert not shrink_labels(np.zeros((9, 9), np.uint8), (4, 4)).any()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_no_class_is_lost_at_any_size_that_has_room(seed, height, width):
  generator = np.random.default_rng(seed)
  label = np.zeros((40, 40), np.uint8)
  label[tuple(generator.integers(0, 40, 2))] = 1
  assert (shrink_labels(label, (height, width)) == 1).any()


def test_random_crops_of_zoomed_samples_lose_no_object():
  augmentation = Augmentation(resize=None, scale=(0.4, 0.4), foreground_crop=1.0)
  label = np.zeros((120, 120), np.uint8)
  label[70, 33] = 2
  for seed in range(20):
    assert (augment(sample(label), 32, np.random.default_rng(seed), augmentation)["label"] == 2).any()


def test_prompts_show_every_class_in_cells_of_its_objects():
  labels = [np.zeros((50, 60), np.uint8) for _ in range(4)]
  for index, label in enumerate(labels):
    label[5 + 10 * index : 12 + 10 * index, 30:37] = 1 + index % 3
  labels[3][40:45, 2:8] = 2  # shows class 2 too, which was shown already
  (prompt,) = scale.make_prompts([sample(label) for label in labels], 2, 41)
  assert prompt["image"].shape == (41, 41, 3) and set(np.unique(prompt["label"])) >= {0, 1, 2, 3}
  np.testing.assert_array_equal(prompt["image"][..., 0], prompt["label"])
  edges = scale._cell_edges(41, 2)
  assert edges == [0, 20, 41]
  for place, wanted in enumerate((1, 2, 3)):
    row, col = divmod(place, 2)
    assert wanted in prompt["label"][edges[row] : edges[row + 1], edges[col] : edges[col + 1]]


def test_the_next_class_is_the_one_that_was_shown_least():
  shown = collections.Counter()
  label = np.array([[0, 1, 2, 3]], np.uint8)
  assert [scale.next_class(label, shown) for _ in range(4)] == [1, 2, 3, 1]
  assert scale.next_class(np.zeros((1, 1), np.uint8), shown) == 0


def test_a_crop_holds_the_largest_object_even_at_a_border_and_in_an_image_that_is_too_small():
  label = np.zeros((64, 64), np.uint8)
  label[0:3, 60:64], label[30, 30] = 1, 1
  crop = scale._crop_object(sample(label), 1, 16)
  assert crop["label"].shape == (16, 16) and (crop["label"] == 1).sum() == 12
  small = scale._crop_object(sample(label[:10, 50:]), 1, 32)
  assert small["label"].shape == (32, 32) and small["image"].shape == (32, 32, 3) and (small["label"] == 1).any()
  assert scale._crop_object(sample(np.zeros((64, 64))), 0, 16)["label"].shape == (16, 16)


@pytest.mark.parametrize(
  ("length", "overlap", "count"), [(64, 0, 1), (65, 0, 2), (128, 0, 2), (128, 0.5, 3), (384, 0.25, 8)]
)
def test_windows_cover_a_side_with_the_least_number(length, overlap, count):
  starts = scale.window_starts(length, 64, overlap)
  assert len(starts) == count and starts[0] == 0 and starts[-1] == length - 64
  assert max(np.diff(starts), default=0) <= 64 * (1 - overlap) + 1


def test_objects_are_measured_by_class_and_decide_the_zoom():
  sides = object_sides(Labels(scene(), np.kron([[0, 2]], np.ones((8, 8)))))
  # A line of 200 pixels counts as a square of the same area; the median of sides 4 and 8.
  assert sides == {1: pytest.approx(200**0.5), 2: 6.0, 3: 1.0}
  assert measured_zoom({1: 16.0, 2: 40.0}, (640, 640), 96, 8, 100) == 0.5
  assert measured_zoom({1: 4.0}, (200, 200), 96, 8, 100) == 1.0, "magnifying shows nothing new"
  limited = measured_zoom({1: 8.0}, (2000, 3000), 96, 8, 36)
  assert Scale(limited).num_windows((2000, 3000), 96) <= 36 and limited > 0.15
  assert measured_zoom({1: 500.0}, (1000, 1000), 96, 8, 36) == pytest.approx(0.1, abs=0.005), (
    "whole images in one square"
  )
  with pytest.raises(InputError, match="found no foreground"):
    object_sides(Labels(np.zeros((8, 8))))


def test_a_zoomed_source_scales_images_and_labels_together():
  found = ZoomedSource(Labels(scene()), Scale(0.5))[0]
  assert found["image"].shape == (100, 150, 3) and found["label"].shape == (100, 150)
  assert {1, 2, 3} <= set(np.unique(found["label"]))
