"""The pipeline: a seed gives the same pairs with any number of threads and processes, and training can resume."""

import numpy as np
import pytest
from absl import flags

from seggpt_jax.data import pipeline
from seggpt_jax.data.augment import Augmentation
from seggpt_jax.data.pairing import Draw, Pairing, PairingOptions
from seggpt_jax.data.sources import View
from seggpt_jax.data.transforms import EvaluationPair, TrainingPair
from seggpt_jax.errors import InputError


@pytest.fixture(autouse=True)
def parsed_flags():
  """Marks absl flags as parsed, as a command would, because grain's worker processes read them."""
  flags.FLAGS.mark_as_parsed()


class Numbered:
  """A source whose sample i has an image filled with i and a label filled with i % 3."""

  num_classes = 3

  def __init__(self, count, bad=()):
    self.count, self.bad = count, bad

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.bad:
      raise InputError(f"file{index}.png: cannot be read")
    image = np.full((32, 32, 3), index, np.uint8)
    return {"image": image, "label": self.label(index), "name": str(index)}

  def name(self, index):
    return str(index)

  def label(self, index):
    return np.full((32, 32), index % 3, np.uint8)

  def classes(self, index):
    return (index % 3,) if index % 3 else ()

  def label_stamp(self, index):
    return ""

  def field(self, index, key):
    return key


TRANSFORM = TrainingPair((64, 32), 8, 3, "random", 0.75, 0.3, Augmentation())


def training_pairs(count=10, bad=(), bad_files="error", pairing=None):
  pairing = pairing or Pairing(count, PairingOptions())
  return pipeline.SourceTrainingPairs(Numbered(count, bad), pairing, TRANSFORM, bad_files)


def training(count=10, pairs=None, **changes):
  options = {"batch_size": 4, "seed": 7, "num_threads": 2, "num_workers": 0}
  return pipeline.training_batches(pairs or training_pairs(count), **{**options, **changes})


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
    "samples": ((4, 2), "int32"),
    "bad": ((4, 8), "int32"),
  }


def test_an_epoch_shows_every_sample_once_as_a_query_and_never_with_itself():
  batches = take(training(count=12), 9)
  for epoch in range(3):
    assert sorted(queries(batches)[epoch * 12 : (epoch + 1) * 12]) == list(range(12))
  assert (queries(batches) != prompts(batches)).all()
  assert (queries(batches)[:12] != queries(batches)[12:24]).any()


@pytest.mark.parametrize("options", [{"num_threads": 8}, {"num_threads": 0}, {"num_workers": 2}])
def test_threads_and_workers_do_not_change_batches(options):
  assert_equal(take(training(), 6), take(training(**options), 6))


@pytest.mark.parametrize("options", [{}, {"process_index": 1, "process_count": 2}])
def test_a_batch_may_hold_a_single_pair(options):
  assert take(training(batch_size=1, **options), 3)[2]["images"].shape == (1, 64, 32, 3)


def test_another_seed_gives_other_batches():
  assert (queries(take(training(), 3)) != queries(take(training(seed=8), 3))).any()


def test_two_processes_read_the_halves_of_the_same_batches():
  whole = take(training(batch_size=4), 5)
  shares = [take(training(batch_size=2, process_index=i, process_count=2), 5) for i in (0, 1)]
  for step, batch in enumerate(whole):
    for share, half in enumerate((slice(0, 2), slice(2, 4))):
      for key in batch:
        np.testing.assert_array_equal(shares[share][step][key], batch[key][half])


def test_the_canvases_of_one_query_are_consecutive():
  pairs = training_pairs(pairing=Pairing(10, PairingOptions(num_prompts=3)))
  batch = next(training(pairs=pairs, batch_size=2))
  assert batch["images"].shape == (6, 64, 32, 3) and batch["valid"].shape == (6,) and batch["bad"].shape == (2, 8)
  for start in (0, 3):
    group = slice(start, start + 3)
    for key, first in (("images", 32), ("labels", 32), ("palette", 0), ("patch_mask", 0)):
      values = batch[key][group, first:]
      np.testing.assert_array_equal(values, np.repeat(values[:1], 3, axis=0), err_msg=key)
    assert len(set(prompts([batch])[group])) == 3
  np.testing.assert_array_equal(batch["samples"], np.stack([prompts([batch]), queries([batch])], axis=-1))


def test_a_negative_pair_answers_background_to_a_class_the_query_lacks():
  classes = np.array([[False, i % 3 == 1, i % 3 == 2] for i in range(10)])
  pairs = training_pairs(pairing=Pairing(10, PairingOptions(negative=1.0), classes=classes))
  batch = next(training(pairs=pairs, batch_size=10))
  assert (batch["labels"][:, 32:] == 0).all()
  prompted = batch["labels"][:, 0, 0]
  assert (prompted > 0).all() and (prompted != queries([batch]) % 3).all()


