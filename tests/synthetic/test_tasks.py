"""Tasks to pretrain on: the same for the same seed, solvable from the prompt, harder as they go on."""

import numpy as np
import pytest

from seggpt_jax.data.augment import Augmentation
from seggpt_jax.data.pipeline import evaluation_batches, training_batches
from seggpt_jax.data.transforms import EvaluationPair, TrainingPair
from seggpt_jax.synthetic import families, tasks

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


def test_a_task_depends_on_its_place_and_its_generator_alone():
  drawn = [tasks.Tasks(SIZE, 4).draw(5, np.random.default_rng(9)) for _ in range(2)]
  for left, right in zip(*[(*prompts, query) for prompts, query in drawn], strict=True):
    np.testing.assert_array_equal(left["image"], right["image"])
    np.testing.assert_array_equal(left["label"], right["label"])


def test_classes_of_a_task_are_numbered_from_one_and_bounded():
  source = tasks.Tasks(SIZE, 3)
  seen = set()
  for index in range(60):
    (prompt,), query = source.draw(index, np.random.default_rng(index))
    classes = set(np.unique(prompt["label"]).tolist())
    assert classes <= {0, 1, 2} and classes - {0}
    assert set(np.unique(query["label"]).tolist()) <= classes | {0}
    seen.add(len(classes - {0}))
  assert seen == {1, 2}


def test_the_curriculum_begins_with_large_targets_and_grows():
  def mean_share(index):
    drawn = [tasks.Tasks(SIZE, 2, ramp=1000).draw(index, np.random.default_rng(seed)) for seed in range(60)]
    return np.mean([(query["label"] > 0).mean() for _, query in drawn])

  assert mean_share(0) > 0.2
  assert mean_share(1000) < 0.75 * mean_share(0)


def test_batches_of_tasks_do_not_depend_on_threads_and_resume():
  pairs = tasks.TaskTrainingPairs(
    tasks.Tasks(32, 4, ramp=100), TrainingPair((64, 32), 8, 4, "random", 0.75, 0.5, Augmentation())
  )

  def batches(num_threads, start=0):
    return training_batches(pairs, batch_size=3, seed=1, num_threads=num_threads, num_workers=0, start=start)

  one, two = batches(1), batches(4)
  for _ in range(3):
    expected = next(one)
    for key, value in next(two).items():
      np.testing.assert_array_equal(value, expected[key])
  np.testing.assert_array_equal(next(batches(2, start=3))["images"], next(one)["images"])


def test_evaluation_tasks_are_fixed():
  pairs = tasks.TaskEvaluationPairs(tasks.Tasks(32, 4), EvaluationPair((64, 32), 8, 4), count=10)
  first, second = (list(evaluation_batches(pairs, batch_size=4, num_pairs=-1)) for _ in range(2))
  assert [batch["valid"].sum() for batch in first] == [4, 4, 2]
  for left, right in zip(first, second, strict=True):
    np.testing.assert_array_equal(left["images"], right["images"])
    np.testing.assert_array_equal(left["labels"], right["labels"])
