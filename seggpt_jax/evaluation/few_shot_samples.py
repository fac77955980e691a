"""Samples and episode plans of few-shot benchmarks: what a reader of a dataset returns and an evaluation runs.

A reader of a dataset makes `FewShotData`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.sources import EncodedSource, Source
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_episodes
from seggpt_jax.evaluation.few_shot_episodes import Episode, Pools
from seggpt_jax.formats.images import decode_image
from seggpt_jax.formats.labels import IGNORE
from seggpt_jax.inference import tiling

ImageAndMask = tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]


@runtime_checkable
class Samples(Protocol):
  """The samples of a benchmark. One sample can be asked for several classes."""

  def __len__(self) -> int: ...

  def name(self, sample: int) -> str:
    """Returns a name that no other sample has."""
    ...

  def read(self, sample: int, class_index: int) -> ImageAndMask:
    """Reads an image and its mask of a class: 1 where the class is, IGNORE where the label is ignored.

    Raises:
      InputError: a file is missing, cannot be read, or has another size than its image; names the file.
    """
    ...


class LabelMaps:
  """Samples with label files. Implements `Samples`.

  Args:
    source: the images and labels.
    own_class: whether each label file is the mask of one class, instead of class indices.
  """

  def __init__(self, source: Source, *, own_class: bool = False):
    self.source, self._own_class = source, own_class

  def __len__(self) -> int:
    return len(self.source)

  def name(self, sample: int) -> str:
    return self.source.name(sample)

  def read(self, sample: int, class_index: int) -> ImageAndMask:
    image, label = self._read(sample)
    mask = (label == (1 if self._own_class else class_index)).astype(np.uint8)
    mask[label == IGNORE] = IGNORE
    return image, mask

  def _read(self, sample: int) -> ImageAndMask:
    read = self.source[sample]
    return read["image"], read["label"]


class StretchedImages(LabelMaps):
  """Samples whose images may have been stored at another size than their masks. Images get the size of their mask.

  Args:
    source: the images, and the mask of one class for each.
  """

  def __init__(self, source: EncodedSource):
    super().__init__(source, own_class=True)
    self._encoded = source

  def _read(self, sample: int) -> ImageAndMask:
    image, label = decode_image(*self._encoded.encoded_image(sample)), self.source.label(sample)
    return image if image.shape[:2] == label.shape else tiling.resize_image(image, label.shape), label


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotData:
  """A benchmark with its classes, folds and the plan of its episodes.

  Attributes:
    samples: the samples.
    class_names: name of each class.
    folds: classes of each fold.
    pools: images that show each class, in order.
    num_episodes: number of episodes of each fold.
    queries: (sample, class) pairs of each fold, in order, which are the queries in turn; None if queries are drawn at
      random.
    classes_in_turn: whether the classes of queries that are drawn at random come in turn.
    notes: sentences to print below the results.
    comparable: whether published results use the same classes.
  """

  samples: Samples
  class_names: Mapping[int, str]
  folds: Mapping[int, Sequence[int]]
  pools: Pools
  num_episodes: Mapping[int, int]
  queries: Mapping[int, Sequence[tuple[int, int]]] | None = None
  classes_in_turn: bool = False
  notes: tuple[str, ...] = ()
  comparable: bool = True

  def episodes(self, fold: int, shots: int, seed: int = 0, count: int | None = None) -> list[Episode]:
    """Returns the episodes of a fold, the same ones for the same files and arguments.

    Args:
      fold: a key of `folds`.
      shots: number of prompts per query.
      seed: seed of the draws.
      count: number of episodes to keep, evenly spread. By default all are kept.

    Raises:
      InputError: there is no such fold, or one of its classes has too few images.
    """
    if fold not in self.folds:
      raise InputError(f"--fold: found {fold}, expected some of {', '.join(map(str, self.folds))}")
    classes, total = self.folds[fold], self.num_episodes[fold]
    few_shot_episodes.check_pools(classes, self.pools, shots, self.class_names)
    if self.queries is not None:
      drawn = few_shot_episodes.in_turn(self.queries[fold], self.pools, total, shots, seed)
    elif self.classes_in_turn:
      drawn = few_shot_episodes.class_by_class(classes, self.pools, total, shots, seed)
    else:
      drawn = few_shot_episodes.at_random(classes, self.pools, total, shots, seed)
    return few_shot_episodes.evenly_spread(drawn, count)
