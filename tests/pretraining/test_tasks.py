"""Tasks to pretrain on: the same for the same seed, solvable from the prompt, harder over time."""

import numpy as np
import pytest

from pretraining import families, tasks
from seggpt_jax.errors import InputError

SIZE = 48


def episode(family, seed=0, difficulty=1.0, num_images=2):
  return tasks.draw_episode(family, np.random.default_rng(seed), SIZE, num_images, difficulty)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_every_family_draws_pictures_of_the_kinds_it_names(family, difficulty):
  drawn = episode(family, difficulty=difficulty, num_images=3)
  assert drawn.images.shape == (3, SIZE, SIZE, 3) and drawn.images.dtype == np.uint8
  assert drawn.kinds.shape == (3, SIZE, SIZE) and drawn.kinds.dtype == np.uint8
  assert len({image.tobytes() for image in drawn.images}) == 3
  again = episode(family, difficulty=difficulty, num_images=3)
  np.testing.assert_array_equal(drawn.images, again.images)
  np.testing.assert_array_equal(drawn.kinds, again.kinds)
  assert episode(family, seed=1, difficulty=difficulty).images.tobytes() != again.images[:2].tobytes()


@pytest.mark.parametrize("family", [name for name, family in families.FAMILIES.items() if not family.sparse])
def test_every_family_often_has_something_to_ask_for_in_prompt_and_query(family):
  found = [len(episode(family, seed).present()) for seed in range(40)]
  assert np.mean(np.array(found) > 0) > 0.8
  # Without a second kind in the pictures nobody would need the prompt.
  assert max(found) >= 2


def test_labels_are_the_chosen_kinds_in_their_order():
  kinds = np.array([[[0, 1], [2, 3]]] * 2, np.uint8)
  drawn = tasks.Episode(np.zeros((2, 2, 2, 3), np.uint8), kinds)
  np.testing.assert_array_equal(drawn.labels([3, 1])[0], [[0, 2], [0, 1]])
  np.testing.assert_array_equal(drawn.present(), [1, 2, 3])
  np.testing.assert_allclose(drawn.shares(), 0.25)


def test_kinds_missing_in_one_picture_are_not_present():
  kinds = np.array([[[1, 1], [2, 3]], [[1, 1], [2, 2]]], np.uint8)
  np.testing.assert_array_equal(tasks.Episode(np.zeros((2, 2, 2, 3), np.uint8), kinds).present(), [1, 2])


def drawn(family, seed, **settings):
  return tasks.draw_task(family, np.random.default_rng(seed), SIZE, **settings)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_task_depends_on_its_generator_alone(family):
  first, again, other = drawn(family, 9), drawn(family, 9), drawn(family, 10)
  assert [array.dtype for array in first] == [np.uint8] * 4
  assert [array.shape for array in first] == [(SIZE, SIZE, 3), (SIZE, SIZE)] * 2
  for left, right in zip(first, again, strict=True):
    np.testing.assert_array_equal(left, right)
  assert (first.query_image != other.query_image).any()


def test_classes_of_a_task_are_numbered_from_one_and_bounded():
  choices, seen = tasks.all_families(), set()
  for seed in range(60):
    family = tasks.choose_family(np.random.default_rng(seed), choices, 1.0)
    task = drawn(choices[family], seed, num_classes=3)
    classes = set(np.unique(task.prompt_labels).tolist())
    assert classes <= {0, 1, 2} and classes - {0}
    assert set(np.unique(task.query_labels).tolist()) <= classes | {0}
    seen.add(len(classes - {0}))
  assert seen == {1, 2}


def test_easy_tasks_have_large_targets():
  choices = tasks.all_families()

  def mean_share(difficulty):
    generators = [np.random.default_rng(seed) for seed in range(60)]
    names = [tasks.choose_family(generator, choices, difficulty) for generator in generators]
    found = [
      tasks.draw_task(name, generator, SIZE, difficulty, num_classes=2, cells=difficulty)
      for name, generator in zip(names, generators, strict=True)
    ]
    return np.mean([(task.query_labels > 0).mean() for task in found])

  assert mean_share(0.0) > 0.2
  assert mean_share(1.0) < 0.75 * mean_share(0.0)


def test_a_family_that_shows_nothing_is_refused():
  def nothing(generator, size, count, difficulty):
    return families.Scenes([np.zeros((size, size, 3), np.float32)] * count, [np.zeros((size, size), np.uint8)] * count)

  with pytest.raises(InputError, match="found nothing to ask for in 500 draws of 8 pixels"):
    tasks.draw_task(families.Weighted(nothing, 1, 1), np.random.default_rng(0), 8)
