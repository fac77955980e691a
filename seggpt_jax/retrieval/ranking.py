"""Which of the labeled images prompt a query: scores and conditions in, indices out. Pure functions of arrays."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float


def most_relevant(
  scores: Float[np.ndarray, "n"],
  candidates: Bool[np.ndarray, "n"],
  top_k: int,
  diversity: float | int,
  likeness_to: Callable[[int], Float[np.ndarray, "n"]],
) -> list[int]:
  """Maximal marginal relevance (Carbonell and Goldstein, 1998): prompts that suit the query and are not all alike.

  The first is the one with the highest score. Each further one has the highest
  `(1 - diversity) * score - diversity * likeness`, where likeness is that to the most alike of those chosen, and at
  least 0: images that are less alike than two are on average count as equally different. Of equals the first is taken.

  Args:
    scores: of all prompts for the query.
    candidates: which of them may be chosen.
    top_k: the most that are chosen.
    diversity: 0 goes by scores alone, 1, from the second on, by likeness alone.
    likeness_to: gives the likeness of all prompts to one.

  Returns:
    Indices, best first; as many as there are candidates, if they are fewer.
  """
  if diversity == 0:
    allowed = np.flatnonzero(candidates)
    return allowed[np.argsort(-scores[allowed], kind="stable")[:top_k]].tolist()
  chosen: list[int] = []
  left, nearest = candidates.copy(), np.zeros(len(scores))
  while left.any() and len(chosen) < top_k:
    value = (1.0 - diversity) * scores - diversity * nearest if chosen else scores
    best = int(np.argmax(np.where(left, value, -np.inf)))
    chosen.append(best)
    left[best] = False
    nearest = np.maximum(nearest, likeness_to(best))
  return chosen


def at_random(candidates: Bool[np.ndarray, "n"], top_k: int, seed: int, name: str) -> list[int]:
  """Candidates drawn uniformly without repetition.

  Args:
    candidates: which may be chosen.
    top_k: the most that are chosen.
    seed: same seed, name and candidates: same choice.
    name: of the query; its choice depends on no other query's.
  """
  generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
  return generator.permutation(np.flatnonzero(candidates))[:top_k].tolist()
