"""Finds the scale at which a network sees the objects that prompts mark, for weights without a scale of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seggpt_jax.data.scale import measured_zoom, object_sides
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.model.config import SegGPTConfig

# Objects of one patch are found when trained on; without training two are better.
_PATCHES = 2
_MOST_WINDOWS = 64


class _LabelFiles:
  """Label maps of files, in the form that `object_sides` reads."""

  def __init__(self, files: Sequence[str | os.PathLike], labels: LabelFormat):
    self._files, self._labels = files, labels

  def __len__(self) -> int:
    return len(self._files)

  def label(self, index: int) -> np.ndarray:
    return read_labels(self._files[index], self._labels)


class Objects(NamedTuple):
  """The objects of labeled images.

  Attributes:
    sides: median side in pixels of each class's objects, see `zoomed.object_sides`.
    shape: height and width in pixels of the first label map, which stands for all.
  """

  sides: dict[int, float]
  shape: tuple[int, ...]

  def zoom(self, config: SegGPTConfig) -> float:
    """Returns the factor from an image's pixels to the network's at which the smallest class is two patches large.

    Args:
      config: architecture of the network, for its square and its patch.

    Returns:
      The factor; 0 if whole images show the objects large enough.
    """
    square, wanted = min(config.canvas_size), _PATCHES * config.patch_size
    if min(self.sides.values()) * square / max(self.shape) >= wanted:
      return 0.0
    return measured_zoom(self.sides, self.shape, square, wanted, _MOST_WINDOWS)


def measure_objects(files: Sequence[str | os.PathLike], labels: LabelFormat) -> Objects:
  """Measures the objects in the label maps of prompts.

  Args:
    files: label maps, of which at most 200 are looked at.
    labels: how to read them.

  Raises:
    InputError: a label cannot be read, or none shows any class.
  """
  source = _LabelFiles(files, labels)
  return Objects(object_sides(source), source.label(0).shape)
