"""Folder layouts and file sources: an error names the file that is wrong, so that no wrong label is trained on."""

import pickle

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data import sources
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.sources import FileSource, Source, shared_images
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import Item, folder_layout, list_items
from seggpt_jax.formats.recognize import KINDS

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (4, 6, 3), np.uint8)


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)
  return pixels


def mask(*columns, value=255):
  """Returns a mask of 4 x 6 pixels with foreground in the given columns."""
  values = np.zeros((4, 6), np.uint8)
  values[:, list(columns)] = value
  return values


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.fixture
def folder(tmp_path):
  """A folder of three images of 6 x 4 pixels with labels 0..2."""
  for name in "abc":
    write(tmp_path / "images" / f"{name}.png", GENERATOR.integers(0, 256, (4, 6, 3), np.uint8))
    write(tmp_path / "labels" / f"{name}.png", GENERATOR.integers(0, 3, (4, 6), np.uint8))
  return tmp_path


def opened(folder, num_classes=3, **label_format):
  return FileSource(folder_layout(folder), num_classes, LabelFormat(**label_format))


def test_samples_come_by_name_with_image_and_label(folder):
  source = opened(folder)
  assert isinstance(source, Source) and len(source) == 3
  sample = source[1]
  assert sample["name"] == source.name(1) == "b"
  np.testing.assert_array_equal(sample["image"], np.asarray(Image.open(folder / "images" / "b.png")))
  np.testing.assert_array_equal(sample["label"], np.asarray(Image.open(folder / "labels" / "b.png")))
  np.testing.assert_array_equal(source.label(1), sample["label"])
  assert source.classes(1) is None
  refused("field 'patient': found files, which have no fields", lambda: source.field(1, "patient"))
  assert pickle.loads(pickle.dumps(source))[2]["name"] == "c"


def test_image_and_label_may_have_different_endings(folder):
  Image.open(folder / "images" / "a.png").save(folder / "images" / "a.JPG")
  (folder / "images" / "a.png").unlink()
  assert opened(folder)[0]["image"].shape == (4, 6, 3)


def test_subfolders_become_part_of_the_name(folder):
  write(folder / "images" / "street" / "a.png", IMAGE)
  write(folder / "labels" / "street" / "a.png", mask(1, value=2))
  source = opened(folder)
  assert [source.name(i) for i in range(4)] == ["a", "b", "c", "street/a"]
  np.testing.assert_array_equal(source[3]["image"], IMAGE)


def test_missing_partners_are_named(folder):
  (folder / "labels" / "b.png").unlink()
  refused(r"images/b.png: found no label for it, expected .*labels/b\.\*", lambda: folder_layout(folder))
  (folder / "images" / "b.png").unlink()
  (folder / "images" / "c.png").unlink()
  refused(r"labels/c.png: found no image", lambda: folder_layout(folder))
  refused("images: folder not found", lambda: folder_layout(folder / "images"))


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_unreadable_file(folder, kind, damage):
  path = folder / kind / "a.png"
  content = path.read_bytes()
  path.write_bytes({"text": b"hello", "truncated": content[:40], "empty": b""}[damage])
  refused(rf"{kind}/a.png: cannot be read as an image", lambda: opened(folder)[0])


def test_label_value_outside_the_classes(folder):
  refused(r"found label value 2, expected 0..1 \(data.num_classes=2\)", lambda: opened(folder, 2)[0])


def test_label_of_another_size(folder):
  write(folder / "labels" / "a.png", np.zeros((5, 6), np.uint8))
  refused(r"labels/a.png: found 6 x 5 pixels, expected 6 x 4 as its image has$", lambda: opened(folder)[0])


def test_a_label_not_rotated_with_its_image_gets_a_hint(folder):
  """Cameras store the orientation in a tag, and drawing programs often rotate the pixels and drop the tag."""
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(IMAGE).save(folder / "images" / "a.png", exif=exif)
  refused("found 6 x 4 pixels, expected 4 x 6 .*EXIF", lambda: opened(folder)[0])


# ------------------------------------------------------------------------------------------------------ class folders


