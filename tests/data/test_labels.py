"""Label files: a value that is misread is trained on, so each has one meaning, or is refused by name."""

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.labels import IGNORE, LabelFormat, check_classes, parse_values, read_labels
from seggpt_jax.errors import InputError

INDEX = LabelFormat()
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 3, (5, 7), np.uint8)
COLORS = ((0, 0, 0), (255, 0, 0), (0, 128, 64))


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


@pytest.fixture
def save(tmp_path):
  def save(values, name="label.png", **options):
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(tmp_path / name, **options)
    return tmp_path / name

  return save


def test_binary_labels_of_a_jpeg_need_the_threshold(save):
  """JPEG turns 0 and 255 into values near them: above 0 would make foreground of background."""
  mask = np.zeros((32, 32), np.uint8)
  mask[8:21, 5:18] = 255
  path = save(mask, "mask.jpg", quality=60)
  stored = np.asarray(Image.open(path))
  assert len(np.unique(stored)) > 2
  np.testing.assert_array_equal(read_labels(path, LabelFormat("binary", 127)), mask > 127)
  np.testing.assert_array_equal(read_labels(path, LabelFormat("binary", 0)), stored > 0)


def test_class_indices_cannot_be_jpeg_nor_masks_of_255(save):
  mask = np.zeros((16, 16), np.uint8)
  mask[4:9] = 255
  jpeg, png = save(mask, "mask.jpg"), save(mask, "mask.png")
  refused("mask.jpg: found JPEG, expected class values in a format without loss", lambda: read_labels(jpeg, INDEX))
  refused("found JPEG", lambda: read_labels(jpeg, LabelFormat("table", table=(0, 255))))
  refused("mask.png: found label value 255, expected class indices 0..254", lambda: read_labels(png, INDEX))


def test_palette_and_one_bit_and_16_bit_labels_are_indices(save):
  palette_image = Image.fromarray(LABELS)
  palette_image.putpalette([200, 10, 10, 10, 200, 10, 5, 5, 5])
  np.testing.assert_array_equal(read_labels(save(palette_image), INDEX), LABELS)
  np.testing.assert_array_equal(read_labels(save(LABELS.astype(np.uint16)), INDEX), LABELS)
  np.testing.assert_array_equal(read_labels(save(LABELS > 0), INDEX), LABELS > 0)
  np.testing.assert_array_equal(read_labels(save(LABELS, "label.tif"), INDEX), LABELS)


def test_16_bit_label_beyond_255_is_refused(save):
  refused("found label value 1000", lambda: read_labels(save(np.full((4, 4), 1000, np.uint16)), INDEX))
  refused("found label value -1", lambda: read_labels(save(np.full((4, 4), -1, np.int32), "label.tif"), INDEX))


def test_channels_that_are_all_the_same_are_one(save):
  """Drawing programs save gray masks as colors."""
  for channels in (3, 4):
    repeated = np.repeat(LABELS[..., None], channels, axis=-1)
    np.testing.assert_array_equal(read_labels(save(repeated), INDEX), LABELS)
    np.testing.assert_array_equal(read_labels(save(repeated * 100), LabelFormat("binary", 127)), LABELS == 2)
  refused(
    "found colors, expected a single-channel",
    lambda: read_labels(save(np.array(COLORS)[LABELS].astype(np.uint8)), INDEX),
  )
  refused("found mode CMYK", lambda: read_labels(save(Image.fromarray(LABELS).convert("CMYK"), "l.tif"), INDEX))


def test_a_table_of_colors(save):
  path = save(np.array(COLORS, np.uint8)[LABELS])
  np.testing.assert_array_equal(read_labels(path, LabelFormat("table", table=COLORS)), LABELS)
  # Any order, and colors that do not count.
  swapped = LabelFormat("table", table=(COLORS[2], COLORS[0]), ignore=(COLORS[1],))
  np.testing.assert_array_equal(read_labels(path, swapped), np.array([1, IGNORE, 0])[LABELS])
  unknown = LabelFormat("table", table=COLORS[:2])
  share = f"{(LABELS == 2).mean():.2%}"
  refused(
    rf"found color \(0, 128, 64\) in {share} of the pixels, expected one of the 2", lambda: read_labels(path, unknown)
  )


