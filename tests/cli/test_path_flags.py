"""Flags that hold paths: a file is found with commas and spaces in its name."""

from __future__ import annotations

import pytest

from seggpt_jax.cli import data_flags


@pytest.fixture
def parse(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("site A, tower 2.jpg", "a.jpg", "b.jpg"):
    (tmp_path / name).touch()
  return data_flags._PathListParser().parse


@pytest.mark.parametrize(
  "text, paths",
  [
    ("", []),
    ("a.jpg", ["a.jpg"]),
    ("a.jpg, b.jpg", ["a.jpg", "b.jpg"]),
    ("site A, tower 2.jpg", ["site A, tower 2.jpg"]),
    ("a.jpg,site A, tower 2.jpg,b.jpg", ["a.jpg", "site A, tower 2.jpg", "b.jpg"]),
    ("site A, gone.jpg", ["site A", "gone.jpg"]),
  ],
)
def test_a_comma_separates_paths_unless_it_is_in_the_name_of_a_file(parse, text, paths):
  assert parse(text) == paths


def test_each_path_of_a_list_has_its_home_directory_expanded(parse, tmp_path):
  assert parse("a.jpg,~/b.jpg") == ["a.jpg", f"{tmp_path}/b.jpg"]
  assert parse("~/site A, tower 2.jpg") == [f"{tmp_path}/site A, tower 2.jpg"]
