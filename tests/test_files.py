"""Paths and atomic writes: `~` works in every path, and a stopped program leaves no half-written file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.groups import group_names, scan_classes
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.files import (
  HOUR,
  MOMENT,
  cache_folder,
  decode_text,
  exclusive,
  expand,
  plain_name,
  remove_leftovers,
  write_whole,
  written_whole,
)
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.formats.layouts import Item, list_items
from seggpt_jax.formats.recognize import KINDS
from seggpt_jax.prepare.conversion import Settings, prepare
from seggpt_jax.written import RECORD


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home directory with a dataset in it; the program runs elsewhere."""
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  for kind, shape in (("images", (4, 6, 3)), ("labels", (4, 6))):
    folder = tmp_path / "home" / "data" / "train" / kind
    folder.mkdir(parents=True)
    for name in "ab":
      Image.fromarray(np.ones(shape, np.uint8)).save(folder / f"{name}.png")
  return tmp_path / "home"


@pytest.mark.parametrize(
  ("name", "match"),
  [
    ("a\0b", "found a NUL character"),
    ("x" * 256, "found a name of 256 bytes, expected at most 255"),
    ("é" * 200 + "/a", "found a name of 400 bytes"),
    ("/".join(["x" * 200] * 30), "found a path of 6029 bytes, expected at most 4095"),
    ("\ud800", "cannot be a file"),
    ("~nobody_at_all/x", "found no home directory for ~nobody_at_all"),
  ],
)
def test_a_name_that_no_file_can_have_is_refused(name, match):
  with pytest.raises(InputError, match=match) as caught:
    expand(name)
  assert len(str(caught.value)) < 250


def test_long_names_that_files_can_have_are_fine():
  for name in ("x" * 255, "a\nb", "s3://bucket/" + "x" * 800, "é" * 127, ""):
    assert expand(name) == name