def test_class_folders_of_the_original_tool(tmp_path):
  for product, defect, names in (("board", "open", "ab"), ("board", "short", "a"), ("cable", "cut", "ac")):
    for name in names:
      write(tmp_path / product / defect / "image" / f"{name}.png", IMAGE)
      write(tmp_path / product / defect / "label" / f"{name}.png", mask(2))
  source = FileSource(list_items("class_folders", tmp_path), 2, LabelFormat("binary"))
  names = [source.name(i) for i in range(len(source))]
  assert names == ["board/open/a", "board/open/b", "board/short/a", "cable/cut/a", "cable/cut/c"]
  np.testing.assert_array_equal(source[4]["label"], mask(2, value=1))
  (tmp_path / "cable" / "cut" / "label" / "c.png").unlink()
  refused("cable/cut/image/c.png: found no label", lambda: list_items("class_folders", tmp_path))
  (tmp_path / "empty").mkdir()
  refused("empty: found no folder `image` at any depth", lambda: list_items("class_folders", tmp_path / "empty"))


# -------------------------------------------------------------------------------------------------------------- masks


def masks_of(directory, num_classes=3, class_names=()):
  source = FileSource(list_items("masks", directory, ".", class_names), num_classes, LabelFormat("binary", 127))
  return {source.name(i): source[i]["label"] for i in range(len(source))}


def test_a_folder_of_masks_for_each_image(tmp_path):
  for name in "ab":
    write(tmp_path / "images" / f"{name}.png", IMAGE)
  (tmp_path / "labels" / "b").mkdir(parents=True)
  write(tmp_path / "labels" / "a" / "crack_2.png", mask(0, 1))
  write(tmp_path / "labels" / "a" / "crack_1.png", mask(1, 2))
  write(tmp_path / "labels" / "a" / "hole.png", mask(2, 3))
  one = masks_of(tmp_path)
  np.testing.assert_array_equal(one["a"], mask(0, 1, 2, 3, value=1))
  np.testing.assert_array_equal(one["b"], np.zeros((4, 6)))
  named = masks_of(tmp_path, class_names=("hole", "crack"))
  np.testing.assert_array_equal(named["a"][0], [2, 2, 2, 1, 0, 0])
  refused(
    "hole.png: found no class for it, expected a name that begins with crack", lambda: masks_of(tmp_path, 3, ("crack",))
  )
  refused("found class 2, expected 0..1", lambda: masks_of(tmp_path, 2, ("hole", "crack")))
  (tmp_path / "labels" / "b").rmdir()
  refused(r"images/b.png: found no masks for it, expected a folder", lambda: masks_of(tmp_path))


def test_the_longest_matching_class_name_wins(tmp_path):
  write(tmp_path / "images" / "a.png", IMAGE)
  write(tmp_path / "labels" / "a" / "crack_wide_1.png", mask(0))
  write(tmp_path / "labels" / "a" / "crack_1.png", mask(1))
  np.testing.assert_array_equal(masks_of(tmp_path, 3, ("crack", "crack_wide"))["a"][0], [2, 1, 0, 0, 0, 0])
  write(tmp_path / "labels" / "a" / "cracked.png", mask(1))
  refused("cracked.png: found no class", lambda: masks_of(tmp_path, 3, ("crack", "crack_wide")))


def test_a_folder_for_each_image(tmp_path):
  for name in ("cell7", "cell9"):
    write(tmp_path / name / "images" / f"{name}.png", IMAGE)
    write(tmp_path / name / "masks" / "0001.png", mask(0))
    write(tmp_path / name / "masks" / "0002.png", mask(3))
  found = masks_of(tmp_path)
  assert list(found) == ["cell7", "cell9"]
  np.testing.assert_array_equal(found["cell9"], mask(0, 3, value=1))


