"""The collector of bad files for training, where each process meets only some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jax.experimental import multihost_utils

from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.data.sources import Source


class SharedBadFiles:
  """Collects the samples that all training processes skipped because their files cannot be read.

  Args:
    sources: the samples by split.
    max_share: largest share of a split's samples that may be bad, 0 to 1.
    say: called with one line for each bad sample.
  """

  def __init__(self, sources: Mapping[str, Source], max_share: float, say: Callable[[str], None]):
    totals = {split: len(source) for split, source in sources.items()}
    self._sources = sources
    self._bad = BadFiles(say, max_share, totals, "config.data.bad_share")
    self._pending: dict[str, list[np.ndarray]] = {}

  def add(self, split: str, indices: np.ndarray) -> None:
    """Notes the samples that a batch of this process skipped.

    Args:
      split: train or val.
      indices: `bad` of the batch: indices of samples, -1 for none.
    """
    self._pending.setdefault(split, []).append(indices)

  def settle(self) -> None:
    """Counts the samples that all processes noted since the last call. All processes call it after the same batches.

    Raises:
      InputError: too many samples of a split are bad.
    """
    for split, noted in sorted(self._pending.items()):
      for index in np.unique(multihost_utils.process_allgather(np.stack(noted))).tolist():
        if index >= 0:
          self._bad.add(self._sources[split].name(index), split=split)
      self._bad.check()
    self._pending.clear()
