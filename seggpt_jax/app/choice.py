"""Choices that the page makes by itself: which examples an answer uses, and in how many tiles an image is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.pictures import Picture
from seggpt_jax.app.settings import MOST_CLASSES
from seggpt_jax.inference import tiling
from seggpt_jax.retrieval.mapping import in_turn

_AUTO_EXAMPLES, _AUTO_SPLIT = 4, 3  # largest values that are chosen automatically


def usable(examples: Sequence[Picture]) -> list[Picture]:
  """Returns the examples that answers may use.

  An example in which nobody has looked for a class would teach that this class is background. It is used only for a
  class that no other example shows.
  """
  shown = {index for each in examples if not each.unseen for index in each.holds}
  return [each for each in examples if not each.unseen or not shown.issuperset(each.holds)]


def most_fitting(examples: Sequence[Picture], count: int, scores: Mapping[str, float] | None) -> list[str]:
  """Returns the keys of examples that show every class in turn, the best of each first.

  Args:
    examples: the examples that may be used.
    count: number of examples; 0 for an automatic one.
    scores: score of each example by its key; by default the newest labels are best.
  """
  examples = [each for each in examples if scores is None or each.key in scores]
  holds = np.zeros((len(examples), MOST_CLASSES + 1), bool)
  for place, each in enumerate(examples):
    holds[place, list(each.holds)] = True
  best = np.array([each.label if scores is None else scores[each.key] for each in examples], np.float64)
  count = count or max(_AUTO_EXAMPLES, int(holds.any(axis=0).sum()))
  # A rare class has fewer images than its turns; the best of all fill the rest.
  places = dict.fromkeys([*in_turn(holds, best, count), *np.argsort(-best, kind="stable").tolist()])
  return [examples[place].key for place in list(places)[:count]]


def split_that_shows(labels: Sequence[UInt8[np.ndarray, "_ _"]], tile: tuple[int, int]) -> int:
  """Returns the smallest split at which the network can see every class of label maps.

  Args:
    labels: label maps of the examples.
    tile: height and width of the network's input.
  """
  for split in range(1, _AUTO_SPLIT):
    if not any(tiling.small_classes(each, (split * tile[0], split * tile[1])) for each in labels):
      return split
  return _AUTO_SPLIT
