"""Sums on their way between processes, whole.

JAX moves arrays as 32 bits unless told otherwise: an int64 count that goes through `process_allgather` arrives modulo
2^32, without a warning. In: NumPy arrays of 64-bit numbers. Out: the same bits as uint32, which JAX leaves alone:

    words = multihost_utils.process_allgather(to_words(counts))
    total = from_words(words, np.int64).sum(axis=0)

All processes must bring the same shape.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt32
from numpy.typing import DTypeLike

from seggpt_jax.typing import AnyArray


def to_words(numbers: Int64[np.ndarray, "*shape"] | Float64[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape 2"]:
  """The two halves of every number, in a last dimension of their own."""
  # Views of a 64-bit number as two 32-bit ones need that dimension to be there and contiguous.
  return np.asarray(numbers, order="C")[..., None].view(np.uint32)


def from_words(
  words: UInt32[AnyArray, "*shape 2"], dtype: DTypeLike
) -> Int64[np.ndarray, "*shape"] | Float64[np.ndarray, "*shape"]:
  """The numbers that `to_words` took apart, bit for bit.

  Args:
    words: as of `to_words`, or several such stacked.
    dtype: what they were: np.int64 or np.float64.
  """
  return np.asarray(words, order="C").view(dtype)[..., 0]