def test_without_a_home_directory_a_tilde_is_refused(monkeypatch, tmp_path):
  """A folder with the name `~` would surprise whoever runs this in a container of an unknown user."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("os.path.expanduser", lambda path: path)
  for path in ("~", "~/data"):
    with pytest.raises(InputError, match="found no home directory for ~, expected HOME set, or a full path"):
      expand(path)
  with pytest.raises(InputError, match="found no home directory"):
    cache_folder("~/.cache")
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="file/cache: cannot be written"):
    cache_folder(tmp_path / "file" / "cache")


def test_messages_are_one_line_for_names_with_line_breaks():
  assert str(InputError("a\nb: found  two spaces\n")) == "a b: found two spaces"
  assert str(InputError("a  b.png: missing")) == "a  b.png: missing"


def test_a_tilde_becomes_the_home_directory(home):
  assert expand("~/data") == expand(Path("~/data")) == str(home / "data")
  assert expand("data/~") == "data/~"
  for address in ("gs://bucket/data", "s3://bucket/~/data"):
    assert expand(address) == address


def test_every_reader_expands_a_tilde(home):
  assert list(list_images("~/data/train/images")) == ["a", "b"]
  assert read_image("~/data/train/images/a.png").shape == (4, 6, 3)
  assert read_labels("~/data/train/labels/a.png", LabelFormat()).max() == 1
  dataset = Dataset("folder", "~/data", 2)
  source = open_dataset(dataset, "train")
  assert source[1]["name"] == "b"
  assert [item.name for item in list_items(dataset.kind, dataset.path, "train")] == ["a", "b"]
  assert scan_classes(source, "~/classes.npz")[:, 1].all() and (home / "classes.npz").exists()
  (home / "groups.csv").write_text("name,group\na,x\nb,y\n")
  assert group_names(source, "csv:~/groups.csv") == ["x", "y"]
  for kind in KINDS:
    with pytest.raises(InputError, match="'~/nowhere': folder not found"):
      open_dataset(Dataset(kind, "~/nowhere", 2), "train")


@pytest.mark.parametrize("output", ["folder", "records"])
def test_conversion_expands_a_tilde(home, output):
  prepare(Settings(Dataset("folder", "~/data", 2), ("train",), output), "~/out")
  assert (home / "out" / ("train" if output == "folder" else "mine")).is_dir()
  written = Dataset("folder" if output == "folder" else "tfds", "~/out", 2, LabelFormat(ignore=(255,)))
  assert len(open_dataset(written, "train")) == 2


def test_names_from_any_system_are_the_same_name():
  assert plain_name("cam1\\cafe\u0301.png") == plain_name("cam1/caf\u00e9.png") == "cam1/caf\u00e9.png"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_any_editor_is_read(encoding):
  """Notepad and PowerShell put a byte order mark in front."""
  assert decode_text("na\u00efve,1\n".encode(encoding)) == "na\u00efve,1\n"


def test_a_table_of_groups_may_have_another_form_of_the_names(tmp_path):
  source = FileSource([Item("caf\u00e9", "", "")], 2, LabelFormat())
  (tmp_path / "groups.csv").write_bytes("name,group\ncafe\u0301,x\n".encode("utf-16"))
  assert group_names(source, f"csv:{tmp_path / 'groups.csv'}") == ["x"]


def test_a_file_is_complete_or_not_there(tmp_path):
  path = tmp_path / "new" / "a.txt"

  def fail(file):
    file.write(b"half")
    raise RuntimeError

  with pytest.raises(RuntimeError):
    write_whole(path, fail)
  assert list(path.parent.iterdir()) == []
  write_whole(path, lambda file: file.write(b"whole"))
  assert path.read_bytes() == b"whole"
  (tmp_path / "file").write_bytes(b"")
  with pytest.raises(InputError, match="cannot be written"):
    write_whole(tmp_path / "file" / "a.txt", lambda file: None)


# ---------------------------------------------------------------------------------------------------- locks, leftovers

ROOT = Path(__file__).parents[1]


def test_a_second_process_cannot_lock_the_folder(tmp_path):
  code = "import sys, pathlib; from seggpt_jax.files import exclusive\n"
  code += "with exclusive(pathlib.Path(sys.argv[1])): print('locked')"

  def other():
    command = [sys.executable, "-c", code, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

  with exclusive(tmp_path):
    assert "in use by another run" in other().stderr
  assert other().stdout == "locked\n"


def left_behind(path, seconds=60.0):
  """Makes an unfinished file as a process that was killed some time ago leaves it behind."""
  left = path.with_name(f".{path.name}.seggpt-{'0123456789abcdef' * 2}")
  left.parent.mkdir(parents=True, exist_ok=True)
  left.write_text("half")
  os.utime(left, (left.stat().st_atime, left.stat().st_mtime - seconds))
  return left


def test_leftovers_are_removed_where_the_command_writes_and_nowhere_else(tmp_path):
  gone = [left_behind(tmp_path / name) for name in ("a.json", "label/a.png", "label/b/c.png")]
  kept = [left_behind(tmp_path / name) for name in ("photos/a.png", "other/label/a.png")]
  others = (".hidden", ".a.json.backup", f"a.seggpt-{32 * '0'}", f".seggpt-{32 * '0'}", f".a.seggpt-{32 * 'G'}")
  for name in (*others, f".a.{32 * '0'}", ".journal-train"):  # other programs add 32 digits too
    kept.append(tmp_path / name)
    kept[-1].write_text("of the user")
    os.utime(kept[-1], (0, 0))
  remove_leftovers(tmp_path, "label", "missing")
  assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)


def test_what_somebody_writes_at_the_moment_is_no_leftover(tmp_path):
  """The other process is another open file: locks of one process exclude each other in the same way."""

  def write(file):
    file.write(b"whole")
    (unfinished,) = tmp_path.glob(".a.txt.*")
    os.utime(unfinished, (0, 0))
    remove_leftovers(tmp_path)
    assert unfinished.exists()

  write_whole(tmp_path / "a.txt", write)
  assert sorted(os.listdir(tmp_path)) == [RECORD, "a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


def test_where_other_hosts_may_write_only_old_files_are_leftovers(tmp_path, monkeypatch):
  young, old = left_behind(tmp_path / "young"), left_behind(tmp_path / "old", HOUR + 60)
  new = left_behind(tmp_path / "new", 0)
  remove_leftovers(tmp_path, least_age=HOUR)
  assert young.exists() and not old.exists()
  monkeypatch.setattr("seggpt_jax.files.fcntl", None)  # no locks: nobody knows whether a writer lives
  old = left_behind(tmp_path / "old", HOUR + 60)
  remove_leftovers(tmp_path)
  assert young.exists() and not old.exists()
  monkeypatch.undo()
  remove_leftovers(tmp_path, least_age=MOMENT)  # the writer may not have locked it yet
  assert new.exists() and not young.exists()
  remove_leftovers(tmp_path)  # for a process that is alone in the folder
  assert not new.exists()


def test_a_new_folder_appears_whole_and_leftovers_of_the_same_name_go(tmp_path):
  target = tmp_path / "above/[new]"
  left, foreign = (target.with_name(f".{name}.seggpt-{32 * 'a'}") for name in ("[new]", "other"))
  for folder in (left, foreign):
    (folder / "part").mkdir(parents=True)
    os.utime(folder, (0, 0))
  with written_whole(target) as unfinished:
    unfinished.mkdir()
    (unfinished / "a.txt").write_text("whole")
    os.utime(unfinished.parent, (0, 0))
    with pytest.raises(KeyError), written_whole(target):
      raise KeyError("of another writer, which left this one alone")
    assert unfinished.exists() and not target.exists()
  assert (target / "a.txt").read_text() == "whole"
  assert sorted(target.parent.iterdir()) == sorted((target, foreign))
