"""Scores of several processes are summed in 64 bits; cut to 32 they are wrong, and look as good as right ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.experimental import multihost_utils

from seggpt_jax.metrics.words import from_words, to_words

NUMBERS = st.sampled_from([np.int64, np.float64]).flatmap(
  lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
)

PROCESS = """
import sys
import jax, numpy as np
from jax.experimental import multihost_utils
from seggpt_jax.metrics.words import from_words, to_words
port, index = map(int, sys.argv[1:])
jax.distributed.initialize(f"localhost:{port}", 2, index)
counts = np.array([[2**40 + index, 7], [0, 2**61]])
cut = multihost_utils.process_allgather(counts).sum(axis=0)
words = multihost_utils.process_allgather(to_words(counts))
total = from_words(words, np.int64).sum(axis=0)
print("cut" if int(cut[0, 0]) != 2**41 + 1 else "whole", *total.ravel().tolist())
"""


@settings(derandomize=True, deadline=None, max_examples=100)
@given(NUMBERS)
def test_every_bit_survives_the_device(numbers):
  words = jnp.asarray(to_words(numbers))
  assert words.shape == (*numbers.shape, 2) and words.dtype == jnp.uint32
  back = from_words(words, numbers.dtype)
  assert back.dtype == numbers.dtype and back.shape == numbers.shape
  assert back.tobytes() == numbers.tobytes()


def test_a_view_with_strides_is_read_in_its_own_order():
  numbers = np.arange(24).reshape(4, 6).T[::2]
  np.testing.assert_array_equal(from_words(to_words(numbers), np.int64), numbers)


def test_one_process_gathers_its_own():
  counts = np.array([2**40, 3])
  gathered = multihost_utils.process_allgather(to_words(counts))
  np.testing.assert_array_equal(from_words(gathered, np.int64).sum(axis=0), counts)


def test_two_processes_sum_what_32_bits_cannot_hold():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(port), str(index)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    for process in processes:
      output, errors = process.communicate(timeout=60)
      assert process.returncode == 0, errors
      # "cut" is why this module is there: should JAX ever keep 64 bits, it can go.
      assert output.splitlines()[-1].split() == ["cut", str(2**41 + 1), "14", "0", str(2**62)]
  finally:
    for process in processes:
      process.kill()