def test_a_negative_pair_of_groups_that_are_classes_answers_background():
  pairing = Pairing(10, PairingOptions(negative=1.0), [str(i % 5) for i in range(10)], groups_are_classes=True)
  batch = next(training(pairs=training_pairs(pairing=pairing), batch_size=10))
  assert (batch["labels"][:, 32:] == 0).all()
  np.testing.assert_array_equal(batch["labels"][:, 0, 0], prompts([batch]) % 3)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"process_index": 1, "process_count": 2}])
def test_a_later_start_skips_the_batches_used_before(options):
  expected = take(training(**{**options, "num_workers": 0}), 8)
  assert_equal(take(training(**options, start=3), 5), expected[3:])


EVALUATION = EvaluationPair((64, 32), 8, 3)


def evaluation_pairs(count, bad=(), bad_files="error"):
  pairing = Pairing(count, PairingOptions())
  source = Numbered(count, bad)
  return pipeline.SourceEvaluationPairs(source, source, pairing, EVALUATION, bad_files)


def test_evaluation_pairs_are_the_same_every_time_and_each_counts_once():
  def run(**options):
    return list(pipeline.evaluation_batches(evaluation_pairs(10), batch_size=4, num_pairs=-1, **options))

  batches = run()
  assert_equal(batches, run())
  valid = np.concatenate([batch["valid"] for batch in batches])
  assert len(valid) == 12 and valid.sum() == 10
  assert list(queries(batches)[valid]) == list(range(10))
  # Two processes together read the same ten pairs, each once.
  shares = run(process_index=0, process_count=2) + run(process_index=1, process_count=2)
  valid = np.concatenate([batch["valid"] for batch in shares])
  assert sorted(queries(shares)[valid]) == list(range(10))


def test_a_limited_evaluation_is_spread_over_the_source():
  batches = list(pipeline.evaluation_batches(evaluation_pairs(100), batch_size=5, num_pairs=5))
  assert list(queries(batches)) == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_in_the_middle_is_named(num_workers):
  with pytest.raises(InputError, match=r"file5.png: cannot be read$"):
    take(training(pairs=training_pairs(bad=(5,)), num_workers=num_workers), 10)


def test_a_pair_with_a_bad_file_is_replaced_and_the_others_stay():
  good = take(training(batch_size=5), 8)
  skipping = training_pairs(bad=(5,), bad_files="skip")
  batches = take(training(batch_size=5, pairs=skipping), 8)
  told = np.concatenate([batch["bad"] for batch in batches])
  assert set(told.ravel().tolist()) == {-1, 5}
  met = (told == 5).any(axis=1)
  samples = [np.concatenate([batch["samples"] for batch in found]) for found in (good, batches)]
  # Only the pairs with the bad file were replaced.
  np.testing.assert_array_equal(met, (samples[0] == 5).any(axis=1))
  np.testing.assert_array_equal(samples[0][~met], samples[1][~met])
  assert (samples[1] != 5).all()
  assert_equal(batches, take(training(batch_size=5, num_threads=0, pairs=skipping), 8))


def test_a_bad_validation_file_is_skipped_and_listed():
  batches = list(pipeline.evaluation_batches(evaluation_pairs(10, (5,), "skip"), batch_size=5, num_pairs=-1))
  assert set(np.concatenate([batch["bad"] for batch in batches]).ravel().tolist()) == {-1, 5}
  assert 5 not in queries(batches) and (queries(batches) != prompts(batches)).all()


def test_a_source_of_bad_files_ends_with_an_error():
  pairs = training_pairs(bad=range(10), bad_files="skip")
  with pytest.raises(InputError, match=r"cannot be read \(8 bad samples in a row"):
    take(training(pairs=pairs), 1)


def test_evaluation_prompts_come_from_a_source_of_their_own():
  pairs = pipeline.SourceEvaluationPairs(
    Numbered(4), View(Numbered(6), Numbered(4)), lambda index, generator: Draw(index, (5 - index,)), EVALUATION
  )
  pair = pairs(3)
  np.testing.assert_array_equal(pair["samples"], [[2, 3]])
  np.testing.assert_array_equal(
    pair["labels"],
    pipeline.SourceEvaluationPairs(Numbered(6), Numbered(6), lambda index, generator: Draw(index, (2,)), EVALUATION)(3)[
      "labels"
    ],
  )


def test_a_bad_prompt_from_another_source_is_not_counted_among_the_queries():
  pairs = pipeline.SourceEvaluationPairs(
    Numbered(4), Numbered(6, bad=(0,)), lambda index, generator: Draw(index, (index,)), EVALUATION, "skip"
  )
  pair = pairs(0)
  assert pair["samples"][0, 1] != 0 and (pair["bad"] == -1).all()
