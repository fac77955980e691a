"""kill -9: if this fails, a resumed run is not the run that was started."""

from benchmarks import kills


def test_a_run_that_is_killed_three_times_is_bit_for_bit_the_one_left_alone(tmp_path):
  """benchmarks/kills.py is the long version of this test."""
  assert kills.compare(tmp_path, num_steps=40, kills=3, seed=1) == []
