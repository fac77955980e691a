"""Exact comparison of parameters."""

import numpy as np


def assert_same(found, wanted):
  """Compares parameters bit for bit, including dtype and shape."""
  assert found.keys() == wanted.keys()
  for name in wanted:
    a, b = np.asarray(found[name]), np.asarray(wanted[name])
    assert (a.dtype, a.shape) == (b.dtype, b.shape), name
    np.testing.assert_array_equal(a.view(np.uint8) if a.ndim else a, b.view(np.uint8) if b.ndim else b, err_msg=name)
