"""The few-shot benchmarks by name. A new one is a reader that returns `FewShotData`, and an entry here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from seggpt_jax.evaluation import few_shot_data, few_shot_domains
from seggpt_jax.evaluation.few_shot_samples import FewShotData


class Opening(NamedTuple):
  """The choices of the user that a reader may need.

  Attributes:
    directory: folder of the dataset.
    classes: file with names of classes, or None.
    lists: folder with published lists, or None.
    cache: file to keep the classes of every image in.
  """

  directory: str | os.PathLike
  classes: str | None = None
  lists: str | None = None
  cache: str | os.PathLike | None = None


@dataclasses.dataclass(frozen=True)
class FewShotBenchmark:
  """A few-shot benchmark.

  Attributes:
    read: opens the dataset.
    num_folds: number of folds.
    flags: flags that only some benchmarks have: classes, lists.
  """

  read: Callable[[Opening], FewShotData]
  num_folds: int = 1
  flags: tuple[str, ...] = ()


BENCHMARKS: Mapping[str, FewShotBenchmark] = {
  "fss1000": FewShotBenchmark(lambda given: few_shot_data.fss1000(given.directory, given.classes), flags=("classes",)),
  "pascal5i": FewShotBenchmark(
    lambda given: few_shot_data.pascal5i(given.directory, given.lists), few_shot_data.NUM_FOLDS, ("lists",)
  ),
  "coco20i": FewShotBenchmark(
    lambda given: few_shot_data.coco20i(given.directory, given.cache), few_shot_data.NUM_FOLDS
  ),
  "isaid5i": FewShotBenchmark(
    lambda given: few_shot_domains.isaid5i(given.directory, given.lists), few_shot_domains.NUM_ISAID_FOLDS, ("lists",)
  ),
  "isic2018": FewShotBenchmark(lambda given: few_shot_domains.isic2018(given.directory)),
  "suim": FewShotBenchmark(lambda given: few_shot_domains.suim(given.directory, given.cache)),
  "chest_xray": FewShotBenchmark(lambda given: few_shot_domains.chest_xray(given.directory)),
}
