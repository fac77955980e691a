"""Image files of any kind: every file has one defined meaning, or is refused with an error that names it."""

import io
from typing import ClassVar

import cv2
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import decode_image, read_image, upright_pixels, upright_size, without_ending

GENERATOR = np.random.default_rng(0)
GRAY = GENERATOR.integers(0, 256, (5, 7), np.uint8)
RGB = GENERATOR.integers(0, 256, (5, 7, 3), np.uint8)


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_images_of_any_mode_become_rgb(tmp_path):
  rgb = np.stack([GRAY] * 3, axis=-1)
  Image.fromarray(GRAY).save(tmp_path / "L.png")
  Image.fromarray(GRAY).save(tmp_path / "L.gif")
  Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "I16.png")
  Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "I16.tif")
  Image.fromarray(GRAY.astype(np.int32) * 257).save(tmp_path / "I.tif")
  Image.fromarray(np.dstack([GRAY, GRAY])).save(tmp_path / "LA.png")
  Image.fromarray(np.dstack([rgb, GRAY])).save(tmp_path / "RGBA.png")
  Image.fromarray(rgb).save(tmp_path / "RGB.tif", compression="tiff_lzw")
  Image.fromarray(rgb).convert("CMYK").save(tmp_path / "CMYK.tif")
  Image.fromarray(rgb).save(tmp_path / "RGB.webp", lossless=True)
  for path in tmp_path.iterdir():
    np.testing.assert_allclose(read_image(path), rgb, atol=1, err_msg=path.name)


def test_a_palette_becomes_its_colors_also_with_transparency(tmp_path):
  colors = np.array([[200, 10, 30], [0, 90, 255]], np.uint8)
  picture = Image.fromarray((GRAY > 127).astype(np.uint8))
  picture.putpalette(colors.tobytes())
  picture.save(tmp_path / "p.png")
  picture.save(tmp_path / "t.png", transparency=0)
  shown = colors[(GRAY > 127).astype(int)]
  np.testing.assert_array_equal(read_image(tmp_path / "p.png"), shown)
  shown[GRAY <= 127] = 255
  np.testing.assert_array_equal(read_image(tmp_path / "t.png"), shown)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2, "quality": 40}])
def test_jpegs_are_decoded_as_pillow_decodes_them(tmp_path, mode, options):
  """OpenCV decodes some files and Pillow others; the result must not depend on the decoder."""
  Image.fromarray(GENERATOR.integers(0, 256, (33, 50, 3), np.uint8)).convert(mode).save(tmp_path / "a.jpg", **options)
  np.testing.assert_array_equal(
    read_image(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
  )


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, ending, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  # A smooth image, so that JPEG compression changes it little.
  y, x = np.mgrid[:40, :64]
  pixels = np.stack([4 * y, 3 * x, 2 * (x + y)], axis=-1).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / f"a.{ending}", exif=exif)
  turned = {
    1: pixels,
    2: pixels[:, ::-1],
    3: pixels[::-1, ::-1],
    4: pixels[::-1],
    5: pixels.transpose(1, 0, 2),
    6: np.rot90(pixels, 3),
    7: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(pixels),
  }[orientation]
  read = read_image(tmp_path / f"a.{ending}")
  np.testing.assert_allclose(read, turned, atol=0 if ending != "jpg" else 12)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path, ending, share):
  """Many decoders fill the missing part with gray, which a network would learn."""
  path = tmp_path / f"a.{ending}"
  Image.fromarray(GENERATOR.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(share * len(whole))])
  refused(rf"a.{ending}: cannot be read as an image", lambda: read_image(path))


def test_files_that_are_not_images_are_refused(tmp_path):
  (tmp_path / "a.png").write_text("hello")
  refused("a.png: cannot be read as an image: found none of AVIF, BMP", lambda: read_image(tmp_path / "a.png"))
  refused("missing.png: not found", lambda: read_image(tmp_path / "missing.png"))
  (tmp_path / "folder.png").mkdir()
  refused("folder.png: found a folder, expected a file", lambda: read_image(tmp_path / "folder.png"))


@pytest.mark.parametrize("ending", ["tif", "gif"])
def test_several_pages_are_refused(tmp_path, ending):
  path = tmp_path / f"a.{ending}"
  Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(RGB[::-1])])
  refused(rf"a.{ending}: found 2 pages, expected a file with one picture", lambda: read_image(path))


def test_a_phone_s_jpeg_with_a_preview_is_its_first_picture(tmp_path):
  first = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
  first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(RGB)])
  np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), np.full((16, 16, 3), 200))


def test_floating_point_and_large_integers_are_refused(tmp_path):
  """Such files do not say which value is white."""
  Image.fromarray(GENERATOR.random((5, 7), np.float32)).save(tmp_path / "F.tif")
  refused("F.tif: found floating-point values", lambda: read_image(tmp_path / "F.tif"))
  Image.fromarray(np.full((5, 7), 70000, np.int32)).save(tmp_path / "I.tif")
  refused("I.tif: found values 70000..70000, expected 8 or 16 bits", lambda: read_image(tmp_path / "I.tif"))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
  Image.fromarray(np.zeros((300, 300), np.uint8)).save(tmp_path / "bomb.png")
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 // 2 - 1)
  refused(
    r"bomb.png: found 90000 pixels, expected at most 89998; cut the image", lambda: read_image(tmp_path / "bomb.png")
  )
  # A large image within the limit is read without a warning.
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)
  assert read_image(tmp_path / "bomb.png").shape == (300, 300, 3)


