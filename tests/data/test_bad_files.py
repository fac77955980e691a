"""The collector of bad files: users see each bad file once, and a run does not silently lose most of its data."""

import pytest

from seggpt_jax.data.bad_files import BadFile, BadFiles
from seggpt_jax.errors import InputError


def test_each_file_is_reported_once():
  said = []
  bad = BadFiles(say=said.append)
  bad.add("a", "cut off", split="train")
  bad.add("a", "cut off", split="train")
  bad.add("a", split="val")
  bad.add("b")
  assert said == [
    "passed over: train a: cut off (1 so far)",
    "passed over: val a cannot be read (1 so far)",
    "passed over: b cannot be read (1 so far)",
  ]
  assert list(bad) == [BadFile("a", "cut off", "train"), BadFile("a", "", "val"), BadFile("b")]
  assert (len(bad), bad.count("train"), bad.count("test")) == (3, 1, 0)


def test_an_empty_collector_is_false():
  """Code that skips bad files asks `is None`; code that writes a list asks whether there is any."""
  assert not BadFiles()


def test_more_than_the_allowed_share_is_refused():
  bad = BadFiles(max_share=0.2, totals={"train": 10, "val": 5}, setting="config.data.bad_share")
  for name in "ab":
    bad.add(name, split="train")
  bad.add("a", split="val")
  bad.check()
  bad.add("b", split="val")
  with pytest.raises(InputError, match=r"config.data.bad_share: found 2 bad files of 5 in val, expected at most 20.00"):
    bad.check()


def test_without_a_limit_any_number_is_allowed():
  bad = BadFiles(totals={"": 1})
  bad.add("a")
  bad.check()


def test_the_list_is_written_to_a_file(tmp_path):
  bad = BadFiles()
  bad.add("a", "cut off", split="train")
  bad.add("b", "no prompt")
  bad.write(tmp_path / "run" / "bad_files.txt")
  assert (tmp_path / "run" / "bad_files.txt").read_text() == "train: a: cut off\nb: no prompt\n"
