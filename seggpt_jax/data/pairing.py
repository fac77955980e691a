"""Which sample prompts which. Indices in, indices out: no list of pairs is ever held."""

from __future__ import annotations

import numpy as np


def random_prompt(generator: np.random.Generator, query: int, num_samples: int) -> int:
  """A prompt for the query, uniform over all the other samples.

  Args:
    generator: source of randomness.
    query: index of the query, 0..num_samples - 1.
    num_samples: at least 2.

  Returns:
    An index other than `query`.
  """
  return int((query + 1 + generator.integers(num_samples - 1)) % num_samples)
