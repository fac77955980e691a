"""Stored prompts: the least recently used are dropped, never sets in use or sets that the operator gave."""

from __future__ import annotations

import numpy as np
import pytest

from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.prompt_sets import PromptSet, PromptStore, UnknownPromptsError
from seggpt_jax.errors import InputError
from seggpt_jax.inference.prompts import PreparedPrompt


def set_of(num_bytes: int, value: int = 1, pinned: bool = False) -> PromptSet:
  """A set that takes a number of bytes, a multiple of four."""
  height = num_bytes // 4
  prompt = PreparedPrompt(np.zeros((height, 1, 3), np.uint8), np.full((height, 1), value, np.uint8))
  return PromptSet([prompt], pinned)


def test_the_least_recently_used_set_is_dropped():
  store = PromptStore(100)
  assert store.put("a", set_of(40)) and store.put("b", set_of(40))
  store.get("a", use=True)
  store.get("b")  # to look at a set is no use of it
  store.put("c", set_of(40))
  assert list(store.list()) == ["a", "c"]
  with pytest.raises(UnknownPromptsError, match="'b'"):
    store.get("b")


def test_a_set_replaces_one_of_the_same_name():
  store = PromptStore(100)
  assert store.put("a", set_of(80, 1))
  assert not store.put("a", set_of(80, 2))
  assert store.get("a").classes == (2,)
  store.remove("a")
  with pytest.raises(UnknownPromptsError):
    store.remove("a")


def test_pinned_sets_stay_and_too_large_ones_are_refused():
  store = PromptStore(100)
  store.put("kept", set_of(60, pinned=True))
  store.put("small", set_of(40))
  with pytest.raises(TooLargeError, match="expected at most 40"):
    store.put("large", set_of(44))
  store.put("other", set_of(40))
  assert list(store.list()) == ["kept", "other"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-a", "é", "a" * 65, "a\n"])
def test_names_that_are_no_names(name):
  with pytest.raises(InputError, match="name: found"):
    PromptStore(100).put(name, set_of(4))