def folder(directory):
  directory.mkdir()
  for name in ("b", "a", "c"):
    Image.fromarray(GRAY).save(directory / f"{name}.png")
  return directory


def test_images_are_listed_by_name_and_other_files_left_alone(tmp_path):
  images = folder(tmp_path / "images")
  (images / "notes.txt").write_text("not an image")
  (images / ".hidden.png").write_text("not an image")
  assert list(list_images(images)) == ["a", "b", "c"]
  (images / "below").mkdir()
  Image.fromarray(GRAY).save(images / "below" / "a.JPG")
  assert list(list_images(images)) == ["a", "b", "c"]
  assert list(list_images(images, recursive=True)) == ["a", "b", "below/a", "c"]


def test_folders_with_a_dot_in_their_name_are_folders(tmp_path):
  """A season's photographs lie in folders such as 2024.05.01, or were exported into shots.jpg/."""
  for place in ("2024.05.01", "shots.jpg", "plant/line.2"):
    (tmp_path / place).mkdir(parents=True)
    Image.fromarray(GRAY).save(tmp_path / place / "0.png")
  assert list(list_images(tmp_path, recursive=True)) == ["2024.05.01/0", "plant/line.2/0", "shots.jpg/0"]


def test_a_listing_says_what_it_passes_over_except_junk(tmp_path, caplog):
  images = folder(tmp_path / "images")
  for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.JPG", "__MACOSX/._a.png"):
    (images / junk).parent.mkdir(exist_ok=True)
    (images / junk).write_bytes(b"")
  assert len(list_images(images, recursive=True)) == 3 and not caplog.text
  for name in ("IMG_1.HEIC", "IMG_2.HEIC", "noending", "notes.txt", "below/x.CR2"):
    (images / name).parent.mkdir(exist_ok=True)
    (images / name).write_bytes(b"")
  for _ in range(2):
    assert len(list_images(images)) == 3
  said = [record.getMessage() for record in caplog.records]
  assert len(said) == 1, "the same listing says it once"
  assert said[0].startswith(f"{images}: passed over: 2 .HEIC, ")
  assert all(word in said[0] for word in ("1 without an ending", "1 .txt", "1 folder (not entered)", "[heif]"))
  list_images(images, recursive=True, skip=lambda path: "labels" if path.endswith("below") else "")
  assert "1 folder (labels)" in caplog.records[-1].getMessage()
  list_images(images, recursive=True)
  assert "1 .CR2" in caplog.records[-1].getMessage()


def test_a_folder_of_other_files_says_which_they_are(tmp_path):
  for number in range(12):
    (tmp_path / f"{number}.heic").write_bytes(b"")
  expected = r"found no images \(passed over: 12 .heic; to read HEIC, pip install 'seggpt-jax\[heif\]'\)"
  refused(expected, lambda: list_images(tmp_path))


def test_a_photograph_of_a_phone_names_the_extra_that_reads_it(tmp_path):
  (tmp_path / "a.jpg").write_bytes(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(16))
  expected = r"a.jpg: cannot be read as an image: .* pip install 'seggpt-jax\[heif\]'"
  refused(expected, lambda: read_image(tmp_path / "a.jpg"))


def test_names_match_in_any_form_of_their_accents(tmp_path):
  """macOS writes a letter and its accent as two characters; most other programs write one."""
  composed, decomposed = "caf\u00e9", "cafe\u0301"
  for kind, name in (("images", decomposed), ("labels", composed)):
    (tmp_path / kind).mkdir()
    Image.fromarray(GRAY).save(tmp_path / kind / f"{name}.png")
  images, labels = (list_images(tmp_path / kind) for kind in ("images", "labels"))
  assert list(images) == list(labels) == [composed]
  assert read_image(images[composed]).shape == (5, 7, 3)
  Image.fromarray(GRAY).save(tmp_path / "images" / f"{composed}.png")
  refused("next to it, expected one file for each name", lambda: list_images(tmp_path / "images"))


@pytest.mark.parametrize("pixels", [GRAY, RGB, GRAY.astype(np.uint16) * 257])
def test_a_tiff_that_pillow_opened_by_its_path_is_turned_upright(tmp_path, pixels):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
  found = upright_pixels(Image.open(tmp_path / "a.tif"), "a.tif")
  np.testing.assert_array_equal(found, read_image(tmp_path / "a.tif"))
  gray = (pixels if pixels.ndim == 2 else pixels[..., 0]) // (257 if pixels.dtype == np.uint16 else 1)
  np.testing.assert_array_equal(found[..., 0], np.rot90(gray, 3))


