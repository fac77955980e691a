"""Images, records and videos, as small files that commands read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz_targets import Target
from benchmarks.fuzz_targets.datasets import check_source, gray, make_target, saved
from seggpt_jax.data.records import RecordSource
from seggpt_jax.data.sources import FileSource
from seggpt_jax.formats.images import decode_image, upright_size
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import folder_layout
from seggpt_jax.inference import video
from tests.formats import annotation_folders as folders

_RANDOM = functools.partial(np.random.default_rng, 0)


def _image(folder: Path, file_format: str) -> Target:
  """Returns a photo of one format, upright and turned by a tag."""
  pixels = _RANDOM().integers(0, 256, (6, 8, 3), np.uint8)
  image, exif = Image.fromarray(pixels).resize((40, 30)), Image.Exif()
  exif[0x0112] = 6
  names = {"a.img": {}, "b.img": {"exif": exif} if file_format in ("JPEG", "PNG", "TIFF", "WEBP") else {}}
  for name, options in names.items():
    (folder / name).write_bytes(saved(image, file_format, **options))

  def read() -> None:
    for name in names:
      data = (folder / name).read_bytes()
      decoded = decode_image(data, name)
      assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3
      assert decoded.shape[:2] == upright_size(data, name), "the size that the header states is another one"

  return make_target(folder, list(names), read)


def _records(folder: Path, pattern: str) -> Target:
  from seggpt_jax.prepare.writers import encoded_samples, write_records

  for place, name in enumerate("ab"):
    folders.save_image(folder / "in/images" / f"{name}.png", place)
    (folder / "in/labels").mkdir(exist_ok=True)
    (folder / "in/labels" / f"{name}.png").write_bytes(gray(folders.expected()))
  source = FileSource(folder_layout(folder / "in"), 3, LabelFormat())
  version = write_records(
    folder, "mine", {"train": lambda start: encoded_samples(source, range(start, 2), ["a", "b"], 2, False)}, 3
  )

  def read() -> None:
    records = RecordSource(version, "train", 3, LabelFormat())
    for index in range(len(records)):
      records.field(index, "group").encode()
    check_source(records)

  return make_target(folder, sorted(str(path.relative_to(folder)) for path in version.glob(pattern)), read)


def _video(folder: Path, container: str, codec: str, frames: int = 4) -> Target:
  import av

  path = folder / f"a.{container}"
  pixels = _RANDOM().integers(0, 256, (frames, 6, 8, 3), np.uint8)
  with av.open(path, "w") as file:
    stream = file.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
    for each in pixels:
      picture = np.asarray(Image.fromarray(each).resize((64, 48)))
      file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    file.mux(stream.encode())

  def read() -> None:
    info = video.probe(path)
    assert info.rate > 0 and (info.num_frames is None or info.num_frames >= 0)
    sizes = set()
    for count, frame in enumerate(video.read_frames(path), 1):
      assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
      sizes.add(frame.shape)
      assert count < 10_000
    assert sizes, "no frames"

  return make_target(folder, [path.name], read, structured=False)


TARGETS: dict[str, Callable[[Path], Target]] = {
  **{
    f"image_{each.lower()}": functools.partial(_image, file_format=each)
    for each in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "JPEG2000", "PPM", "TGA")
  },
  "records_header": functools.partial(_records, pattern="*.json"),
  "records_index": functools.partial(_records, pattern="*.npz"),
  "records": functools.partial(_records, pattern="*array_record*"),
  "video_mp4": functools.partial(_video, container="mp4", codec="libx264"),
  "video_avi": functools.partial(_video, container="avi", codec="mjpeg"),
  "video_mkv": functools.partial(_video, container="mkv", codec="mpeg4"),
}
