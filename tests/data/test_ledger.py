"""The ledger of finished work: a stopped run resumes, torn lines do no harm, and runs do not mix."""

from __future__ import annotations

import pytest

from seggpt_jax.data import ledger
from seggpt_jax.data.ledger import Ledger
from seggpt_jax.errors import InputError


def test_finished_items_are_read_back_by_every_process(tmp_path):
  with Ledger(tmp_path / "one.jsonl", "*.jsonl") as first, Ledger(tmp_path / "two.jsonl", "*.jsonl") as second:
    first.add("a", pixels=3)
    second.add("b", bad="broken")
    assert first.finished == {"a": {"name": "a", "pixels": 3}}
    assert first.read_all() == second.read_all() == {**first.finished, "b": {"name": "b", "bad": "broken"}}
  with Ledger(tmp_path / "one.jsonl", "*.jsonl") as again:
    again.add("b", pixels=4)
  assert ledger.read_entries(tmp_path)["a"]["pixels"] == 3


@pytest.mark.parametrize("torn", [b'{"name": "b", "pix', b'{"name": "b', b"{", b"\xff\xfe"])
def test_a_line_that_a_kill_has_cut_off_does_not_spoil_the_next(tmp_path, torn):
  with Ledger(tmp_path / "one.jsonl", "*.jsonl") as first:
    first.add("a")
  with open(tmp_path / "one.jsonl", "ab") as file:
    file.write(torn)
  with Ledger(tmp_path / "one.jsonl", "*.jsonl") as second:
    assert second.finished.keys() == {"a"}
    second.add("c")
  assert ledger.read_entries(tmp_path).keys() == {"a", "c"}


def test_a_whole_line_of_another_program_is_named(tmp_path):
  (tmp_path / "one.jsonl").write_text('{"name": "a"}\n[1, 2]\n')
  with pytest.raises(InputError, match=r"one\.jsonl line 2: found no object with a name"):
    Ledger(tmp_path / "one.jsonl", "*.jsonl")


def test_a_note_is_read_back_and_other_files_are_named(tmp_path):
  path = tmp_path / "new" / "note.json"
  assert ledger.read_note(path) is None
  ledger.write_note(path, {"seed": 1})
  assert ledger.read_note(path) == {"seed": 1}
  assert [file.name for file in path.parent.glob("[!.]*")] == ["note.json"]
  for text in ("{", "[1]", ""):
    path.write_text(text)
    with pytest.raises(InputError, match=r"note\.json: cannot be read .*, expected what an earlier run wrote"):
      ledger.read_note(path)


def test_the_first_setting_that_differs_is_named(tmp_path):
  path = tmp_path / "note.json"
  ledger.check_settings(path, {"seed": 1, "split": [1]}, {"split": [1], "seed": 1}, "start over")
  for current in ({"seed": 2}, {}, {"seed": 1, "split": 3}):
    with pytest.raises(InputError, match=r"note\.json: found --(seed=1|split=None) of an earlier run, .*; start over"):
      ledger.check_settings(path, {"seed": 1}, current, "start over", prefix="--")


def test_a_ledger_that_is_deleted_while_it_is_written_is_named(tmp_path):
  """Otherwise a run would continue for hours and note its work in a file that is gone."""
  with Ledger(tmp_path / "one.jsonl") as entries:
    entries.add("a")
    (tmp_path / "one.jsonl").unlink()
    with pytest.raises(InputError, match=r"one\.jsonl: not found, deleted during the run; rerun"):
      entries.add("b")
    with pytest.raises(InputError, match="deleted during the run"):
      entries.read_all()
