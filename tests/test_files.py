"""Paths and atomic writes: `~` works in every path, and a stopped program leaves no half-written file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.class_index import scan_classes
from seggpt_jax.data.datasets import KINDS, Dataset, list_items, open_dataset
from seggpt_jax.data.groups import group_names
from seggpt_jax.data.images import list_images, read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.data.sources import FileSource, Item
from seggpt_jax.errors import InputError
from seggpt_jax.files import decode_text, expand, plain_name, write_whole
from seggpt_jax.prepare.conversion import Settings, prepare


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
  assert source[1]["name"] == "b" and [item.name for item in list_items(dataset, "train")] == ["a", "b"]
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
