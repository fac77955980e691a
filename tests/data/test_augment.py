"""Augmentation: a label must stay with its pixel, and a seed must always give the same sample."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from seggpt_jax.data import augment
from seggpt_jax.data.augment import Augmentation

properties = settings(max_examples=150)

SIDES = st.one_of(st.just(1), st.integers(2, 60))
SHAPES = st.tuples(SIDES, SIDES)
SIZES = st.integers(1, 48)
SEEDS = st.integers(0, 2**32 - 1)
STRENGTHS = st.sampled_from([0.0, 0.1, 0.9])
AUGMENTATIONS = st.builds(
  Augmentation,
  resize=st.sampled_from([0, 1, 20, 64, 150]),
  scale=st.sampled_from([(1.0, 1.0), (0.3, 0.3), (0.5, 2.0)]),
  foreground_crop=st.sampled_from([0.0, 0.5, 1.0]),
  flips=st.sampled_from(augment.FLIPS),
  color=st.tuples(STRENGTHS, STRENGTHS, STRENGTHS),
  blur=st.sampled_from([0.0, 0.5, 3.0]),
)
APPEARANCE = {
  "brightness": Augmentation(color=(0.9, 0.0, 0.0)),
  "contrast": Augmentation(color=(0.0, 0.9, 0.0)),
  "saturation": Augmentation(color=(0.0, 0.0, 0.9)),
  "blur": Augmentation(blur=0.9),
}


def sample(shape=(40, 56), seed=0, labels=(0, 1, 2, 255)):
  """Returns a sample whose image stores row, column and label of each pixel in its three channels."""
  y, x = np.mgrid[: shape[0], : shape[1]]
  label = np.random.default_rng(seed).choice(np.array(labels, np.uint8), shape)
  return {"image": np.stack([y, x, label * 60], axis=-1).astype(np.uint8), "label": label, "name": f"sample{seed}"}


def as_view(whole, kind):
  """Returns the same pixels with another memory layout, as other code may pass them."""
  image, label = whole["image"], whole["label"]
  if kind == "strided":
    image, label = np.repeat(image, 2, axis=1)[:, ::2], np.repeat(label, 2, axis=1)[:, ::2]
  elif kind == "reversed":
    image, label = image[::-1, ::-1].copy()[::-1, ::-1], label[::-1, ::-1].copy()[::-1, ::-1]
  elif kind == "transposed":
    image, label = np.asfortranarray(image), np.asfortranarray(label)
  elif kind == "read-only":
    image, label = image.copy(), label.copy()
    image.flags.writeable = label.flags.writeable = False
  return {**whole, "image": image, "label": label}


def assert_equal(one, other):
  for key in ("image", "label"):
    np.testing.assert_array_equal(one[key], other[key])


def assert_together(changed):
  np.testing.assert_array_equal(changed["image"][..., 2], (changed["label"] * 60).astype(np.uint8))


# The whole chain: without these tests, one odd image could end a long training run, or labels could be wrong.


@properties
@given(SHAPES, SIZES, SEEDS, AUGMENTATIONS, st.sampled_from(["strided", "reversed", "transposed", "read-only"]))
def test_any_image_gives_a_square_without_new_labels(shape, size, seed, augmentation, kind):
  given_sample = {**sample(shape), "weight": 3}
  before = {key: np.copy(given_sample[key]) for key in ("image", "label")}
  changed = augment.augment(given_sample, size, np.random.default_rng(seed), augmentation)
  assert changed["image"].shape == (size, size, 3) and changed["label"].shape == (size, size)
  for key in ("image", "label"):
    assert changed[key].dtype == np.uint8 and changed[key].flags.c_contiguous
  assert set(np.unique(changed["label"])) <= set(np.unique(given_sample["label"]))
  assert changed["name"] == "sample0" and changed["weight"] == 3
  # The same seed gives the same result from any memory layout, and the input is not changed.
  assert_equal(changed, augment.augment(as_view(given_sample, kind), size, np.random.default_rng(seed), augmentation))
  assert_equal(given_sample, before)


@properties
@given(SIZES, SEEDS)
def test_default_options_change_nothing(size, seed):
  given_sample, generator = sample((size, size)), np.random.default_rng(seed)
  assert_equal(augment.augment(given_sample, size, generator, Augmentation()), given_sample)
  for step in (augment.random_flip, augment.random_turn, augment.random_appearance):
    assert_equal(step(given_sample, generator, Augmentation()), given_sample)


def test_a_crop_is_contiguous():
  # Strided views would make stacking a batch slow, and some code accepts only contiguous arrays.
  augmentation = Augmentation(resize=None)
  cut = augment.augment(sample(), 32, np.random.default_rng(0), augmentation)
  assert cut["image"].flags.c_contiguous and cut["label"].flags.c_contiguous


def test_another_seed_gives_another_sample():
  augmentation = Augmentation(resize=64, flips="horizontal", color=(0.5, 0.0, 0.0))
  changed = [augment.augment(sample(), 32, np.random.default_rng(seed), augmentation)["image"] for seed in range(20)]
  assert len({image.tobytes() for image in changed}) == 20


def test_threads_do_not_change_samples():
  # Hidden random state would make runs impossible to reproduce.
  augmentation = Augmentation(64, (0.5, 2.0), 0.5, "turns", (0.5, 0.5, 0.5), 2.0)

  def make(seed):
    return augment.augment(sample(seed=seed), 32, np.random.default_rng(seed), augmentation)

  with ThreadPoolExecutor(8) as threads:
    at_once = list(threads.map(make, range(100)))
  for seed, made in enumerate(at_once):
    assert_equal(made, make(seed))


# Crop and resize.


@properties
@given(SHAPES, SIZES, SEEDS)
def test_without_resizing_a_crop_has_the_pixels_of_the_image_mirrored_at_its_borders(shape, size, seed):
  given_sample = sample(shape)
  augmentation = Augmentation(resize=None)
  cropped = augment.random_crop(given_sample, size, np.random.default_rng(seed), augmentation)
  assert_together(cropped)
  for axis, channel in ((0, 0), (1, 1)):
    source = np.take(cropped["image"][..., channel], 0, axis=1 - axis)
    wide = np.pad(np.arange(shape[axis]), size, mode="reflect")
    starts = range(shape[axis] - size + 1) if shape[axis] >= size else range(shape[axis] - size, 1)
    assert any(np.array_equal(source, wide[size + start : 2 * size + start]) for start in starts)


def stripes(seed, width, length):
  """Returns four vertical or horizontal stripes of two labels, with an image that is bright where the label is 3."""
  generator = np.random.default_rng(seed)
  label = np.kron(generator.choice(np.array([0, 3], np.uint8), 4)[:, None], np.ones((width, length), np.uint8))
  label = label.T.copy() if generator.random() < 0.5 else label
  return {"image": np.repeat((label * 60)[..., None], 3, axis=-1), "label": label, "name": ""}


@properties
@given(
  SEEDS,
  st.integers(2, 60),
  st.integers(1, 200),
  st.integers(24, 64),
  st.floats(0.5, 8.0),
)
def test_resampled_labels_stay_aligned_with_their_image(seed, width, length, size, factor):
  # Shifted labels would teach the network to predict shifted masks.
  augmentation = Augmentation(resize=size, scale=(factor, factor))
  cropped = augment.random_crop(stripes(seed, width, length), size, np.random.default_rng(seed), augmentation)
  # Resampling may move an edge to either side, so pixels next to a change of label are not compared. Pixels at the
  # border are not compared either, because a change may be just outside.
  square = np.ones((3, 3), np.uint8)
  inside = (cv2.dilate(cropped["label"], square) == cv2.erode(cropped["label"], square))[1:-1, 1:-1]
  image, label = cropped["image"][1:-1, 1:-1, 0], cropped["label"][1:-1, 1:-1]
  np.testing.assert_array_equal(image[inside] > 90, label[inside] > 0)


@properties
@given(SHAPES, SIZES)
def test_label_resize_takes_the_pixel_nearest_to_the_center(shape, size):
  label = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
  given_sample = {"image": np.zeros((*shape, 3), np.uint8), "label": label, "name": ""}
  resized = augment.random_crop(given_sample, size, np.random.default_rng(0), Augmentation())["label"]
  # The i-th of `size` centers is at (i + 1/2) n / size. If that is a border between two pixels, both are nearest.
  centers = [(2 * np.arange(size) + 1) * n for n in shape]
  candidates = [
    label[np.ix_((centers[0] - y) // (2 * size), (centers[1] - x) // (2 * size))] for y in (0, 1) for x in (0, 1)
  ]
  assert np.any(resized == np.stack(candidates), axis=0).all()


@pytest.mark.parametrize(
  ("shape", "tolerance"),
  [
    ((20, 20), 0.15),
    ((40, 46), 0.15),
    ((49, 51), 0.15),
    ((63, 63), 0.15),
    ((90, 80), 0.25),
    ((98, 98), 0.45),
    ((120, 110), 0.45),
    ((130, 200), 0.45),
    ((400, 400), 0.45),
    ((20, 200), 0.45),
    ((400, 46), 0.45),
  ],
)
def test_resized_images_match_those_of_pillow(shape, tolerance):
  # Reference: Pillow's antialiased bicubic, which evaluation uses. The tolerance is a share of the image's standard
  # deviation. It is larger from a factor of 2 on, because the filters differ; aliasing would exceed 1.
  image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8), (0, 0), 0.7)
  given_sample = {"image": image, "label": image[..., 0], "name": ""}
  resized = augment.random_crop(given_sample, 47, np.random.default_rng(0), Augmentation())["image"]
  reference = np.asarray(Image.fromarray(image).resize((47, 47), Image.Resampling.BICUBIC))
  difference = resized.astype(float) - reference
  assert difference.std() < tolerance * reference.std() and abs(difference.mean()) < 0.5


def test_a_sample_is_resized_to_a_square():
  ramp = {"image": sample((60, 120))["image"], "label": sample((60, 120))["label"], "name": ""}
  image = augment.random_crop(ramp, 40, np.random.default_rng(0), Augmentation(resize=120))["image"].astype(float)
  # The mean difference is the number of source pixels for each pixel of the result.
  assert np.diff(image[5:-5, 20, 0]).mean() == pytest.approx(0.5, abs=0.05)
  assert np.diff(image[20, 5:-5, 1]).mean() == pytest.approx(1.0, abs=0.05)


def test_scale_is_drawn_evenly_between_smaller_and_larger():
  ramp = np.repeat(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, 0), 3, -1)
  given_sample = {"image": ramp, "label": ramp[..., 0], "name": ""}
  augmentation = Augmentation(resize=200, scale=(0.5, 2.0))
  steps = []
  for seed in range(300):
    image = augment.random_crop(given_sample, 40, np.random.default_rng(seed), augmentation)["image"]
    steps.append((int(image[0, -5, 0]) - int(image[0, 4, 0])) / 31)
  assert 0.45 < min(steps) < 0.55 and 1.9 < max(steps) < 2.1
  # Log-uniform: half of the 300 factors are above 1, with a standard deviation of 8.7.
  assert abs(np.sum(np.array(steps) > 1) - 150) < 40


def test_crops_reach_every_position():
  augmentation = Augmentation(resize=None)
  corners = [
    tuple(augment.random_crop(sample(), 36, np.random.default_rng(seed), augmentation)["image"][0, 0, :2].tolist())
    for seed in range(1500)
  ]
  assert set(corners) == {(y, x) for y in range(5) for x in range(21)}


def test_an_image_smaller_than_the_crop_can_be_anywhere_in_it():
  augmentation = Augmentation(resize=None)
  first = set()
  for seed in range(200):
    image = augment.random_crop(sample((12, 40)), 16, np.random.default_rng(seed), augmentation)["image"]
    first.add(int(np.argmin(image[:, 0, 0])))
  assert first == {0, 1, 2, 3, 4}


# Foreground: without these crops, a user with small objects would train mostly on empty images.


@properties
@given(SHAPES, SIZES, SEEDS, st.floats(1.0, 5.0), st.integers(1, 254))
def test_a_foreground_crop_contains_foreground(shape, size, seed, factor, kind):
  # The image is enlarged, so every pixel of the window is in the result.
  generator = np.random.default_rng(seed)
  label = generator.choice(np.array([0, 255], np.uint8), shape)
  label[generator.integers(shape[0]), generator.integers(shape[1])] = kind
  given_sample = {"image": np.zeros((*shape, 3), np.uint8), "label": label, "name": ""}
  augmentation = Augmentation(resize=max(shape), scale=(factor, factor), foreground_crop=1.0)
  assert kind in augment.random_crop(given_sample, size, generator, augmentation)["label"]


@properties
@given(SEEDS, st.floats(1.0, 6.0))
def test_a_foreground_crop_of_a_shrunk_image_shows_the_object(seed, factor):
  # A shrunk label may lose an object of one pixel, but the window contains it, so the image must show it.
  generator = np.random.default_rng(seed)
  label = np.zeros((90, 90), np.uint8)
  label[generator.integers(90), generator.integers(90)] = 1
  given_sample = {"image": np.repeat(label[..., None] * 255, 3, -1), "label": label, "name": ""}
  augmentation = Augmentation(resize=90, scale=(1 / factor, 1 / factor), foreground_crop=1.0)
  assert augment.random_crop(given_sample, 12, generator, augmentation)["image"].any()


def test_foreground_pixels_are_chosen_uniformly_and_ignored_ones_never():
  label = np.full((50, 50), 255, np.uint8)
  places = [(0, 0), (0, 49), (25, 20), (49, 30)]
  for kind, place in enumerate(places, 1):
    label[place] = kind
  given_sample = {"image": np.zeros((50, 50, 3), np.uint8), "label": label, "name": ""}
  augmentation = Augmentation(resize=50, foreground_crop=1.0)
  counts = np.zeros(5)
  for seed in range(400):
    found = np.unique(augment.random_crop(given_sample, 9, np.random.default_rng(seed), augmentation)["label"])
    counts[found[found < 255]] += 1
  # Expected: 100 each, with a standard deviation of 8.7; a corner as often as the middle.
  assert counts.sum() == 400 and counts[0] == 0 and (abs(counts[1:] - 100) < 35).all()


@pytest.mark.parametrize("value", [0, 255])
def test_without_foreground_the_crop_can_be_anywhere(value):
  given_sample = {**sample(), "label": np.full((40, 56), value, np.uint8)}
  augmentation = Augmentation(resize=None, foreground_crop=1.0)
  places = {
    augment.random_crop(given_sample, 32, np.random.default_rng(seed), augmentation)["image"][0, 0].tobytes()
    for seed in range(100)
  }
  assert len(places) > 50


def test_foreground_crops_have_the_given_probability():
  label = np.zeros((100, 100), np.uint8)
  label[50, 50] = 1
  given_sample = {"image": np.zeros((100, 100, 3), np.uint8), "label": label, "name": ""}
  augmentation = Augmentation(resize=100, foreground_crop=0.5)
  crops = [augment.random_crop(given_sample, 2, np.random.default_rng(seed), augmentation) for seed in range(400)]
  # Expected: 200, with a standard deviation of 10.
  assert abs(sum(crop["label"].any() for crop in crops) - 200) < 50


# Flips and rotations.


@properties
@given(SHAPES, SEEDS)
def test_flips_and_rotations_move_image_and_label_together(shape, seed):
  given_sample, generator = sample(shape), np.random.default_rng(seed)
  flipped = augment.random_flip(given_sample, generator, Augmentation(flips="both"))
  assert_together(flipped)
  assert any(np.array_equal(flipped["image"], given_sample["image"][::y, ::x]) for y in (1, -1) for x in (1, -1))
  turned = augment.random_turn(given_sample, generator, Augmentation(flips="turns"))
  assert_together(turned)
  assert any(np.array_equal(turned["image"], np.rot90(given_sample["image"], turns)) for turns in range(4))


def test_all_flips_and_rotations_are_equally_frequent():
  both = Augmentation(flips="turns")
  flips, turns = np.zeros(4), np.zeros(4)
  for seed in range(400):
    corner = augment.random_flip(sample(), np.random.default_rng(seed), both)["image"][0, 0]
    flips[2 * (corner[0] > 0) + (corner[1] > 0)] += 1
    corner = augment.random_turn(sample(), np.random.default_rng(seed), both)["image"][0, 0]
    turns[2 * (corner[0] > 0) + (corner[1] > 0)] += 1
  # Expected: 100 each, with a standard deviation of 8.7.
  np.testing.assert_allclose([flips, turns], 100, atol=35)


@pytest.mark.parametrize(("flips", "channel"), [("vertical", 0), ("horizontal", 1)])
def test_a_flip_changes_only_its_axis(flips, channel):
  corners = np.array(
    [
      augment.random_flip(sample(), np.random.default_rng(seed), Augmentation(flips=flips))["image"][0, 0, :2]
      for seed in range(20)
    ]
  )
  assert corners[:, channel].max() > 0 and corners[:, 1 - channel].max() == 0


# Appearance.


@properties
@given(SHAPES, SEEDS, AUGMENTATIONS)
def test_appearance_keeps_label_and_shape(shape, seed, augmentation):
  given_sample = sample(shape)
  changed = augment.random_appearance(given_sample, np.random.default_rng(seed), augmentation)
  assert changed["label"] is given_sample["label"]
  assert changed["image"].shape == (*shape, 3) and changed["image"].dtype == np.uint8


@pytest.mark.parametrize("part", APPEARANCE)
def test_every_appearance_option_has_an_effect(part):
  changed = augment.random_appearance(sample(), np.random.default_rng(1), APPEARANCE[part])
  assert (changed["image"] != sample()["image"]).any()


GRAY = np.array([0.299, 0.587, 0.114])


@properties
@given(SEEDS, st.sampled_from(["Brightness", "Contrast", "Color"]), st.floats(0.0, 1.5))
def test_color_factors_match_pillow(seed, name, factor):
  # Reference: Pillow's ImageEnhance, which truncates and rounds the mean gray.
  image = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
  factors = {"Brightness": 1.0, "Contrast": 1.0, "Color": 1.0, name: factor}
  changed = cv2.transform(image, augment._color_map(float((image @ GRAY).mean()), *factors.values()))
  reference = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(image)).enhance(factor))
  assert np.abs(changed.astype(int) - reference).max() <= 2


@properties
@given(SEEDS, *(st.floats(0.7, 1.3),) * 3)
def test_the_color_map_equals_the_factors_applied_in_turn(seed, brightness, contrast, saturation):
  # Reference: the single steps in float64, on values that no step clips. OpenCV rounds the result to whole gray levels
  # and the entries of the map to 1/1024.
  image = np.random.default_rng(seed).integers(80, 140, (20, 30, 3), np.uint8)
  folded = augment._color_map((image @ GRAY).mean().item(), brightness, contrast, saturation)
  changed = cv2.transform(image, folded)
  expected = image * brightness
  expected = contrast * expected + (1 - contrast) * (expected @ GRAY).mean()
  expected = saturation * expected + (1 - saturation) * (expected @ GRAY)[..., None]
  assert np.abs(changed - expected).max() <= 0.75


def test_brightness_covers_exactly_its_range():
  flat = {"image": np.full((8, 8, 3), 100, np.uint8), "label": np.zeros((8, 8), np.uint8), "name": ""}
  values = [
    augment.random_appearance(flat, np.random.default_rng(seed), Augmentation(color=(0.2, 0.0, 0.0)))["image"][0, 0, 0]
    for seed in range(300)
  ]
  assert 80 <= min(values) < 83 and 117 < max(values) <= 120 and abs(np.mean(values) - 100) < 3


def test_contrast_keeps_the_mean_gray_and_saturation_every_gray():
  image = np.random.default_rng(0).integers(90, 160, (40, 40, 3), np.uint8)
  given_sample = {"image": image, "label": image[..., 0], "name": ""}
  for seed in range(10):
    changed = augment.random_appearance(given_sample, np.random.default_rng(seed), Augmentation(color=(0.0, 0.5, 0.0)))
    assert (changed["image"] @ GRAY).mean() == pytest.approx((image @ GRAY).mean(), abs=0.5)
    saturated = Augmentation(color=(0.0, 0.0, 0.5))
    changed = augment.random_appearance(given_sample, np.random.default_rng(seed), saturated)
    np.testing.assert_allclose(changed["image"] @ GRAY, image @ GRAY, atol=1)


def test_blur_has_the_given_width():
  point = np.zeros((41, 41, 3), np.uint8)
  point[20, 20] = 255
  given_sample = {"image": point, "label": point[..., 0], "name": ""}
  widths = []
  for seed in range(200):
    image = augment.random_appearance(given_sample, np.random.default_rng(seed), Augmentation(blur=2.0))["image"]
    weights = image[20, :, 0] / image[20, :, 0].sum()
    widths.append(np.sqrt(weights @ (np.arange(41) - 20) ** 2))
  # Rounding to gray levels cuts off the tails.
  assert min(widths) < 0.1 and 1.6 < max(widths) <= 2.0


@properties
@given(SHAPES, SIZES, SEEDS, AUGMENTATIONS)
def test_appearance_does_not_change_crop_flip_and_rotation(shape, size, seed, augmentation):
  # Labels are the same with and without appearance: changing colors must not change what geometry draws.
  plain = dataclasses.replace(augmentation, color=(0.0, 0.0, 0.0), blur=0.0)
  first = augment.augment(sample(shape), size, np.random.default_rng(seed), augmentation)
  again = augment.augment(sample(shape), size, np.random.default_rng(seed), plain)
  np.testing.assert_array_equal(first["label"], again["label"])
