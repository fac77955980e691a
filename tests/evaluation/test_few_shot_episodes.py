"""Few-shot episodes: drawn like in published code, otherwise results are not comparable."""

from __future__ import annotations

import numpy as np
import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_episodes
from seggpt_jax.evaluation.few_shot_episodes import Pools

POOLS = Pools({3: [10, 11, 12, 13], 7: [20, 21, 22]})
QUERIES = [(10, 3), (20, 7), (11, 3)]


def test_in_turn_draws_as_the_published_code_does():
  episodes = few_shot_episodes.in_turn(QUERIES, POOLS, 8, shots=2, seed=0)
  # The published loop, which draws names with NumPy's global generator.
  np.random.seed(0)
  for index, episode in enumerate(episodes):
    query, asked = QUERIES[index % 3]
    names = [f"image {sample}" for sample in POOLS.images[asked]]
    prompts = []
    while len(prompts) < 2:
      name = np.random.choice(names, 1, replace=False)[0]
      if name != f"image {query}":
        prompts.append(int(name.split()[1]))
    assert episode == (asked, query, tuple(prompts))


def test_at_random_draws_as_the_published_code_does():
  episodes = few_shot_episodes.at_random([7, 3], POOLS, 30, shots=1, seed=5)
  np.random.seed(5)
  for episode in episodes:
    asked = int(np.random.choice([7, 3], 1, replace=False)[0])
    query = int(np.random.choice(POOLS.images[asked], 1, replace=False)[0])
    prompt = query
    while prompt == query:
      prompt = int(np.random.choice(POOLS.images[asked], 1, replace=False)[0])
    assert episode == (asked, query, (prompt,))
  assert {episode.class_index for episode in episodes} == {3, 7}


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_no_query_prompts_itself_and_all_prompts_show_its_class(shots):
  both = (
    few_shot_episodes.in_turn(QUERIES, POOLS, 50, shots, 0),
    few_shot_episodes.at_random([3, 7], POOLS, 50, shots, 0),
  )
  for episodes in both:
    for episode in episodes:
      assert len(episode.prompts) == shots
      assert episode.query not in episode.prompts and {episode.query, *episode.prompts} <= set(
        POOLS.images[episode.class_index]
      )
  again = few_shot_episodes.at_random([3, 7], POOLS, 50, shots, 0)
  assert again == both[1] != few_shot_episodes.at_random([3, 7], POOLS, 50, shots, 1)


def test_a_quick_look_is_spread_over_all_episodes():
  episodes = few_shot_episodes.in_turn(QUERIES, POOLS, 10, 1, 0)
  assert few_shot_episodes.evenly_spread(episodes, None) == few_shot_episodes.evenly_spread(episodes, 99) == episodes
  assert few_shot_episodes.evenly_spread(episodes, 5) == episodes[::2]


def test_a_class_without_enough_images_is_named():
  names = {3: "cat", 7: "dog", 9: "cow"}
  few_shot_episodes.check_pools([3, 7], POOLS, 2, names)
  with pytest.raises(InputError, match="class dog: found 3 images of it, expected at least 4 for --shots 3"):
    few_shot_episodes.check_pools([3, 7], POOLS, 3, names)
  with pytest.raises(InputError, match="class cow: found 0 images of it, expected at least 2"):
    few_shot_episodes.check_pools([9], POOLS, 1, names)


def test_shards_of_another_listing_have_another_digest():
  names = [f"image {index}" for index in range(30)]
  episodes = few_shot_episodes.in_turn(QUERIES, POOLS, 10, 1, 0)
  digest = few_shot_episodes.digest(episodes, names)
  assert digest == few_shot_episodes.digest(list(episodes), list(names))
  assert digest != few_shot_episodes.digest(episodes[1:], names)
  assert digest != few_shot_episodes.digest(episodes, [*names[:10], "renamed", *names[11:]])
