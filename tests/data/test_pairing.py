"""Pairing: the choice of prompts decides what a network learns, so shares and conditions must hold at any size."""

import tracemalloc

import numpy as np
import pytest

from seggpt_jax.data.pairing import EvaluationPairing, Pairing, PairingOptions
from seggpt_jax.errors import InputError

GROUPS = ["a"] * 4 + ["b"] * 3 + ["c"]
# Columns: background, class 1, 2, 3. Sample 7 has no class.
CLASSES = np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]] * 2, bool)
CLASSES[7] = False


def draws(count=400, index=None, **options):
  groups, classes = options.pop("groups", None), options.pop("classes", None)
  are_classes = options.pop("groups_are_classes", False)
  pairing = Pairing(8, PairingOptions(**options), groups, classes, are_classes)
  return [pairing(i % 8 if index is None else index, np.random.default_rng(i)) for i in range(count)]


def test_without_options_all_other_samples_are_equally_frequent_prompts():
  counts = np.zeros((8, 8), int)
  for draw in draws(5600):
    counts[draw.query, draw.prompts[0]] += 1
  assert (counts.diagonal() == 0).all()
  # Expected: 100 each, with a standard deviation of 9.3.
  assert counts[~np.eye(8, dtype=bool)].min() > 60 and counts.max() < 140


def test_prompts_from_the_group_of_the_query():
  for draw in draws(groups=GROUPS):
    if draw.query != 7:
      assert GROUPS[draw.prompts[0]] == GROUPS[draw.query]
  # Sample 7 is alone in its group, so its prompts come from other groups.
  assert {draw.prompts[0] for draw in draws(groups=GROUPS, index=7)} == set(range(7))
  shares = np.mean([GROUPS[d.prompts[0]] == "a" for d in draws(4000, index=0, groups=GROUPS, same_group=0.5)])
  # Half of the prompts must come from the group, and 3 of 7 of the others do by chance.
  assert abs(shares - (0.5 + 0.5 * 3 / 7)) < 0.03


def test_prompts_with_a_class_of_the_query():
  for draw in draws(classes=CLASSES, same_class=1.0):
    # Only one sample has class 3.
    if draw.query not in (3, 7):
      assert (CLASSES[draw.query] & CLASSES[draw.prompts[0]]).any()
  # Classes 1 and 2 are drawn equally often: prompts come from {0, 4, 5} or {2, 5, 6}.
  counts = np.bincount([d.prompts[0] for d in draws(6000, index=1, classes=CLASSES, same_class=1.0)], minlength=8)
  np.testing.assert_allclose(counts / 6000, np.array([1, 0, 1, 0, 1, 2, 1, 0]) / 6, atol=0.03)


def test_group_and_class_conditions_can_apply_to_one_pair():
  for draw in draws(classes=CLASSES, groups=GROUPS, same_class=1.0):
    if draw.query in (0, 1, 2):
      prompt = draw.prompts[0]
      assert GROUPS[prompt] == GROUPS[draw.query] and (CLASSES[draw.query] & CLASSES[prompt]).any()
  # No other sample has class 3, so the prompts of sample 3 only share its group.
  assert {d.prompts[0] for d in draws(index=3, classes=CLASSES, groups=GROUPS, same_class=1.0)} == {0, 1, 2}


def test_negative_pairs_ask_for_a_class_that_the_query_lacks():
  found = draws(2000, classes=CLASSES, negative=0.5)
  negatives = [draw for draw in found if draw.negative]
  assert abs(len(negatives) / 2000 - 0.5) < 0.04
  for draw in negatives:
    assert CLASSES[draw.prompts[0], draw.target_class] and not CLASSES[draw.query, draw.target_class]
  assert all(draw.target_class is None for draw in found if not draw.negative)
  # A sample with every class cannot be the query of a negative pair.
  classes = np.ones((8, 2), bool)
  assert not any(draw.negative for draw in draws(classes=classes, negative=1.0))


def test_groups_that_are_classes_prompt_negative_pairs_from_other_groups():
  """In folders PRODUCT/DEFECT, class 1 means something different in each folder."""
  found = draws(2000, groups=GROUPS, groups_are_classes=True, negative=0.5)
  assert abs(np.mean([draw.negative for draw in found]) - 0.5) < 0.04
  for draw in found:
    same = GROUPS[draw.query] == GROUPS[draw.prompts[0]]
    assert draw.target_class is None and (not same if draw.negative else same or draw.query == 7)


def test_several_prompts_are_different_if_there_are_enough():
  for draw in draws(groups=GROUPS, num_prompts=3):
    assert len(draw.prompts) == 3 and draw.query not in draw.prompts
    if GROUPS[draw.query] == "a":
      assert sorted((*draw.prompts, draw.query)) == [0, 1, 2, 3]
    elif GROUPS[draw.query] == "b":
      assert set(draw.prompts) <= {4, 5, 6}


