"""Label files: a misread value would be trained on, so every value has one meaning or an error that names the file."""

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE, LabelFormat, check_classes, parse_values, read_labels

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
  """JPEG changes 0 and 255 to values near them, so a threshold of 0 would turn background into foreground."""
  mask = np.zeros((32, 32), np.uint8)
  mask[8:21, 5:18] = 255
  path = save(mask, "mask.jpg", quality=60)
  stored = np.asarray(Image.open(path))
  assert len(np.unique(stored)) > 2
  np.testing.assert_array_equal(read_labels(path, LabelFormat("binary", 127)), mask > 127)
  np.testing.assert_array_equal(read_labels(path, LabelFormat("binary", 0)), stored > 0)


def test_class_indices_are_refused_in_jpeg_and_above_254(save):
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


def test_equal_channels_are_read_as_one(save):
  """Drawing programs save gray masks as color images."""
  for channels in (3, 4):
    repeated = np.repeat(LABELS[..., None], channels, axis=-1)
    np.testing.assert_array_equal(read_labels(save(repeated), INDEX), LABELS)
    np.testing.assert_array_equal(read_labels(save(repeated * 100), LabelFormat("binary", 127)), LABELS == 2)
  refused(
    "found colors, expected a single-channel",
    lambda: read_labels(save(np.array(COLORS)[LABELS].astype(np.uint8)), INDEX),
  )
  refused("found colors", lambda: read_labels(save(Image.fromarray(LABELS).convert("CMYK"), "l.tif"), INDEX))


def test_a_table_of_colors(save):
  path = save(np.array(COLORS, np.uint8)[LABELS])
  np.testing.assert_array_equal(read_labels(path, LabelFormat("table", table=COLORS)), LABELS)
  # The table may have any order, and some colors may be ignored.
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


def test_pillow_images_are_read_like_files(save):
  """The Python API takes images that a program has in memory."""
  image = Image.fromarray(LABELS)
  image.putpalette(np.array(COLORS, np.uint8).tobytes())
  np.testing.assert_array_equal(LabelFormat().decode_image(image, "label"), LABELS)
  np.testing.assert_array_equal(LabelFormat("table", table=COLORS).decode_image(image, "label"), LABELS)
  opened = Image.open(save(LABELS, "label.jpg"))
  refused("^mine: found JPEG, expected class values", lambda: INDEX.decode_image(opened, "mine"))
  refused("^mine: found colors", lambda: INDEX.decode_image(image.convert("RGB"), "mine"))


def test_a_table_of_values(save):
  """Classes need not begin at 0: here 1 is the animal, 2 the background, and 3 the border, which is ignored."""
  path = save(LABELS + np.uint8(1))
  found = read_labels(path, LabelFormat("table", table=(2, 1), ignore=(3,)))
  np.testing.assert_array_equal(found, np.array([1, 0, IGNORE])[LABELS])
  refused(r"found value 3 in .* of the pixels", lambda: read_labels(path, LabelFormat("table", table=(2, 1))))


@pytest.mark.parametrize("value", [-1, 2, 65536, 2**31 - 1, -(2**31)])
def test_values_far_from_those_of_a_table_are_refused(save, value):
  path = save(np.full((4, 4), value, np.int32), "label.tif")
  for table in ((0, 65535), ((0, 0, 0), (255, 255, 255))):
    refused("found (value|color|gray values)", lambda: read_labels(path, LabelFormat("table", table=table)))  # noqa: B023


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
    (r"table: found \(1, 2, 3\), expected an integer", {"mode": "table", "table": (0, (1, 2, 3))}),
    (r"ignore: found \(1, 2, 3\), expected an integer", {"ignore": ((1, 2, 3),)}),
    ("ignore: found 7, expected three numbers", {"mode": "table", "table": ((0, 0, 0),), "ignore": (7,)}),
    ("table: found 5 twice", {"mode": "table", "table": (0, 5, 5)}),
    ("table: found 5 twice, or among the ignored", {"mode": "table", "table": (0, 5), "ignore": (5,)}),
    ("found 256 entries, expected at most 255", {"mode": "table", "table": tuple(range(256))}),
  ],
)
def test_a_contradictory_format_is_refused(match, values):
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
def test_text_that_is_not_a_list_of_values_is_refused(text):
  refused("--table: found", lambda: parse_values(text, "--table"))


def test_too_large_classes_are_refused_and_ignored_pixels_are_not():
  check_classes(np.array([[0, 2, IGNORE]], np.uint8), 3, "a.png")
  refused(
    r"a.png: found label value 2, expected 0..1", lambda: check_classes(np.array([[0, 2, 255]], np.uint8), 2, "a.png")
  )


@pytest.mark.parametrize("text", ["-" * 10_000 + "1", "(" * 10_000])
def test_tables_that_are_nested_too_deeply_are_refused(text):
  with pytest.raises(InputError, match="--table: found"):
    parse_values(text, "--table")
