"""The pipeline: the same pairs for the same seed however it is run, and a position that can be saved."""

import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from seggpt_jax.data import pipeline
from seggpt_jax.data.transforms import Augmentation, EvaluationPair, TrainingPair
from seggpt_jax.errors import InputError


@pytest.fixture(autouse=True)
def parsed_flags():
  """Grain's worker processes read absl flags, which a command has parsed by then."""
  flags.FLAGS.mark_as_parsed()


class Numbered:
  """Sample i is an image full of i with a label full of i % 3."""

  def __init__(self, count):
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    image = np.full((32, 32, 3), index, np.uint8)
    return {"image": image, "label": np.full((32, 32), index % 3, np.uint8), "name": str(index)}


TRANSFORM = TrainingPair((64, 32), 8, 3, "random", 0.75, 0.3, Augmentation())


def training(count=10, **changes):
  options = {"batch_size": 4, "seed": 7, "num_threads": 2, "num_workers": 0}
  return pipeline.training_batches(pipeline.SourceTrainingPairs(Numbered(count), TRANSFORM), **{**options, **changes})


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def queries(batches):
  return np.concatenate([batch["images"][:, 32, 0, 0] for batch in batches])


def prompts(batches):
  return np.concatenate([batch["images"][:, 0, 0, 0] for batch in batches])


def test_batches_are_stacked_small_integers():
  batch = next(training())
  assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
    "images": ((4, 64, 32, 3), "uint8"),
    "labels": ((4, 64, 32), "uint8"),
    "palette": ((4, 3, 3), "uint8"),
    "patch_mask": ((4, 8, 4), "bool"),
    "valid": ((4,), "bool"),
  }


def test_an_epoch_shows_every_sample_once_as_a_query_and_never_with_itself():
  batches = take(training(count=12), 9)
  for epoch in range(3):
    assert sorted(queries(batches)[epoch * 12 : (epoch + 1) * 12]) == list(range(12))
  assert (queries(batches) != prompts(batches)).all()
  assert (queries(batches)[:12] != queries(batches)[12:24]).any()


@pytest.mark.parametrize("options", [{"num_threads": 8}, {"num_threads": 0}, {"num_workers": 2}])
def test_threads_and_workers_change_nothing(options):
  assert_equal(take(training(), 6), take(training(**options), 6))


@pytest.mark.parametrize("options", [{}, {"process_index": 1, "process_count": 2}])
def test_a_batch_may_hold_a_single_pair(options):
  assert take(training(batch_size=1, **options), 3)[2]["images"].shape == (1, 64, 32, 3)


def test_the_seed_decides():
  assert (queries(take(training(), 3)) != queries(take(training(seed=8), 3))).any()


def test_two_processes_read_the_halves_of_the_same_pairs():
  whole = take(training(batch_size=4), 5)
  shares = [take(training(batch_size=2, process_index=i, process_count=2), 5) for i in (0, 1)]
  for step, batch in enumerate(whole):
    for share in (0, 1):
      for key in batch:
        np.testing.assert_array_equal(shares[share][step][key], batch[key][share::2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_saved_position_goes_on_in_the_middle_of_an_epoch(num_workers):
  first = training(num_workers=num_workers)
  take(first, 4)
  state = first.get_state()
  expected = take(first, 4)
  second = training(num_workers=num_workers)
  second.set_state(state)
  assert_equal(take(second, 4), expected)


EVALUATION = EvaluationPair((64, 32), 8, 3)


def test_evaluation_pairs_are_the_same_every_time_and_each_counts_once():
  def run(**options):
    return list(
      pipeline.evaluation_batches(
        pipeline.SourceEvaluationPairs(Numbered(10), EVALUATION), batch_size=4, num_pairs=-1, **options
      )
    )

  batches = run()
  assert_equal(batches, run())
  valid = np.concatenate([batch["valid"] for batch in batches])
  assert len(valid) == 12 and valid.sum() == 10
  assert list(queries(batches)[valid]) == list(range(10))
  # Over two processes the same ten, no more and no less.
  shares = run(process_index=0, process_count=2) + run(process_index=1, process_count=2)
  valid = np.concatenate([batch["valid"] for batch in shares])
  assert sorted(queries(shares)[valid]) == list(range(10))


def test_a_limited_evaluation_is_spread_over_the_source():
  batches = list(
    pipeline.evaluation_batches(pipeline.SourceEvaluationPairs(Numbered(100), EVALUATION), batch_size=5, num_pairs=5)
  )
  assert list(queries(batches)) == [0, 20, 40, 60, 80]


def test_one_image_cannot_be_paired():
  with pytest.raises(InputError, match="found 1 labelled images, expected at least 2"):
    training(count=1)


def test_a_bad_file_in_the_middle_is_named(tmp_path):
  class Broken(Numbered):
    def __getitem__(self, index):
      if index == 5:
        raise InputError("file5.png: cannot be read")
      return super().__getitem__(index)

  iterator = pipeline.training_batches(
    pipeline.SourceTrainingPairs(Broken(10), TRANSFORM), batch_size=4, seed=0, num_threads=2, num_workers=0
  )
  with pytest.raises(InputError, match=r"file5.png"):
    take(iterator, 10)


def test_importing_the_data_room_touches_no_device():
  """Worker processes and data preparation must not take a slice of the accelerator."""
  code = (
    "import seggpt_jax.data.pipeline, seggpt_jax.data.boards; from jax._src import xla_bridge;"
    "assert not xla_bridge.backends_are_initialized()"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
