"""Reads pickles that datasets are published as, without running what they contain: a file in, plain values out."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

from seggpt_jax.data.images import read_bytes
from seggpt_jax.errors import InputError, one_line

# Everything that a value of lists, dicts, numbers, texts and arrays can name. None of these runs code of the file.
_PLAIN = frozenset(
  {
    ("builtins", "list"),
    ("builtins", "dict"),
    ("builtins", "set"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
  }
)


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    module = module.replace("numpy.core.", "numpy._core.")  # as NumPy 1 wrote it
    if (module, name) not in _PLAIN:
      raise pickle.UnpicklingError(f"it uses {module}.{name}")
    return super().find_class(module, name)


def read_plain_pickle(path: str | os.PathLike) -> Any:
  """Reads a pickle of lists, dicts, numbers, texts and NumPy arrays.

  Args:
    path: the file.

  Raises:
    InputError: there is no such file, it is no pickle, or it contains anything else, which could run code.
  """
  data = read_bytes(path)
  try:
    return _Unpickler(io.BytesIO(data)).load()
  except Exception as error:  # an unpickler can raise anything for bytes that are no pickle
    reason = one_line(error)[:200] or type(error).__name__
    raise InputError(f"{path}: cannot be read ({reason}), expected a pickle of plain lists and dicts") from error
