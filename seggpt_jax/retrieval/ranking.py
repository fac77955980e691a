"""Chooses prompts for a query from scores: arrays in, indices out."""

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
  """Chooses prompts by maximal marginal relevance (Carbonell and Goldstein, 1998): suitable, but not all alike.

  The first prompt has the highest score. Each further one has the highest
  `(1 - diversity) * score - diversity * similarity`, where `similarity` is the largest one to a prompt chosen before,
  and at least 0: images that are less alike than the average pair count as equally different. The first of several
  equal ones is taken.

  Args:
    scores: score of each prompt for the query.
    candidates: whether each prompt can be chosen.
    top_k: maximum number of prompts.
    diversity: 0 to 1. 0 uses scores only; 1 uses similarity only, from the second prompt on.
    likeness_to: function that returns the similarity of all prompts to one of them.

  Returns:
    Indices, best first; fewer than `top_k` if there are fewer candidates.
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
  """Draws candidates uniformly, without repetition.

  Args:
    candidates: whether each prompt can be chosen.
    top_k: maximum number of prompts.
    seed: seed of the draw. The same seed, name and candidates give the same prompts.
    name: name of the query, which makes its draw independent of other queries.
  """
  generator = np.random.default_rng([seed, zlib.crc32(name.encode(errors="surrogatepass"))])
  return generator.permutation(np.flatnonzero(candidates))[:top_k].tolist()
