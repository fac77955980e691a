"""Reading ahead: results stay in order, memory stays bounded, and one bad item does not hide the others."""

import contextlib
import threading
import time

import pytest

from seggpt_jax.data.read_ahead import read_ahead


def test_results_come_in_order_with_their_items():
  def read(item):
    time.sleep(0.01 * (item % 3))
    return item * item

  results = [(item, future.result()) for item, future in read_ahead(read, range(20), threads=4, ahead=8)]
  assert results == [(item, item * item) for item in range(20)]


def test_items_are_taken_only_a_bounded_number_ahead():
  taken = []

  def items():
    for item in range(100):
      taken.append(item)
      yield item

  with contextlib.closing(read_ahead(abs, items(), threads=2, ahead=3)) as results:
    for _ in range(5):
      next(results)
    assert len(taken) <= 5 + 3
  assert len(taken) <= 5 + 3


def test_an_error_belongs_to_its_item():
  def read(item):
    if item == 1:
      raise ValueError("bad")
    return item

  futures = [future for _, future in read_ahead(read, range(3))]
  assert futures[0].result() == 0 and futures[2].result() == 2
  with pytest.raises(ValueError, match="bad"):
    futures[1].result()


def test_closing_cancels_what_has_not_started():
  """An error in one file ends a command at once, not after everything that was queued."""
  begun, release = [], threading.Event()

  def read(item):
    begun.append(item)
    release.wait(10)

  results = read_ahead(read, range(50), threads=1, ahead=20)
  next(results)
  threading.Timer(0.2, release.set).start()
  results.close()
  assert begun == [0]
