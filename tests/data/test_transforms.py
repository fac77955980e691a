"""Transforms: image and label have to move together, and a pair has to be what training expects."""

import numpy as np
import pytest

from seggpt_jax.data import transforms
from seggpt_jax.data.transforms import Augmentation, EvaluationPair, TrainingPair
from seggpt_jax.palette import fixed_palette


def sample(seed=0, height=40, width=56):
  """The image says where each of its pixels came from, and which class it has."""
  y, x = np.mgrid[:height, :width]
  label = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
  image = np.stack([y, x, label * 100], axis=-1).astype(np.uint8)
  return {"image": image, "label": label, "name": f"sample{seed}"}


def assert_together(changed):
  np.testing.assert_array_equal(changed["image"][..., 2], changed["label"] * 100)


def test_crop_takes_the_same_window_of_image_and_label():
  corners = set()
  for seed in range(40):
    cropped = transforms.random_crop(sample(), 32, np.random.default_rng(seed))
    assert cropped["image"].shape == (32, 32, 3) and cropped["label"].shape == (32, 32)
    assert_together(cropped)
    corners.add(tuple(cropped["image"][0, 0, :2]))
  assert len(corners) > 30 and max(corners)[0] <= 8


def test_flips_move_image_and_label_alike_each_half_of_the_time():
  counts = np.zeros(2)
  for seed in range(400):
    flipped = transforms.random_flip(sample(), np.random.default_rng(seed), horizontal=True, vertical=True)
    assert_together(flipped)
    counts += [flipped["image"][0, 0, 0] > 0, flipped["image"][0, 0, 1] > 0]
  # 200 each, deviation 10.
  np.testing.assert_allclose(counts, 200, atol=50)
  same = transforms.random_flip(sample(), np.random.default_rng(0), horizontal=False, vertical=False)
  np.testing.assert_array_equal(same["image"], sample()["image"])


def test_resize_keeps_labels_classes_and_aligned_with_the_image():
  label = np.zeros((40, 40), np.uint8)
  label[10:30, 5:20] = 2
  image = np.repeat((label * 100)[..., None], 3, axis=-1)
  resized = transforms.resize({"image": image, "label": label, "name": ""}, 64)
  assert resized["image"].shape == (64, 64, 3) and set(np.unique(resized["label"])) == {0, 2}
  # Edges may differ by the resampling of one pixel, no more.
  disagree = np.abs(resized["image"][..., 0].astype(int) - resized["label"] * 100.0) > 100
  assert disagree.mean() < 0.01


def test_appearance_changes_the_image_only_and_within_its_strength():
  flat = {"image": np.full((8, 8, 3), 100, np.uint8), "label": sample()["label"][:8, :8], "name": ""}
  values = []
  for seed in range(200):
    changed = transforms.random_appearance(flat, np.random.default_rng(seed), Augmentation(brightness=0.2))
    assert changed["label"] is flat["label"]
    values.append(int(changed["image"][0, 0, 0]))
  assert 79 <= min(values) < 85 and 115 < max(values) <= 120
  for strength in ("contrast", "saturation", "blur"):
    changed = transforms.random_appearance(sample(), np.random.default_rng(1), Augmentation(**{strength: 0.9}))
    assert (changed["image"] != sample()["image"]).any(), strength
    np.testing.assert_array_equal(changed["label"], sample()["label"])
  same = transforms.random_appearance(sample(), np.random.default_rng(0), Augmentation())
  np.testing.assert_array_equal(same["image"], sample()["image"])


def training_pair(**changes):
  values = {
    "canvas_size": (64, 32),
    "patch_size": 8,
    "num_classes": 3,
    "palette_mode": "random",
    "mask_ratio": 0.75,
    "lower_half_share": 0.0,
    "augmentation": Augmentation(resize=36),
  }
  return TrainingPair(**{**values, **changes})


def test_training_pair_stacks_prompt_over_query_with_one_palette_for_both():
  pair = training_pair()(sample(0), sample(1), np.random.default_rng(0))
  assert {key: (value.shape, value.dtype.name) for key, value in pair.items()} == {
    "images": ((64, 32, 3), "uint8"),
    "labels": ((64, 32), "uint8"),
    "palette": ((3, 3), "uint8"),
    "patch_mask": ((8, 4), "bool"),
  }
  # The blue channel of a resized sample follows its label, in both halves.
  for half in (np.s_[:32], np.s_[32:]):
    blue, labels = pair["images"][half][..., 2], pair["labels"][half]
    assert np.corrcoef(blue.ravel(), labels.ravel())[0, 1] > 0.6


def test_patch_masks_have_the_exact_ratio_or_are_the_lower_half():
  make = training_pair(lower_half_share=0.5)
  halves = 0
  for seed in range(300):
    mask = make(sample(0), sample(1), np.random.default_rng(seed))["patch_mask"]
    is_half = mask.sum() == 16
    assert mask.sum() == 24 or (is_half and mask[4:].all())
    halves += is_half
  # 150, deviation 8.7.
  assert abs(halves - 150) < 44


def test_the_same_generator_gives_the_same_pair_and_another_another():
  make = training_pair(augmentation=Augmentation(36, True, True, 0.1, 0.1, 0.1, 0.5))
  first, again, other = (make(sample(0), sample(1), np.random.default_rng(seed)) for seed in (5, 5, 6))
  for key in first:
    np.testing.assert_array_equal(first[key], again[key])
  assert all((first[key] != other[key]).any() for key in first)


def test_evaluation_pair_is_whole_images_with_the_fixed_palette_and_the_query_hidden():
  pair = EvaluationPair((64, 32), 8, 3)(sample(0), sample(1))
  np.testing.assert_array_equal(pair["palette"], fixed_palette(3))
  assert not pair["patch_mask"][:4].any() and pair["patch_mask"][4:].all()
  np.testing.assert_array_equal(pair["labels"][32:], transforms.resize(sample(1), 32)["label"])


@pytest.mark.parametrize("mode", ["black_background", "fixed"])
def test_palette_modes_reach_the_pair(mode):
  pair = training_pair(palette_mode=mode)(sample(0), sample(1), np.random.default_rng(0))
  np.testing.assert_array_equal(pair["palette"][0], [0, 0, 0])
  assert (pair["palette"] == fixed_palette(3)).all() == (mode == "fixed")
