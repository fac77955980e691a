"""Few-shot episodes: drawn like in published code, otherwise results are not comparable."""

from __future__ import annotations

import numpy as np
import pytest

from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot
from seggpt_jax.evaluation.few_shot import FewShotData, Samples, draw_episodes
from seggpt_jax.formats.labels import LabelFormat

POOLS = {3: [10, 11, 12, 13], 7: [20, 21, 22]}
QUERIES = [(10, 3), (20, 7), (11, 3)]


def planned(folds) -> FewShotData:
  samples = Samples(FileSource([], 2, LabelFormat()))
  return FewShotData(samples, {3: "cat", 7: "dog", 9: "cow"}, folds, POOLS, {0: 10}, queries={0: QUERIES})


def test_in_turn_draws_as_the_published_code_does():
  episodes = draw_episodes(POOLS, 8, 2, 0, QUERIES)
  # The published loop, which draws names with NumPy's global generator.
  np.random.seed(0)
  for index, episode in enumerate(episodes):
    query, asked = QUERIES[index % 3]
    names = [f"image {sample}" for sample in POOLS[asked]]
    prompts = []
    while len(prompts) < 2:
      name = np.random.choice(names, 1, replace=False)[0]
      if name != f"image {query}":
        prompts.append(int(name.split()[1]))
    assert episode == (asked, query, tuple(prompts))


def test_at_random_draws_as_the_published_code_does():
  episodes = draw_episodes(POOLS, 30, 1, 5, [7, 3])
  np.random.seed(5)
  for episode in episodes:
    asked = int(np.random.choice([7, 3], 1, replace=False)[0])
    query = int(np.random.choice(POOLS[asked], 1, replace=False)[0])
    prompt = query
    while prompt == query:
      prompt = int(np.random.choice(POOLS[asked], 1, replace=False)[0])
    assert episode == (asked, query, (prompt,))
  assert {episode.class_index for episode in episodes} == {3, 7}


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_no_query_prompts_itself_and_all_prompts_show_its_class(shots):
  both = (
    draw_episodes(POOLS, 50, shots, 0, QUERIES),
    draw_episodes(POOLS, 50, shots, 0, [3, 7]),
  )
  for episodes in both:
    for episode in episodes:
      assert len(episode.prompts) == shots
      assert episode.query not in episode.prompts and {episode.query, *episode.prompts} <= set(
        POOLS[episode.class_index]
      )
  again = draw_episodes(POOLS, 50, shots, 0, [3, 7])
  assert again == both[1] != draw_episodes(POOLS, 50, shots, 1, [3, 7])


def test_a_quick_look_is_spread_over_all_episodes():
  data = planned({0: [3, 7]})
  episodes = data.episodes(0, 1)
  assert episodes == data.episodes(0, 1, count=99) == draw_episodes(POOLS, 10, 1, 0, QUERIES)
  assert data.episodes(0, 1, count=5) == episodes[::2]


def test_a_class_without_enough_images_is_named():
  planned({0: [3, 7]}).episodes(0, 2)
  with pytest.raises(InputError, match="class dog: found 3 images of it, expected at least 4 for --shots 3"):
    planned({0: [3, 7]}).episodes(0, 3)
  with pytest.raises(InputError, match="class cow: found 0 images of it, expected at least 2"):
    planned({0: [9]}).episodes(0, 1)


def test_shards_of_another_listing_have_another_digest():
  names = [f"image {index}" for index in range(30)]
  episodes = draw_episodes(POOLS, 10, 1, 0, QUERIES)
  digest = few_shot.digest(episodes, names)
  assert digest == few_shot.digest(list(episodes), list(names))
  assert digest != few_shot.digest(episodes[1:], names)
  assert digest != few_shot.digest(episodes, [*names[:10], "renamed", *names[11:]])
