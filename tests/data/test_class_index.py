"""The table of classes: negative and balanced pairs depend on it, and nothing else would reveal a wrong one."""

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.groups import has_foreground, scan_classes
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import folder_layout

HELD = [(), (1,), (2, 3), (), (1, 3)]


@pytest.fixture
def folder(tmp_path):
  for kind in ("images", "labels"):
    (tmp_path / kind).mkdir()
  for index, classes in enumerate(HELD):
    label = np.zeros((6, 6), np.uint8)
    label[0] = IGNORE
    for place, class_index in enumerate(classes):
      label[2 + place] = class_index
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "images" / f"{index}.png")
    Image.fromarray(label).save(tmp_path / "labels" / f"{index}.png")
  return tmp_path


def opened(folder, reads=None):
  class Counted(FileSource):
    def label(self, index):
      if reads is not None:
        reads.append(index)
      return super().label(index)

  return Counted(folder_layout(folder), 4, LabelFormat(ignore=(IGNORE,)))


EXPECTED = np.array([[c in held for c in range(4)] for held in HELD])


def test_classes_are_read_once_and_kept_in_a_file(folder, tmp_path):
  reads = []
  np.testing.assert_array_equal(scan_classes(opened(folder, reads), tmp_path / "classes.npz"), EXPECTED)
  assert sorted(reads) == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(scan_classes(opened(folder, reads), tmp_path / "classes.npz"), EXPECTED)
  assert len(reads) == 5
  # After labels were changed, all labels are read again.
  changed = np.full((6, 6), 3, np.uint8)
  kept = (folder / "labels/0.png").read_bytes()
  Image.fromarray(changed).save(folder / "labels/0.png")
  assert scan_classes(opened(folder, reads), tmp_path / "classes.npz")[0].tolist() == [False, False, False, True]
  (folder / "labels/0.png").write_bytes(kept)
  np.testing.assert_array_equal(scan_classes(opened(folder), tmp_path / "classes.npz"), EXPECTED)
  reads.clear()
  # After renaming a sample, all labels are read again.
  for kind in ("images", "labels"):
    (folder / kind / "0.png").rename(folder / kind / "9.png")
  np.testing.assert_array_equal(
    scan_classes(opened(folder, reads), tmp_path / "classes.npz"), np.roll(EXPECTED, -1, axis=0)
  )
  assert len(reads) == 5


def test_no_label_is_read_if_the_source_knows_its_classes(folder):
  class Knowing(FileSource):
    def classes(self, index):
      return HELD[index]

    def label(self, index):
      raise AssertionError("read")

  source = Knowing(folder_layout(folder), 4, LabelFormat())
  np.testing.assert_array_equal(scan_classes(source), EXPECTED)
  assert has_foreground(source)


def test_a_label_that_cannot_be_read_is_named_or_skipped(folder):
  (folder / "labels" / "2.png").write_bytes(b"")
  with pytest.raises(InputError, match=r"labels/2.png: cannot be read"):
    scan_classes(opened(folder))
  skipped = []
  expected = EXPECTED.copy()
  expected[2] = False
  np.testing.assert_array_equal(scan_classes(opened(folder), skip=skipped.append), expected)
  assert [str(error).split(":")[0][-5:] for error in skipped] == ["2.png"]


def test_foreground_is_looked_for_until_it_is_found(folder):
  reads = []
  assert has_foreground(opened(folder, reads)) and len(reads) <= 3
  for index in (1, 2, 4):
    Image.fromarray(np.full((6, 6), IGNORE, np.uint8)).save(folder / "labels" / f"{index}.png")
  reads.clear()
  assert not has_foreground(opened(folder, reads))
  assert sorted(reads) == [0, 1, 2, 3, 4]