def test_the_same_generator_draws_the_same():
  options = {"classes": CLASSES, "groups": GROUPS, "negative": 0.3, "same_class": 0.5, "num_prompts": 2}
  assert draws(**dict(options)) == draws(**dict(options))


def test_the_description_says_which_pairs_are_possible():
  pairing = Pairing(8, PairingOptions(negative=0.1), GROUPS, CLASSES)
  assert pairing.describe() == (
    "8 samples, 3 groups (1 with a single sample, whose prompts come from other groups), 3 classes, "
    "8 samples that can be the query of a negative pair"
  )
  assert Pairing(8, PairingOptions()).describe() == "8 samples"


def test_too_little_to_pair_is_refused():
  with pytest.raises(InputError, match="found 1 labeled images, expected at least 2"):
    Pairing(1, PairingOptions())
  with pytest.raises(InputError, match="found no sample with any class but the background"):
    Pairing(8, PairingOptions(negative=0.1), classes=np.zeros((8, 3), bool))


def test_memory_grows_with_the_samples_not_with_the_pairs():
  """A list of all pairs of 100,000 images would take 80 GB."""
  count = 100_000
  generator = np.random.default_rng(0)
  groups = [f"g{i % 500}" for i in range(count)]
  classes = generator.random((count, 5)) < 0.3
  tracemalloc.start()
  pairing = Pairing(count, PairingOptions(same_class=0.5, negative=0.1, num_prompts=2), groups, classes)
  for index in range(100):
    pairing(index * 997, generator)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 100e6


def test_a_query_without_a_class_is_asked_for_one():
  """A prompt without a class next to a query without a class would teach nothing."""
  found = {draw.prompts[0] for draw in draws(index=7, classes=CLASSES, same_class=1.0)}
  assert found == set(range(7))


# Training samples 0 to 3, then the queries, samples 4 to 8.
POOL = np.array(
  [
    *([0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]),
    *([0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]),
  ]
).astype(bool)


def evaluation_prompts(index, **options):
  pairing = EvaluationPairing(POOL, 4, **options)
  found = [pairing(index, np.random.default_rng(seed)) for seed in range(40)]
  assert all(draw.query == index and not draw.negative for draw in found)
  return {draw.prompts for draw in found}


def test_validation_prompts_are_training_samples_that_show_the_classes_of_the_query():
  assert evaluation_prompts(0) == {(0,), (2,)}
  assert evaluation_prompts(1) == {(2,)}  # shows both classes of the query


def test_validation_prompts_are_other_queries_only_if_no_training_sample_shows_a_class():
  assert evaluation_prompts(2) == {(7,)} and evaluation_prompts(3) == {(6,)}


def test_a_validation_query_without_a_class_is_asked_for_one():
  assert evaluation_prompts(4) == {(2,)}  # the sample that asks for most


def test_several_validation_prompts_cover_the_classes_and_differ():
  for prompts in evaluation_prompts(1, num_prompts=3):
    assert prompts[0] == 2 and set(prompts) == {0, 1, 2}


def test_validation_prompts_of_the_same_group_are_preferred():
  groups = ["a", "a", "b", "b", "a", "c", "c", "c", "c"]
  assert evaluation_prompts(0, groups=groups) == {(0,)}
  assert evaluation_prompts(1, groups=groups) == {(2,)}  # no training sample is of group c


def test_the_only_other_sample_prompts_as_often_as_needed():
  pairing = EvaluationPairing(np.array([[0, 1], [0, 1]], bool), 1, num_prompts=2)
  assert pairing(0, np.random.default_rng(0)).prompts == (0, 0)


def test_prompts_of_every_class_take_turns_and_tell_nothing_about_the_query():
  """Cells are shown in the order of the prompts: a network could read the answer from an order by the query."""
  first = np.zeros((8, 4))
  for index in range(4000):
    pairing = Pairing(8, PairingOptions(every_class=True, num_prompts=5), None, CLASSES)
    draw = pairing(index % 8, np.random.default_rng(index))
    assert draw.query not in draw.prompts or draw.query == 3 or index % 8 == 7
    for classes in (1, 2, 3):
      assert CLASSES[list(draw.prompts[:3])][:, classes].any()
    # Samples 0, 4 show class 1 alone, 2, 6 class 2, and 3 class 3.
    shown = np.flatnonzero(CLASSES[draw.prompts[0]])
    first[draw.query, shown] += 1 / len(shown)
  rows = first / first.sum(axis=1, keepdims=True)
  assert abs(rows - rows.mean(axis=0)).max() < 0.09


def test_validation_prompts_of_every_class():
  pairing = EvaluationPairing(CLASSES, 6, num_prompts=3, every_class=True)
  draw = pairing(0, np.random.default_rng(0))
  assert CLASSES[list(draw.prompts)].any(axis=0).tolist() == [False, True, True, True]
  assert max(draw.prompts) < 6
