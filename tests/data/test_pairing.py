"""Pairing: a query that prompts itself teaches the network to copy."""

import numpy as np

from seggpt_jax.data.pairing import random_prompt


def test_every_other_sample_is_equally_likely_and_the_query_never():
  generator = np.random.default_rng(0)
  counts = np.bincount([random_prompt(generator, 2, 5) for _ in range(8000)], minlength=5)
  assert counts[2] == 0
  # 2000 each, deviation 39: five of them.
  np.testing.assert_allclose(counts[[0, 1, 3, 4]], 2000, atol=195)


def test_two_samples_prompt_each_other():
  generator = np.random.default_rng(0)
  assert [random_prompt(generator, query, 2) for query in (0, 1, 0, 1)] == [1, 0, 1, 0]
