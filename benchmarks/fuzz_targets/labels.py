"""Label images of every format, as small files that commands read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz_targets import Target
from benchmarks.fuzz_targets.datasets import check_source, gray, inspect_folder, make_target, palette, saved
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import read_bytes, upright_size
from seggpt_jax.formats.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.formats.layouts import folder_layout
from tests.formats import annotation_folders as folders

_FORMATS = (
  LabelFormat(),
  LabelFormat(ignore=(255,)),
  LabelFormat("binary"),
  LabelFormat("binary", 127),
  LabelFormat("table", table=(0, 1, 2, 1000)),
  LabelFormat("table", table=((0, 0, 0), (255, 0, 0), (0, 255, 0)), ignore=((9, 9, 9),)),
)


def _labels(folder: Path, make: Callable[[np.ndarray], bytes], ending: str = ".png") -> Target:
  """Returns a folder of one image with its label, which is read in every format."""
  folders.save_image(folder / "images" / "a.png")
  label = folder / "labels" / f"a{ending}"
  label.parent.mkdir()
  label.write_bytes(make(folders.expected()))

  def read() -> None:
    """Raises the error of a format only if none reads the file."""
    inspect_folder(folder, "folder", laps)
    errors = []
    for each in _FORMATS:
      try:
        values = read_labels(label, each)
        assert values.dtype == np.uint8 and values.ndim == 2
        assert values.shape == upright_size(read_bytes(label), "label")
        allowed = {"index": range(256), "binary": (0, 1, IGNORE), "table": (*range(len(each.table)), IGNORE)}[each.mode]
        assert set(np.unique(values).tolist()) <= set(allowed)
        laps.end_lap()
        check_source(FileSource(folder_layout(folder), 4, each), laps)
      except InputError as error:
        errors.append(error)
      laps.end_lap()
    if len(errors) == len(_FORMATS):
      raise errors[0]

  target = make_target(folder, [f"labels/a{ending}"], read)
  laps = target.laps
  return target


def _colors(label: np.ndarray, file_format: str = "PNG", alpha: bool = False) -> bytes:
  pixels = np.array([(0, 0, 0, 255), (255, 0, 0, 255), (0, 255, 0, 128)], np.uint8)[label]
  return saved(Image.fromarray(pixels if alpha else np.ascontiguousarray(pixels[..., :3])), file_format)


_LABELS: dict[str, tuple[Callable[[np.ndarray], bytes], str]] = {
  "png_index": (gray, ".png"),
  "png_gray": (functools.partial(gray, scale=127), ".png"),
  "png_16_bit": (functools.partial(gray, scale=500, dtype=np.uint16), ".png"),
  "png_palette": (palette, ".png"),
  "png_colors": (_colors, ".png"),
  "png_alpha": (functools.partial(_colors, alpha=True), ".png"),
  "png_bits": (lambda label: saved(Image.fromarray(label > 0), "PNG"), ".png"),
  "tiff": (functools.partial(gray, file_format="TIFF"), ".tif"),
  "tiff_16_bit": (functools.partial(gray, file_format="TIFF", scale=500, dtype=np.uint16), ".tif"),
  "tiff_packed": (functools.partial(gray, file_format="TIFF", compression="tiff_lzw"), ".tif"),
  "webp": (lambda label: saved(Image.fromarray(np.stack([label] * 3, 2)), "WEBP", lossless=True), ".webp"),
  "gif": (functools.partial(gray, file_format="GIF"), ".gif"),
  "bmp": (functools.partial(gray, file_format="BMP"), ".bmp"),
}


TARGETS: dict[str, Callable[[Path], Target]] = {
  f"label_{name}": functools.partial(_labels, make=make, ending=ending) for name, (make, ending) in _LABELS.items()
}
