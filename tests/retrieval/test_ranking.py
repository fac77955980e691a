"""Choosing prompts by score, by score and diversity, and at random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from seggpt_jax.retrieval.ranking import at_random, most_relevant


def scene(seed):
  generator = np.random.default_rng(seed)
  likeness = generator.uniform(-1, 1, (9, 9))
  return generator.uniform(-1, 1, 9), (likeness + likeness.T) / 2, generator.random(9) < 0.7


@pytest.mark.parametrize(("seed", "diversity"), itertools.product(range(4), [0.0, 0.3, 0.7, 1.0]))
def test_each_further_prompt_has_the_largest_marginal_relevance(seed, diversity):
  scores, likeness, candidates = scene(seed)
  chosen = most_relevant(scores, candidates, 5, diversity, lambda index: likeness[index])
  left = [index for index in range(9) if candidates[index]]
  assert len(chosen) == min(5, len(left))
  assert chosen[0] == max(left, key=lambda index: scores[index])
  for place in range(1, len(chosen)):
    left.remove(chosen[place - 1])
    nearest = {i: max(0, *(likeness[i, j] for j in chosen[:place])) for i in left}
    value = {i: (1 - diversity) * scores[i] - diversity * nearest[i] for i in left}
    assert value[chosen[place]] == pytest.approx(max(value.values()))


def test_without_diversity_it_is_the_order_of_scores():
  scores = np.array([0.1, 0.9, 0.9, 0.5])
  assert most_relevant(scores, np.array([True, True, True, False]), 9, 0, lambda index: scores) == [1, 2, 0]


def test_diversity_passes_over_the_same_picture():
  scores, likeness = np.array([1.0, 0.99, 0.6]), np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
  assert most_relevant(scores, np.ones(3, bool), 2, 0.0, lambda index: likeness[index]) == [0, 1]
  assert most_relevant(scores, np.ones(3, bool), 2, 0.5, lambda index: likeness[index]) == [0, 2]


def test_random_prompts_are_candidates_and_the_same_for_the_same_seed():
  candidates = np.arange(50) % 2 == 0
  chosen = at_random(candidates, 10, 3, "a")
  assert len(set(chosen)) == 10
  assert candidates[chosen].all()
  assert chosen == at_random(candidates, 10, 3, "a")
  assert chosen != at_random(candidates, 10, 4, "a")
  assert chosen != at_random(candidates, 10, 3, "b")
  assert sorted(at_random(candidates, 99, 0, "a")) == np.flatnonzero(candidates).tolist()
