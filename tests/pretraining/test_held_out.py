"""The held-out families: were they not what they claim, a number that people compare networks by would mean nothing."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest

from pretraining import families, held_out
from pretraining.tasks import draw_episode

SIZE = 96
FAMILIES = pytest.mark.parametrize("family", held_out.HELD_OUT)


def scenes(family, seed, count=2, difficulty=0.5):
  return held_out.HELD_OUT[family](np.random.default_rng(seed), SIZE, count, difficulty)


@FAMILIES
def test_the_same_seed_draws_the_same_pictures_and_another_seed_others(family):
  first, again, other = scenes(family, 0), scenes(family, 0), scenes(family, 1)
  np.testing.assert_array_equal(first.images, again.images)
  np.testing.assert_array_equal(first.kinds, again.kinds)
  assert np.abs(np.subtract(first.images, other.images)).mean() > 5
  assert (first.kinds[0] != first.kinds[1]).mean() > 0.05


@FAMILIES
def test_pictures_are_what_a_family_promises(family):
  images, kinds = scenes(family, 3, count=3)
  assert len(images) == len(kinds) == 3
  for image, kind in zip(images, kinds, strict=True):
    assert (image.dtype, image.shape) == (np.float32, (SIZE, SIZE, 3))
    assert (kind.dtype, kind.shape) == (np.uint8, (SIZE, SIZE))
    # Light, shadow and noise may leave 0..255, the objects themselves not by far.
    assert np.mean((image > -20) & (image < 275)) > 0.98


@FAMILIES
def test_every_picture_shows_every_kind_so_that_each_can_be_asked_for(family):
  """At least two kinds, or the prompt would decide nothing; at least 1 % of each in 95 % of the draws."""
  complete, most = [], 0
  for seed in range(60):
    episode = draw_episode(held_out.HELD_OUT[family], np.random.default_rng(seed), SIZE, 3, 0.5)
    shares = episode.shares()[:, 1:]
    most = max(most, shares.shape[1])
    complete.append(shares.shape[1] == most and shares.min() >= 0.01)
  assert most >= 2
  assert np.mean(complete) >= 0.95


def test_answers_that_ignore_the_query_or_the_prompt_score_low():
  copied, constant = [], []
  for function in held_out.HELD_OUT.values():
    of_family = []
    for seed in range(40):
      episode = draw_episode(function, np.random.default_rng(seed), SIZE, 2, 0.5)
      for kind in episode.present():
        prompt, query = episode.kinds == kind
        of_family.append(((prompt & query).sum() / (prompt | query).sum(), query.mean()))
    copied.append(np.mean(of_family, axis=0)[0])
    constant.append(np.mean(of_family, axis=0)[1])
  assert np.mean(copied) <= 0.25 and np.mean(constant) <= 0.25, (copied, constant)


def test_nothing_of_what_is_trained_on_is_drawn():
  """From pretraining come types alone, and none of the random materials, surfaces and outlines."""
  tree = ast.parse(inspect.getsource(held_out))
  imported = {
    f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
  }
  assert not any(word in name for name in imported for word in ("families", "surfaces", "photographs"))
  assert {name for name in imported if "materials" in name} <= {
    "pretraining.materials.coordinates",
    "pretraining.materials.smooth_noise",
  }
  assert not any("shapes" in name for name in imported)
  assert not held_out.HELD_OUT.keys() & families.FAMILIES.keys()
