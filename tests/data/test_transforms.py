"""Transforms: image and label must move together, and a pair must have the form that training expects."""

import numpy as np
import pytest

from seggpt_jax.data import transforms
from seggpt_jax.data.augment import Augmentation
from seggpt_jax.data.transforms import EvaluationPair, TrainingPair
from seggpt_jax.palette import IGNORE, fixed_palette


def sample(seed=0, height=40, width=56):
  """Returns a sample whose image stores row, column and class of each pixel in its three channels."""
  y, x = np.mgrid[:height, :width]
  label = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
  image = np.stack([y, x, label * 100], axis=-1).astype(np.uint8)
  return {"image": image, "label": label, "name": f"sample{seed}"}


def test_resize_keeps_the_classes_of_labels_and_their_place():
  label = np.zeros((40, 40), np.uint8)
  label[10:30, 5:20] = 2
  image = np.repeat((label * 100)[..., None], 3, axis=-1)
  resized = transforms.resize({"image": image, "label": label, "name": ""}, 64)
  assert resized["image"].shape == (64, 64, 3) and set(np.unique(resized["label"])) == {0, 2}
  # Only pixels at edges may differ, because of resampling.
  disagree = np.abs(resized["image"][..., 0].astype(int) - resized["label"] * 100.0) > 100
  assert disagree.mean() < 0.01


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
  pair = training_pair()([sample(0)], sample(1), np.random.default_rng(0))
  assert {key: (value.shape, value.dtype.name) for key, value in pair.items()} == {
    "images": ((1, 64, 32, 3), "uint8"),
    "labels": ((1, 64, 32), "uint8"),
    "palette": ((1, 3, 3), "uint8"),
    "patch_mask": ((1, 8, 4), "bool"),
  }
  # The blue channel of a resized sample follows its label, in both halves.
  for half in (np.s_[:32], np.s_[32:]):
    blue, labels = pair["images"][0][half][..., 2], pair["labels"][0][half]
    assert np.corrcoef(blue.ravel(), labels.ravel())[0, 1] > 0.6


def test_patch_masks_have_the_exact_ratio_or_are_the_lower_half():
  make = training_pair(lower_half_share=0.5)
  halves = 0
  for seed in range(300):
    mask = make([sample(0)], sample(1), np.random.default_rng(seed))["patch_mask"][0]
    is_half = mask.sum() == 16
    assert mask.sum() == 24 or (is_half and mask[4:].all())
    halves += is_half
  # Expected: 150, with a standard deviation of 8.7.
  assert abs(halves - 150) < 44


def test_the_generator_decides_the_pair():
  make = training_pair(augmentation=Augmentation(36, flips="horizontal", color=(0.1, 0.0, 0.0), blur=0.5))
  first, again, other = (make([sample(0)], sample(1), np.random.default_rng(seed)) for seed in (5, 5, 6))
  for key in first:
    np.testing.assert_array_equal(first[key], again[key])
  assert all((first[key] != other[key]).any() for key in first)


def test_evaluation_pair_is_whole_images_with_the_fixed_palette_and_the_query_hidden():
  pair = EvaluationPair((64, 32), 8, 3)([sample(0)], sample(1))
  np.testing.assert_array_equal(pair["palette"][0], fixed_palette(3))
  assert not pair["patch_mask"][0, :4].any() and pair["patch_mask"][0, 4:].all()
  np.testing.assert_array_equal(pair["labels"][0, 32:], transforms.resize(sample(1), 32)["label"])


@pytest.mark.parametrize("mode", ["black_background", "fixed"])
def test_palette_modes_reach_the_pair(mode):
  pair = training_pair(palette_mode=mode)([sample(0)], sample(1), np.random.default_rng(0))
  np.testing.assert_array_equal(pair["palette"][0, 0], [0, 0, 0])
  assert (pair["palette"][0] == fixed_palette(3)).all() == (mode == "fixed")


def test_several_prompts_share_the_query_the_palette_and_the_mask():
  make = training_pair(augmentation=Augmentation(resize=36, flips="horizontal"))
  pair = make([sample(0), sample(1), sample(2)], sample(3), np.random.default_rng(0))
  assert pair["images"].shape == (3, 64, 32, 3)
  for key, first in (("images", 32), ("labels", 32), ("palette", 0), ("patch_mask", 0)):
    values = pair[key][:, first:]
    np.testing.assert_array_equal(values, np.repeat(values[:1], 3, axis=0), err_msg=key)
  assert (pair["images"][0, :32] != pair["images"][1, :32]).any()


def test_one_class_of_a_label_is_kept():
  given = sample()
  given["label"][:5] = IGNORE
  kept = transforms.keep_class(given, 2)["label"]
  assert (kept[:5] == IGNORE).all()
  np.testing.assert_array_equal(kept[5:], np.where(given["label"][5:] == 2, 2, 0))
  assert transforms.keep_class(given, None) is given
  assert set(np.unique(transforms.keep_class(given, 0)["label"])) == {0, IGNORE}


def squares(**places):
  """Returns a gray sample of 200 x 200 pixels with a square of 9 pixels for each class at its place (row, column)."""
  label = np.zeros((200, 200), np.uint8)
  for name, (row, column) in places.items():
    label[row : row + 9, column : column + 9] = int(name.removeprefix("class_"))
  return {"image": np.full((200, 200, 3), 90, np.uint8), "label": label, "name": ""}


PROMPT = squares(class_1=(20, 20), class_2=(170, 170))
QUERY = squares(class_2=(10, 150), class_3=(14, 164))
CROPS = {"num_classes": 4, "augmentation": Augmentation(resize=200, foreground_crop=1.0)}


def test_prompts_are_cropped_where_they_show_a_class_of_the_query():
  make = training_pair(prompt_foreground=1.0, **CROPS)
  for seed in range(30):
    labels = make([PROMPT], QUERY, np.random.default_rng(seed))["labels"][0]
    if 2 in labels[32:]:
      assert 2 in labels[:32] and 1 not in labels[:32]
    else:  # the query's crop shows class 3 alone, so any class of the prompt is as good
      assert set(np.unique(labels[:32])) & {1, 2}


@pytest.mark.parametrize(("rule", "expected"), [("background", 0), ("ignore", IGNORE), ("keep", 3)])
def test_a_class_that_no_prompt_shows_is_not_asked_for(rule, expected):
  make = training_pair(prompt_foreground=1.0, unanswerable=rule, **CROPS)
  same = training_pair(prompt_foreground=1.0, **CROPS)
  met = 0
  for seed in range(30):
    pair, kept = (each([PROMPT], QUERY, np.random.default_rng(seed)) for each in (make, same))
    shown, before, after = kept["labels"][0, :32], kept["labels"][0, 32:], pair["labels"][0, 32:]
    np.testing.assert_array_equal(pair["labels"][0, :32], shown)
    unknown = (before > 0) & ~np.isin(before, shown)
    np.testing.assert_array_equal(after[~unknown], before[~unknown])
    assert (after[unknown & (before == 3)] == expected).all()
    met += (before[unknown] == 3).any()
    for key in ("images", "palette", "patch_mask"):
      np.testing.assert_array_equal(pair[key], kept[key])
  assert met > 5


def test_one_of_several_prompts_that_shows_a_class_is_enough():
  make = training_pair(unanswerable="background", num_classes=4, augmentation=Augmentation())
  pair = make([PROMPT, squares(class_3=(90, 90))], QUERY, np.random.default_rng(0))
  assert {2, 3} <= set(np.unique(pair["labels"][:, 32:]))
