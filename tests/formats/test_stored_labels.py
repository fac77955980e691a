"""Storage of label files: what a file says about its pixels decides how they are read, or that they are refused."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import open_image
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.formats.layouts import folder_layout
from seggpt_jax.formats.stored_labels import lossy_codec, read_stored

LABELS = np.random.default_rng(0).integers(0, 3, (12, 16), np.uint8)
MASK = (LABELS > 0).astype(np.uint8)
BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)


def encode(image, file_format="PNG", **options):
  stream = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **options)
  return stream.getvalue()


def with_palette(indices, *colors):
  image = Image.fromarray(indices)
  image.putpalette([channel for color in colors for channel in color])
  return image


def read(data, *args, **values):
  return LabelFormat(*args, **values).decode(data, "label.png")


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- palettes


def test_a_mask_in_a_palette_of_grays_is_what_it_shows():
  """Programs that shrink PNG files sort the palette as they like: white may be index 0."""
  for colors, indices in (((BLACK, WHITE), MASK), ((WHITE, BLACK), 1 - MASK)):
    data = encode(with_palette(indices, *colors))
    np.testing.assert_array_equal(read(data, "binary"), MASK)
    np.testing.assert_array_equal(read(data, "table", table=(0, 255)), MASK)
    refused("found label value 255, expected class indices", lambda data=data: read(data))
  grays = encode(with_palette(2 - LABELS, (2, 2, 2), (1, 1, 1), BLACK))
  np.testing.assert_array_equal(read(grays), LABELS)
  for labels in (LABELS, np.full_like(LABELS, 2)):  # a palette that shows nothing, as some programs leave it
    np.testing.assert_array_equal(read(encode(with_palette(labels, BLACK, BLACK, BLACK))), labels)


def test_palettes_with_other_colors_for_an_index_are_refused_with_both_files():
  labels = LabelFormat()
  labels.decode(encode(with_palette(LABELS, BLACK, RED, GREEN)), "a.png")
  labels.decode(encode(with_palette(np.minimum(LABELS, 1), BLACK, (250, 4, 0), WHITE)), "b.png")  # index 2 is not used
  other = encode(with_palette(LABELS, BLACK, GREEN, RED))
  refused(
    "c.png: found .* of index 1, expected .* in a.png: the palettes differ", lambda: labels.decode(other, "c.png")
  )
  # Colors are read in any order, and an ignored index may have any color.
  table = LabelFormat("table", table=(BLACK, RED, GREEN))
  np.testing.assert_array_equal(table.decode(other, "c.png"), np.array([0, 2, 1])[LABELS])
  LabelFormat(ignore=(1, 2)).decode(other, "c.png")


def test_training_files_whose_palettes_differ_are_refused(tmp_path):
  for name, colors in (("a", (BLACK, RED, GREEN)), ("b", (BLACK, GREEN, RED))):
    for folder, image in (("images", LABELS), ("labels", with_palette(LABELS, *colors))):
      (tmp_path / folder).mkdir(exist_ok=True)
      (tmp_path / folder / f"{name}.png").write_bytes(encode(image))
  source = FileSource(folder_layout(tmp_path), 3, LabelFormat())
  source.label(0)
  refused("b.png: found .*a.png: the palettes differ", lambda: source.label(1))


def test_a_palette_whose_background_is_not_index_0_is_no_mask():
  refused("found index 0 in the color", lambda: read(encode(with_palette(1 - MASK, RED, BLACK)), "binary"))
  np.testing.assert_array_equal(read(encode(with_palette(MASK, BLACK, RED)), "binary"), MASK)
  np.testing.assert_array_equal(read(encode(with_palette(MASK, WHITE, RED)), "binary"), MASK)


# -------------------------------------------------------------------------------------------------------------- alpha


@pytest.mark.parametrize("form", [LabelFormat(), LabelFormat("binary"), LabelFormat("table", table=(BLACK, RED))])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_in_the_alpha_channel_is_refused_by_name(form, mode):
  for color in (0, 255):
    for mask in (MASK * np.uint8(255), np.zeros_like(MASK)):
      image = Image.fromarray(np.full_like(MASK, color)).convert(mode)
      image.putalpha(Image.fromarray(mask))
      if mask.any() or color:
        refused("the mask is in the alpha channel", lambda image=image: form.decode(encode(image), "a.png"))
      else:  # nothing was drawn on an empty canvas
        assert not form.decode(encode(image), "a.png").any()


def test_transparency_that_colors_tell_too_is_no_hindrance():
  painted = np.array([(0, 0, 0, 0), (*RED, 255), (*GREEN, 200)], np.uint8)[LABELS]
  np.testing.assert_array_equal(read(encode(painted), "table", table=(BLACK, RED, GREEN)), LABELS)
  # Game engines write 0 as the transparency of every pixel.
  rendered = np.array([(*BLACK, 0), (*RED, 0), (*GREEN, 0)], np.uint8)[LABELS]
  np.testing.assert_array_equal(read(encode(rendered), "table", table=(BLACK, RED, GREEN)), LABELS)
  same = with_palette(MASK, WHITE, WHITE)
  refused("alpha channel", lambda: read(encode(same, transparency=bytes([0, 255]))))


# --------------------------------------------------------------------------------------------------------------- loss


LOSSY = [
  ("JPEG", {}, True),
  ("WEBP", {}, True),
  ("WEBP", {"lossless": True}, False),
  ("JPEG2000", {}, False),
  ("JPEG2000", {"irreversible": True}, True),
  ("JPEG2000", {"irreversible": True, "no_jp2": True}, True),
  ("AVIF", {}, True),
  ("TIFF", {"compression": "jpeg"}, True),
  ("TIFF", {"compression": "tiff_lzw"}, False),
  ("PNG", {}, False),
]


@pytest.mark.parametrize(("file_format", "options", "lossy"), LOSSY)
def test_compression_with_loss_is_told_from_the_header(tmp_path, file_format, options, lossy):
  smooth = np.repeat(np.repeat(LABELS, 4, axis=0), 4, axis=1)
  data = encode(Image.fromarray(smooth).convert("RGB"), file_format, **options)
  (tmp_path / "label").write_bytes(data)
  if lossy:
    for values in ({}, {"mode": "table", "table": (BLACK, (1, 1, 1), (2, 2, 2))}):
      refused("expected class values in a format without loss", lambda values=values: read(data, **values))
    refused("set threshold=127", lambda: read(data, "binary"))
    assert not read(data, "binary", 127).any()
  else:
    np.testing.assert_array_equal(read(data), smooth)
  opened = Image.open(tmp_path / "label")
  opened.load()
  assert bool(lossy_codec(opened)) == lossy


def test_a_webp_with_alpha_is_told_too():
  image = Image.fromarray(LABELS).convert("RGBA")
  image.putalpha(200)
  assert lossy_codec(open_image(encode(image, "WEBP"), "a")) and not lossy_codec(
    open_image(encode(image, "WEBP", lossless=True), "a")
  )


# --------------------------------------------------------------------------------------------------------------- bits


def test_twelve_bit_tiff_labels_are_their_values():
  height, width = LABELS.shape
  bits = np.unpackbits((LABELS.astype(np.uint16) << 4).view(np.uint8).reshape(height, width, 2)[..., ::-1], axis=-1)
  data = np.packbits(bits.reshape(height, width, 16)[..., :12].reshape(height, -1), axis=-1).tobytes()
  tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
  entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items())
  head = b"II*\0" + struct.pack("<I", 8 + len(data))
  tiff = head + data + struct.pack("<H", len(tags)) + entries + bytes(4)
  np.testing.assert_array_equal(read(tiff), LABELS)


def test_colors_of_16_bits_are_refused_as_half_of_them_is_lost():
  cv2 = pytest.importorskip("cv2")
  for ending in (".png", ".tif"):
    data = cv2.imencode(ending, np.repeat(LABELS[..., None], 3, axis=2).astype(np.uint16))[1].tobytes()
    refused("found 16 bits for each color", lambda data=data: read(data))


def test_grays_above_255_have_no_color():
  data = encode(np.full((4, 4), 300, np.uint16))
  refused("found gray values up to 300", lambda: read(data, "table", table=(BLACK, RED)))


# ------------------------------------------------------------------------------------------------- masks of two values


def test_several_values_are_no_mask_unless_a_threshold_is_set():
  cases = (
    (LABELS, "values 0, 1, 2, .*labels=index, num_classes=3"),
    (LABELS + np.uint8(1), "values 1, 2, 3"),
    (MASK + np.uint8(1), "values 1, 2, expected 0 and one other"),
    (np.array([0, 128, 255], np.uint8)[LABELS], "labels=table, table=0,128,255"),
    (np.array([0, 5, 255], np.uint8)[LABELS], "ignore=255"),
    (np.arange(256, dtype=np.uint8).reshape(16, 16), "threshold=127"),
    (np.arange(900, dtype=np.uint16).reshape(30, 30), "threshold=0"),
  )
  for values, match in cases:
    data = encode(values)
    refused(match, lambda data=data: read(data, "binary"))
    np.testing.assert_array_equal(read(data, "binary", 0), values > 0)
    np.testing.assert_array_equal(read(data, "binary", 1), values > 1)
  refused(
    "colors are read with labels=table", lambda: read(encode(np.array([BLACK, RED, GREEN], np.uint8)[LABELS]), "binary")
  )
  for value in (1, 7, 255):
    np.testing.assert_array_equal(read(encode(MASK * np.uint8(value)), "binary"), MASK)
  ignoring = np.array([0, 255, 128], np.uint8)[LABELS]
  np.testing.assert_array_equal(read(encode(ignoring), "binary", ignore=(128,)), np.array([0, 1, 255])[LABELS])
  np.testing.assert_array_equal(read(encode(MASK.astype(np.uint16) * np.uint16(40_000)), "binary"), MASK)


def test_pascal_voc_labels_are_answered_with_the_value_to_ignore():
  data = encode(np.array([0, 5, 255], np.uint8)[LABELS])
  refused("found label value 255.*--ignore=255", lambda: read(data))
  refused("masks of 0 and 255 are read with labels=binary$", lambda: read(encode(MASK * np.uint8(255))))


def test_the_content_says_its_form(tmp_path):
  path = tmp_path / "a.png"
  with_palette(LABELS, BLACK, RED, GREEN).save(path)
  stored = read_stored(Image.open(path), "a.png")
  assert (stored.form, stored.codec, stored.fault, stored.in_color) == ("PNG P", "", "", False)
  assert stored.used_indices().tolist() == [0, 1, 2] and stored.palette[1].tolist() == list(RED)
  np.testing.assert_array_equal(read_labels(path, LabelFormat()), LABELS)


def test_masks_of_one_class_have_one_value_over_all_files():
  """Files of one class each, 1 in some and 3 in others, would become one class without a word."""
  label_format = LabelFormat("binary")
  one, three = (encode(np.array([[0, value]], np.uint8)) for value in (1, 3))
  assert label_format.decode(one, "a.png").tolist() == [[0, 1]]
  assert label_format.decode(encode(np.zeros((1, 2), np.uint8)), "empty.png").tolist() == [[0, 0]]
  with pytest.raises(
    InputError, match=r"b.png: found 3 as the value of the foreground, expected 1 as in a.png .*labels=index"
  ):
    label_format.decode(three, "b.png")
  assert LabelFormat("binary", 0).decode(one, "a").tolist() == LabelFormat("binary", 0).decode(three, "b").tolist()
