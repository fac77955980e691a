"""The collector of bad files: users see each bad file once."""

from seggpt_jax.data.bad_files import BadFile, BadFiles


def test_each_file_is_kept_once_with_its_first_reason():
  bad = BadFiles()
  bad.add("a", "cut off", split="train")
  bad.add("a", "another", split="train")
  bad.add("a", split="val")
  bad.add("b")
  assert list(bad) == [BadFile("a", "cut off", "train"), BadFile("a", "", "val"), BadFile("b")]
  assert len(bad) == 3


def test_an_empty_collector_is_false():
  """Code that skips bad files asks `is None`; code that writes a list asks whether there is any."""
  assert not BadFiles()


def test_the_list_is_written_to_a_file(tmp_path):
  bad = BadFiles()
  bad.add("a", "cut off", split="train")
  bad.add("b", "no prompt")
  bad.write(tmp_path / "run" / "bad_files.txt")
  assert (tmp_path / "run" / "bad_files.txt").read_text() == "train: a: cut off\nb: no prompt\n"