def test_only_the_ending_of_an_image_is_no_part_of_its_name():
  written = ("scan.v2", "scan.v2.JPG", "a.heic", "001", "cam.1/001.png")
  assert [without_ending(name) for name in written] == ["scan.v2", "scan.v2", "a", "001", "cam.1/001"]


def test_folders_that_cannot_be_listed_are_refused(tmp_path):
  refused("nowhere: folder not found", lambda: list_images(tmp_path / "nowhere"))
  (tmp_path / "empty").mkdir()
  refused("empty: found no images", lambda: list_images(tmp_path / "empty"))
  images = folder(tmp_path / "images")
  Image.fromarray(GRAY).save(images / "a.bmp")
  refused(r"a.png: found a.bmp next to it, expected one file for each name", lambda: list_images(images))


class Bucket(MemoryFileSystem):
  """A bucket simulated by a file system in memory."""

  protocol = "s3"
  store: ClassVar[dict] = {}
  pseudo_dirs: ClassVar[list] = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("s3://"))


def test_remote_folders_are_listed_and_read(tmp_path):
  fsspec.register_implementation("s3", Bucket, clobber=True)
  for path in folder(tmp_path / "images").iterdir():
    Bucket().pipe(f"s3://bucket/images/{path.name}", path.read_bytes())
  found = list_images("s3://bucket/images")
  assert found["b"] == "s3://bucket/images/b.png" and list(found) == ["a", "b", "c"]
  np.testing.assert_array_equal(read_image(found["b"])[..., 0], GRAY)
  refused("s3://bucket/nowhere: folder not found", lambda: list_images("s3://bucket/nowhere"))
  refused("s3://bucket/x.png: not found", lambda: read_image("s3://bucket/x.png"))


def test_a_remote_path_without_its_package_says_what_is_missing():
  refused("az://bucket/images: cannot be reached; install the package", lambda: list_images("az://bucket/images"))


@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 2560])
def test_the_size_in_a_header_is_that_of_the_decoded_picture(file_format, orientation):
  """Outlines are drawn at that size: a turned TIFF with labels of a labeling tool was refused."""
  exif, file = Image.Exif(), io.BytesIO()
  exif[0x0112] = orientation
  Image.new("RGB", (40, 30)).save(file, file_format, exif=exif)
  assert upright_size(file.getvalue(), "a") == decode_image(file.getvalue(), "a").shape[:2]


def test_the_range_of_deep_images_is_that_of_their_values(tmp_path):
  """Twelve bits in sixteen would be nearly black, and an 8-bit prompt next to them would show something else."""
  gray = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
  for name, values in {
    "8.png": gray.astype(np.uint16),
    "12.png": np.round(gray * (4095 / 255)).astype(np.uint16),
    "16.tif": gray.astype(np.uint16) * 257,
    "i8.tif": gray.astype(np.int32),
    "i12.tif": np.round(gray * (4095 / 255)).astype(np.int32),
  }.items():
    Image.fromarray(values).save(tmp_path / name)
  for name, white in (("rgb12.png", 4095), ("rgb16.png", 65535), ("rgb8.tiff", 255), ("rgb12.tiff", 4095)):
    colors = np.round(np.stack([gray, gray[:, ::-1], gray], axis=-1) * (white / 255)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / name), colors[..., ::-1])
  for path in tmp_path.iterdir():
    found = read_image(path)
    np.testing.assert_allclose(found[..., 0], gray, atol=1, err_msg=path.name)
    if path.name.startswith("rgb"):
      np.testing.assert_allclose(found[..., 1], gray[:, ::-1], atol=1, err_msg=path.name)
  Image.fromarray(np.round(gray * 3.9).astype(np.uint16)).save(tmp_path / "said.tif", tiffinfo={281: 1023})
  np.testing.assert_allclose(read_image(tmp_path / "said.tif")[..., 0], gray * (3.9 * 255 / 1023), atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "rgba16"])
def test_colors_below_transparent_pixels_are_not_seen(tmp_path, mode):
  alpha = np.where(GRAY > 127, 255, 0).astype(np.uint8)
  colors = np.stack([GRAY] * 3, axis=-1)
  if mode == "rgba16":
    assert cv2.imwrite(str(tmp_path / "a.png"), np.dstack([colors, alpha]).astype(np.uint16) * 257)
  else:
    Image.fromarray(np.dstack([colors, alpha] if mode == "RGBA" else [GRAY, alpha])).save(tmp_path / "a.png")
  np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.where(alpha[..., None], colors, 255))


def test_smaller_copies_in_a_tiff_are_passed_over(tmp_path):
  """Every cloud optimized GeoTIFF has them."""
  pages = [Image.fromarray(RGB), Image.fromarray(RGB[::2, ::2])]
  pages[1].encoderinfo = {"tiffinfo": {254: 1}}
  pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
  np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_an_image_with_too_many_pixels_is_refused_with_what_to_do(monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
  file = io.BytesIO()
  Image.fromarray(RGB).save(file, "png")
  refused(
    "a.png: found 35 pixels, expected at most 20; cut the image, or set SEGGPT_MAX_PIXELS",
    lambda: decode_image(file.getvalue(), "a.png"),
  )