def test_a_folder_for_each_class(tmp_path):
  for name in "abc":
    write(tmp_path / "images" / f"{name}.png", IMAGE)
  write(tmp_path / "labels" / "crack" / "a.png", mask(0, 1))
  write(tmp_path / "labels" / "hole" / "a.png", mask(1))
  write(tmp_path / "labels" / "hole" / "c.png", mask(5))
  found = masks_of(tmp_path)
  assert [found[name][0].tolist() for name in "abc"] == [[1, 2, 0, 0, 0, 0], [0] * 6, [0, 0, 0, 0, 0, 2]]
  np.testing.assert_array_equal(masks_of(tmp_path, 3, ("hole", "crack"))["a"][0], [2, 2, 0, 0, 0, 0])
  refused("labels/hole: found neither an image nor a class of that name", lambda: masks_of(tmp_path, 3, ("crack",)))
  write(tmp_path / "labels" / "hole" / "d.png", mask(5))
  refused("labels/hole/d.png: found no image", lambda: masks_of(tmp_path))


def test_masks_are_read_as_binary_only(tmp_path):
  write(tmp_path / "images" / "a.png", IMAGE)
  write(tmp_path / "labels" / "a" / "1.png", mask(0))
  refused(
    "found masks with labels=index, expected labels=binary",
    lambda: FileSource(list_items("masks", tmp_path), 2, LabelFormat()),
  )


def test_classes_cover_ignored_pixels_of_other_masks(tmp_path):
  write(tmp_path / "images" / "a.png", IMAGE)
  first = mask(0)
  first[:, 1:3] = 128
  write(tmp_path / "labels" / "a" / "1.png", first)
  write(tmp_path / "labels" / "a" / "2.png", mask(2))
  source = FileSource(list_items("masks", tmp_path), 2, LabelFormat("binary", 200, ignore=(128,)))
  assert source.label(0)[0].tolist() == [1, IGNORE, 1, 0, 0, 0]


# ------------------------------------------------------------------------------------------------------------ opening


def test_datasets_are_opened_by_kind(folder):
  dataset = Dataset("folder", str(folder.parent), 3)
  assert len(open_dataset(dataset, folder.name)) == 3
  first = open_dataset(dataset, folder.name, limit=2)
  assert isinstance(first, sources.View) and [first.name(i) for i in range(len(first))] == ["a", "b"]
  np.testing.assert_array_equal(first[1]["label"], first.label(1))
  refused("found kind 'zip', expected one of folder", lambda: open_dataset(Dataset("zip", str(folder), 3), "train"))
  for kind in KINDS:
    refused("'/nowhere': folder not found", lambda: open_dataset(Dataset(kind, "/nowhere", 3), "train"))  # noqa: B023


# ----------------------------------------------------------------------------------------------------------- problems


def test_layouts_list_all_problems(folder):
  """Otherwise `seggpt inspect` could report only one wrong file at a time."""
  (folder / "labels" / "a.png").unlink()
  (folder / "images" / "b.png").unlink()
  write(folder / "images" / "c.bmp", IMAGE)
  problems = []
  assert [item.name for item in folder_layout(folder, problems=problems)] == ["c"]
  assert len(problems) == 3 and all("\n" not in problem for problem in problems)
  refused("c.png: found c.bmp next to it", lambda: folder_layout(folder))


def test_mask_layouts_list_all_problems(tmp_path):
  for name in "ab":
    write(tmp_path / name / "images" / "x.png", IMAGE)
  write(tmp_path / "a" / "masks" / "dent_1.png", mask(1))
  write(tmp_path / "a" / "masks" / "crack_1.png", mask(2))
  problems = []
  items = list_items("masks", tmp_path, ".", ("crack",), problems)
  assert [(item.name, len(item.label)) for item in items] == [("a", 1)]
  assert "dent_1.png" in problems[0] and "b/masks" in problems[1]


def test_images_of_two_splits_are_compared_by_content(tmp_path):
  """A validation that shows training images is too good."""
  for split, seeds in (("train", (0, 1, 2)), ("val", (2, 3))):
    for seed in seeds:
      path = tmp_path / split / "images" / f"{split}_{seed}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)

  def source(split):
    paths = sorted((tmp_path / split / "images").iterdir())
    return FileSource([Item(path.stem, str(path), str(path)) for path in paths], 2, LabelFormat())

  train, val = source("train"), source("val")
  assert shared_images(val, train) == ["val_2"] and shared_images(train, val) == ["train_2"]
