"""Files in, samples out: what is wrong with a user's files has to be said by name, not trained on."""

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.sources import FolderSource, list_images, read_image, read_labels
from seggpt_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
  """Three images of 6 x 4 pixels with labels 0..2."""
  generator = np.random.default_rng(0)
  for kind in ("images", "labels"):
    (tmp_path / kind).mkdir()
  for name in "abc":
    Image.fromarray(generator.integers(0, 256, (4, 6, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    Image.fromarray(generator.integers(0, 3, (4, 6), np.uint8)).save(tmp_path / "labels" / f"{name}.png")
  return tmp_path


def test_samples_come_by_name_with_image_and_label(folder):
  source = FolderSource(folder, num_classes=3)
  assert len(source) == 3
  sample = source[1]
  assert sample["name"] == "b"
  np.testing.assert_array_equal(sample["image"], np.asarray(Image.open(folder / "images" / "b.png")))
  np.testing.assert_array_equal(sample["label"], np.asarray(Image.open(folder / "labels" / "b.png")))
  assert len(FolderSource(folder, num_classes=3, limit=2)) == 2


def test_image_and_label_may_have_different_endings(folder):
  image = Image.open(folder / "images" / "a.png")
  image.save(folder / "images" / "a.JPG")
  (folder / "images" / "a.png").unlink()
  assert FolderSource(folder, num_classes=3)[0]["image"].shape == (4, 6, 3)


def test_other_files_in_the_folders_are_left_alone(folder):
  (folder / "images" / "notes.txt").write_text("not an image")
  (folder / "images" / ".hidden.png").write_text("not an image")
  assert len(FolderSource(folder, num_classes=3)) == 3


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
  refused("images: folder not found", lambda: FolderSource(tmp_path, 2))


def test_empty_folder(folder):
  for path in (folder / "images").iterdir():
    path.unlink()
  refused("found no images", lambda: FolderSource(folder, 3))


def test_image_without_label(folder):
  (folder / "labels" / "b.png").unlink()
  refused(r"images/b.png: found no label", lambda: FolderSource(folder, 3))


def test_label_without_image(folder):
  (folder / "images" / "b.png").unlink()
  refused(r"labels/b.png: found no image", lambda: FolderSource(folder, 3))


def test_two_files_of_one_name(folder):
  Image.open(folder / "images" / "a.png").save(folder / "images" / "a.bmp")
  refused(r"a.png: found a.bmp beside it", lambda: FolderSource(folder, 3))


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_unreadable_file(folder, kind, damage):
  path = folder / kind / "a.png"
  content = path.read_bytes()
  path.write_bytes({"text": b"hello", "truncated": content[:40], "empty": b""}[damage])
  refused(rf"{kind}/a.png: cannot be read as an image", lambda: FolderSource(folder, 3)[0])


def test_label_value_outside_the_classes(folder):
  refused(r"found label value 2, expected 0..1 \(data.num_classes=2\)", lambda: FolderSource(folder, 2)[0])


def test_label_of_another_size(folder):
  Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / "labels" / "a.png")
  refused(r"labels/a.png: found 6 x 5 pixels, expected 6 x 4", lambda: FolderSource(folder, 3)[0])


def test_label_with_several_channels(folder):
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "labels" / "a.png")
  refused(r"labels/a.png: found mode RGB, expected a single-channel", lambda: FolderSource(folder, 3)[0])


def test_binary_labels_of_a_jpeg_need_the_threshold(tmp_path):
  """JPEG turns 0 and 255 into values near them: above 0 would make foreground of background."""
  mask = np.zeros((32, 32), np.uint8)
  mask[8:21, 5:18] = 255
  path = tmp_path / "mask.jpg"
  Image.fromarray(mask).save(path, quality=60)
  stored = np.asarray(Image.open(path))
  assert len(np.unique(stored)) > 2
  np.testing.assert_array_equal(read_labels(path, "binary", 127), mask > 127)
  np.testing.assert_array_equal(read_labels(path, "binary", 0), stored > 0)


def test_class_indices_cannot_be_jpeg_nor_masks_of_255(tmp_path):
  mask = np.zeros((16, 16), np.uint8)
  mask[4:9] = 255
  Image.fromarray(mask).save(tmp_path / "mask.jpg")
  refused("found JPEG, expected class indices in a format without loss", lambda: read_labels(tmp_path / "mask.jpg"))
  Image.fromarray(mask).save(tmp_path / "mask.png")
  refused("found label value 255, expected class indices 0..254", lambda: read_labels(tmp_path / "mask.png"))


def test_palette_and_one_bit_and_16_bit_labels_are_indices(tmp_path):
  labels = np.random.default_rng(0).integers(0, 2, (5, 7), np.uint8)
  palette_image = Image.fromarray(labels)
  palette_image.putpalette([200, 10, 10, 10, 200, 10])
  palette_image.save(tmp_path / "p.png")
  Image.fromarray(labels.astype(bool)).save(tmp_path / "one.png")
  Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "16.png")
  for name in ("p", "one", "16"):
    np.testing.assert_array_equal(read_labels(tmp_path / f"{name}.png"), labels)


def test_16_bit_label_beyond_255_is_refused(tmp_path):
  Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "l.png")
  refused("found label value 1000", lambda: read_labels(tmp_path / "l.png"))


def test_images_of_any_mode_become_rgb(tmp_path):
  grey = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
  rgb = np.stack([grey] * 3, axis=-1)
  Image.fromarray(grey).save(tmp_path / "L.png")
  Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "I16.png")
  Image.fromarray(np.dstack([rgb, grey])).save(tmp_path / "RGBA.png")
  Image.fromarray(rgb).save(tmp_path / "RGB.tif")
  Image.fromarray(rgb).convert("CMYK").save(tmp_path / "CMYK.tif")
  for path in tmp_path.iterdir():
    np.testing.assert_allclose(read_image(path), rgb, atol=1, err_msg=path.name)


def test_images_are_turned_upright(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: the viewer has to rotate by 270 degrees
  Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
  np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, 3))


def test_list_images_is_sorted_by_name(folder):
  assert list(list_images(folder / "images")) == ["a", "b", "c"]