def test_palette_files_in_a_table_of_colors_are_their_colors(save):
  image = Image.fromarray(LABELS)
  image.putpalette(np.array(COLORS[::-1], np.uint8).tobytes())
  np.testing.assert_array_equal(read_labels(save(image), LabelFormat("table", table=COLORS)), 2 - LABELS)


def test_a_table_of_values(save):
  """As datasets have them whose classes do not begin at 0: 1 is the animal, 2 the background, 3 its border."""
  path = save(LABELS + np.uint8(1))
  found = read_labels(path, LabelFormat("table", table=(2, 1), ignore=(3,)))
  np.testing.assert_array_equal(found, np.array([1, 0, IGNORE])[LABELS])
  refused(r"found value 3 in .* of the pixels", lambda: read_labels(path, LabelFormat("table", table=(2, 1))))


def test_ignored_values_in_index_and_binary_labels(save):
  path = save(np.array([0, 1, 255], np.uint8)[LABELS])
  np.testing.assert_array_equal(read_labels(path, LabelFormat(ignore=(255,))), np.array([0, 1, IGNORE])[LABELS])
  path = save(np.array([0, 128, 255], np.uint8)[LABELS])
  found = read_labels(path, LabelFormat("binary", 200, ignore=(128,)))
  np.testing.assert_array_equal(found, np.array([0, IGNORE, 1])[LABELS])


@pytest.mark.parametrize(
  ("match", "values"),
  [
    ("table: found 0 entries with labels=table", {"mode": "table"}),
    ("table: found 1 entries with labels=index", {"table": (1,)}),
    (r"table: found \(1, 2\), expected three numbers", {"mode": "table", "table": ((0, 0, 0), (1, 2))}),
    (r"table: found \(1, 2, 3\), expected a whole number", {"mode": "table", "table": (0, (1, 2, 3))}),
    (r"ignore: found \(1, 2, 3\), expected a whole number", {"ignore": ((1, 2, 3),)}),
    ("ignore: found 7, expected three numbers", {"mode": "table", "table": ((0, 0, 0),), "ignore": (7,)}),
    ("table: found 5 twice", {"mode": "table", "table": (0, 5, 5)}),
    ("table: found 5 twice, or among the ignored", {"mode": "table", "table": (0, 5), "ignore": (5,)}),
    ("found 256 entries, expected at most 255", {"mode": "table", "table": tuple(range(256))}),
  ],
)
def test_a_format_that_cannot_be_meant_is_refused(match, values):
  refused(match, lambda: LabelFormat(**values))


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("", ()),
    ("7", (7,)),
    ("0,128,255", (0, 128, 255)),
    ("(0,128,255,3)", (0, 128, 255, 3)),
    ("(1,2,3)", ((1, 2, 3),)),
    ("(0,0,0),(255,0,0)", ((0, 0, 0), (255, 0, 0))),
    ("((0,0,0), (255,0,0))", ((0, 0, 0), (255, 0, 0))),
  ],
)
def test_values_on_a_command_line(text, values):
  assert parse_values(text, "--table") == values


@pytest.mark.parametrize("text", ["red", "(1,2", "1;2", "__import__('os')"])
def test_what_is_no_list_of_values_is_refused(text):
  refused("--table: found", lambda: parse_values(text, "--table"))


def test_classes_beyond_their_number_are_refused_but_not_what_is_ignored():
  check_classes(np.array([[0, 2, IGNORE]], np.uint8), 3, "a.png")
  refused(
    r"a.png: found label value 2, expected 0..1", lambda: check_classes(np.array([[0, 2, 255]], np.uint8), 2, "a.png")
  )
