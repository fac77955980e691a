"""Prompts in memory: sets of checked prompts, and a store of sets under names.

In: checked prompts. Out: the same at the size that the options need, resized once. Nothing is written to disk.
"""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Sequence

import numpy as np

from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.errors import InputError
from seggpt_jax.inference import tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import PreparedPrompt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_SETS = 1000
_MOST_SCALES = 2  # of all networks, at which a set stays resized


class UnknownPromptsError(LookupError):
  """No prompts are stored under a name."""


class PromptSet:
  """Prompts that serve queries together, best first.

  Args:
    prompts: checked prompts of any size, from `inference.prompts.load_prompt`. None for a learned prompt.
    pinned: whether a store keeps the set when memory is short.

  Attributes:
    classes: the foreground classes that the prompts show.
    num_bytes: memory that the set takes.
  """

  def __init__(self, prompts: Sequence[PreparedPrompt] = (), pinned: bool = False):
    self._prompts, self.pinned = tuple(prompts), pinned
    # By network and scale. The threads of several engines read and write it.
    self._resized: collections.OrderedDict[tuple, tuple[PreparedPrompt, ...]] = collections.OrderedDict()
    self._lock = threading.Lock()
    labels = [np.unique(prompt.labels) for prompt in self._prompts]
    self.classes = tuple(value for value in np.unique(np.concatenate([[0], *labels])).tolist() if value)
    self.num_bytes = _num_bytes(self._prompts)

  def __len__(self) -> int:
    return len(self._prompts)

  @property
  def sizes(self) -> list[tuple[int, int]]:
    """Height and width of each prompt in pixels."""
    return [prompt.labels.shape for prompt in self._prompts]

  def warnings(self, predictor: Predictor, options: InferenceOptions) -> list[str]:
    """Returns a line for each prompt without foreground, and for each class that is too small for the network to see.

    Args:
      predictor: the predictor.
      options: how the network is shown an image.
    """
    found, scale = [], options.scale
    for index, prompt in enumerate(self._prompts):
      if not prompt.labels.any():
        found.append(f"prompts[{index}]: no foreground in the label map, so the prompt shows no class")
      size = scale.size(prompt.labels.shape, predictor.tile_size)
      for value, area in {} if scale.zoom else tiling.small_classes(prompt.labels, size).items():
        found.append(
          f"prompts[{index}]: class {value} covers {area:.2g} of the pixels that the network sees; use a larger split, "
          "or crop the prompt around it"
        )
    return found

  def for_options(self, predictor: Predictor, options: InferenceOptions) -> tuple[PreparedPrompt, ...]:
    """Returns the prompts as the predictor takes them, resized where that leaves its answer the same bit for bit.

    With several splits, each of them needs the prompts at their own size.

    Args:
      predictor: the predictor.
      options: how the network is shown an image.
    """
    if len(options.scales) > 1:
      return self._prompts
    key = predictor, options.scale
    with self._lock:
      if key not in self._resized:
        self._resized[key] = tuple(prompt.at(options.scale, predictor.tile_size) for prompt in self._prompts)
        if len(self._resized) > _MOST_SCALES:
          self._resized.popitem(last=False)
        self.num_bytes = _num_bytes(self._prompts) + sum(map(_num_bytes, self._resized.values()))
      self._resized.move_to_end(key)
      return self._resized[key]


def _num_bytes(prompts: Sequence[PreparedPrompt]) -> int:
  return sum(prompt.image.nbytes + prompt.labels.nbytes for prompt in prompts)


class PromptStore:
  """Sets of prompts under names. The least recently used ones are dropped when memory is short.

  Args:
    capacity: bytes of all sets together.
  """

  def __init__(self, capacity: int):
    self._capacity, self._lock = capacity, threading.Lock()
    self._sets: collections.OrderedDict[str, PromptSet] = collections.OrderedDict()

  def put(self, name: str, prompts: PromptSet) -> bool:
    """Stores a set and returns whether the name is new. A set of the same name is replaced.

    Raises:
      TooLargeError: the sets that cannot be dropped leave no room for it.
      InputError: the name is not up to 64 letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
      raise InputError(f"name: found {name[:80]!r}, expected up to 64 of the characters A-Z, a-z, 0-9, '.', '-', '_'")
    with self._lock:
      kept = sum(each.num_bytes for other, each in self._sets.items() if each.pinned and other != name)
      if kept + prompts.num_bytes > self._capacity:
        raise TooLargeError(
          f"prompts: found {prompts.num_bytes} bytes in memory, expected at most {self._capacity - kept}"
        )
      is_new = self._sets.pop(name, None) is None
      self._sets[name] = prompts
      self._evict()
    return is_new

  def get(self, name: str, *, use: bool = False) -> PromptSet:
    """Returns a set.

    Args:
      name: its name.
      use: whether that makes it the most recently used one.

    Raises:
      UnknownPromptsError: no set has this name.
    """
    with self._lock:
      stored = self._find(name)
      if use:
        self._sets.move_to_end(name)
        self._evict()  # sets grow while they are used
      return stored

  def remove(self, name: str) -> None:
    """Drops a set. Requests that use it already are answered.

    Raises:
      UnknownPromptsError: no set has this name.
    """
    with self._lock:
      self._find(name)
      del self._sets[name]

  def list(self) -> dict[str, PromptSet]:
    """Returns all sets, by name."""
    with self._lock:
      return dict(sorted(self._sets.items()))

  def _find(self, name: str) -> PromptSet:
    if name not in self._sets:
      raise UnknownPromptsError(f"prompts: found no stored set {name[:80]!r}, expected one from GET /prompts")
    return self._sets[name]

  def _evict(self) -> None:
    """Drops the least recently used sets until the others fit. The newest one stays."""
    used = sum(each.num_bytes for each in self._sets.values())
    for name in list(self._sets)[:-1]:
      if used <= self._capacity and len(self._sets) <= _MOST_SETS:
        return
      if not self._sets[name].pinned:
        used -= self._sets.pop(name).num_bytes
