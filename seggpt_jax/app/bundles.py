"""Files that come into a session and leave it: zip files, videos, ready examples, downloads.

In: a session, or a file. Out: a zip file, or images and labels in a session. The zip of a session is a dataset for
every command: train/images, train/labels and classes.txt (one name a line, from class 1); images without a label are in
unlabeled/.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.labeling import DEMO_CLASS
from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.pictures import LABEL_MAPS, MOST_CLASSES, Picture, clean_name
from seggpt_jax.app.project_files import CLASSES_FILE, UNLABELED, write_classes
from seggpt_jax.app.sessions import Session
from seggpt_jax.data.datasets import Dataset, OutlineSource, open_dataset
from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import is_junk, list_images
from seggpt_jax.formats.images import open_image, read_bytes, read_lines
from seggpt_jax.formats.labels import LabelFormat, classes_in, read_labels
from seggpt_jax.formats.layouts import Item, folder_layout
from seggpt_jax.formats.recognize import OUTLINES, recognize
from seggpt_jax.inference import annotation_files
from seggpt_jax.inference.annotation_files import AnnotationOptions
from seggpt_jax.inference.pictures import encode, write_png
from seggpt_jax.inference.queries import Query
from seggpt_jax.inference.video import probe, read_frames
from seggpt_jax.palette import IGNORE
from seggpt_jax.synthetic.boards import BoardSource
from seggpt_jax.written import RECORD

Download = Literal["masks", "coco", "labelme", "yolo"]
DOWNLOADS = get_args(Download)
MOST_FRAMES = 64  # of a video, spread evenly
_Sample = tuple[str, str, Callable[[], np.ndarray]]  # name, path of the image, and what reads its label
_MOST_READ = 20_000  # frames that are decoded for them: ten minutes of most videos
_VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".3gp")
# The boards in the order of the page. With the first as the example, the small weights get some right and some wrong.
_BOARDS = (10, 0, 3, 4, 5, 1, 8, 9, 2, 7)
_MOST_FILES = 20_000  # of an archive
_MOST_ENTRY = 1000  # bytes of a file in the list of contents
_MOST_END = 2**16 + 64  # bytes at the end of a zip file that hold the place of that list
_MOST_NAMES_BYTES = 2**16  # of the names of classes


def write_dataset(session: Session, folder: Path, val_share: float = 0.0, training: bool = False) -> int:
  """Writes the labeled images of a session as a dataset folder.

  Args:
    session: the session.
    folder: the new folder.
    val_share: share of the labeled images that goes to val/ instead of train/.
    training: whether the background of images in which nobody has looked for a class is ignored.

  Returns:
    The number of labeled images.
  """
  count, taken = 0, 0.0
  for picture in session.examples:
    count, taken = count + 1, taken + val_share
    split = "val" if taken >= 1 else "train"
    taken -= split == "val"
    _copy(session, picture, folder / split / "images")
    labels = session.label(picture.key)
    if training and picture.unseen:
      labels = np.where(labels == 0, np.uint8(IGNORE), labels)
    write_png(folder / split / "labels" / f"{picture.name}.png", labels)
  write_classes(folder, session.classes)
  return count


def save_session(session: Session, target: Path) -> None:
  """Writes a session as a zip file; see the module.

  Args:
    session: the session.
    target: the new zip file.

  Raises:
    InputError: the session has no labeled image.
  """
  if not session.examples:
    raise InputError("session: found no example, expected at least one labeled image")
  with _packing(target) as folder:
    write_dataset(session, folder)
    for picture in list(session.pictures.values()):
      if not picture.label:
        _copy(session, picture, folder / UNLABELED)


def load_session(session: Session, archive: Path, most_bytes: int) -> int:
  """Adds the images and labels of a zip file to a session; the labels become examples.

  Args:
    session: the session. Class names of the archive replace its own if it has no example yet; else the archive's
      classes are found among its own by name, and new ones are added. Classes without names are taken by number, and
      are new ones if the session has labels of that number.
    archive: a zip file of `save_session`, or of any dataset of images with label maps, masks of one class, or outlines
      in one of the forms of `formats.recognize.OUTLINES`.
    most_bytes: bytes that the content may have in all.

  Returns:
    The number of images added.

  Raises:
    TooLargeError: the archive holds more than is accepted.
    InputError: the file is no such archive.
  """
  with tempfile.TemporaryDirectory(dir=session.scratch) as unpacked:
    root = Path(unpacked) / "archive"
    _unpack(archive, root, most_bytes)
    while len(below := [path for path in root.iterdir() if not is_junk(path.name)]) == 1 and below[0].is_dir():
      root = below[0]  # the archive holds one folder around everything
    with _naming_archive(root):
      samples, names = _find_samples(root)
      # Labels are read one at a time, here and again below: all of them at once may not fit into memory.
      needed = max([classes_in(read())[-1:] or (1,) for _, _, read in samples], default=(1,))[0]
    session.leave_demo()
    meaning = _adopt_classes(session, names, needed)
    for name, path, read in samples:
      labels = meaning[read()]
      picture = session.add_image(f"{name}{Path(path).suffix}", read_bytes(path))
      if classes_in(labels):
        session.set_label(picture.key, labels, name)
    others = list_images(root / UNLABELED, recursive=True) if (root / UNLABELED).is_dir() else {}
    for name, path in others.items():
      session.add_image(f"{name}{Path(path).suffix}", read_bytes(path))
    return len(samples) + len(others)


@contextlib.contextmanager
def _naming_archive(root: Path) -> Iterator[None]:
  """Names an archive in place of the folder that it was unpacked to."""
  try:
    yield
  except InputError as error:
    raise InputError(f"archive: {str(error).replace(f'{root}/', '').replace(str(root), 'it')}") from error


def _find_samples(root: Path) -> tuple[list[_Sample], list[str]]:
  """Finds the samples of a dataset of any form that the page takes, and the names of classes that it states."""
  form = recognize(str(root))
  if form.kind in OUTLINES:
    sources = [open_dataset(Dataset(form.kind, str(root), MOST_CLASSES + 1), split) for split in form.splits]
    names = list(dict.fromkeys(name for source in sources for name in source.categories))
    # YOLO's description may name the same images for training and for validation.
    samples = {sample[1]: sample for source in sources for sample in _outlined(source, names)}
    return list(samples.values()), names
  if form.kind != "folder":
    raise InputError(f"found a dataset of kind {form.kind}, expected folder, {', '.join(OUTLINES)}")
  path, items = root / CLASSES_FILE, [item for split in form.splits for item in folder_layout(root, split)]
  if path.is_file() and (size := path.stat().st_size) > _MOST_NAMES_BYTES:
    raise InputError(f"{CLASSES_FILE}: found {size} bytes, expected at most {_MOST_NAMES_BYTES}")
  names = read_lines(path) if path.is_file() else []
  # Masks of 0 and 255 show one class.
  masks = not any(classes_in(_label(item, LABEL_MAPS)) for item in items)
  labels = LabelFormat("binary") if masks else LABEL_MAPS
  return [(item.name, item.image, functools.partial(_label, item, labels)) for item in items], names


def _outlined(source: OutlineSource, names: list[str]) -> Iterator[_Sample]:
  """Yields the samples of a dataset of outlines, with the classes of all its splits."""
  meaning = np.arange(256, dtype=np.uint8)
  meaning[1 : len(source.categories) + 1] = [1 + names.index(name) for name in source.categories]
  for index in range(len(source)):
    yield source.name(index), source.image_path(index), lambda index=index: meaning[source.label(index)]


def _label(item: Item, labels: LabelFormat) -> UInt8[np.ndarray, "h w"]:
  """Reads the label map of an image, once the headers of both say that they have the same number of pixels."""
  image, label = (open_image(read_bytes(path), item.name).size for path in (item.image, item.label))
  if sorted(image) != sorted(label):
    raise InputError(f"{item.name}: found a label of {label[0]} x {label[1]} pixels, expected {image[0]} x {image[1]}")
  return read_labels(item.label, labels)


def _adopt_classes(session: Session, stated: list[str], needed: int) -> UInt8[np.ndarray, "256"]:
  """Gives the classes of an archive a place in the session, by their names if it has them, and returns their places."""
  if max(needed, len(stated)) > MOST_CLASSES:
    raise InputError(f"archive: found {max(needed, len(stated))} classes, expected at most {MOST_CLASSES}")
  names, unknown = list(session.classes), [f"class_{number}" for number in range(1, needed + 1)]
  if stated:
    stated, names = [*stated, *unknown[len(stated) :]], names if session.least_classes else []
  else:  # by their numbers, unless the session has labels of that number, which may mean something else
    held = {index for each in session.pictures.values() for index in each.holds}
    free = zip(range(1, needed + 1), [*names, *unknown[len(names) :]], unknown, strict=False)
    stated = [other if number in held else name for number, name, other in free]
  names += [name for name in stated if name not in names]
  meaning = np.arange(256, dtype=np.uint8)
  meaning[1 : len(stated) + 1] = [1 + names.index(name) for name in stated]
  needed = max(needed, session.least_classes)
  session.set_classes([*names, *(f"class_{number}" for number in range(len(names) + 1, needed + 1))])
  return meaning


def _unpack(archive: Path, root: Path, most_bytes: int) -> None:
  """Unpacks the files of a zip file below a folder, never outside, and never more bytes than allowed."""
  _check_directory(archive)
  try:
    with zipfile.ZipFile(archive) as packed:
      files = [info for info in packed.infolist() if not info.is_dir()]
      if len(files) > _MOST_FILES or sum(info.file_size for info in files) > most_bytes:
        raise TooLargeError(
          f"archive: found {len(files)} files, expected at most {_MOST_FILES}, {most_bytes >> 20} MiB in all"
        )
      for info in files:
        parts = Path(info.filename).parts
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in info.filename:
          raise InputError(f"archive: found the path {info.filename[:80]!r}, expected paths inside the archive")
        if "__MACOSX" not in parts:
          packed.extract(info, root)  # reads no more bytes than the header says
  except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"archive: cannot be read as a zip file: {type(error).__name__}") from error


def _check_directory(archive: Path) -> None:
  """Refuses a zip file with a list of contents that would take much memory, before it is read."""
  with open(archive, "rb") as file:
    file.seek(-min(_MOST_END, archive.stat().st_size), 2)
    end = file.read()
  place = end.rfind(b"PK\5\6")
  size = int.from_bytes(end[place + 12 : place + 16], "little")
  # The other form is for more than 65,535 files or 4 GiB.
  if place >= 0 and (size > _MOST_FILES * _MOST_ENTRY or b"PK\6\7" in end[max(place - 20, 0) : place]):
    raise TooLargeError(f"archive: found a list of contents of {size} bytes, expected at most {_MOST_FILES} files")


def write_download(session: Session, kind: Download, target: Path) -> None:
  """Writes the labels and answers of all images as a zip file.

  Args:
    session: the session.
    kind: "masks" (images/ and labels/ with class indices), "coco" (images/ and annotations.json), "labelme" (images/
      and labelme/NAME.json) or "yolo" (images/, labels/NAME.txt and data.yaml).
    target: the new zip file.

  Raises:
    InputError: no image has a label or an answer.
  """
  with _packing(target) as folder:
    queries, entries, options = [], {}, AnnotationOptions(tuple(session.classes), root=folder / "images")
    for key in list(session.pictures):
      if key not in session.pictures or (prediction := session.result(key)) is None:
        continue
      picture = session.find(key)
      query = Query(picture.name, _copy(session, picture, folder / "images"), None, ())
      queries.append(query)
      if kind == "masks":
        labels = session.label(key) if picture.label else prediction.labels  # with what is ignored
        write_png(folder / "labels" / f"{picture.name}.png", labels)
      else:
        entries[query.name] = annotation_files.write(folder, query, prediction, [kind], options)
    if not queries:
      raise InputError("download: found no label and no answer, expected at least one")
    if kind in ("coco", "yolo"):
      annotation_files.finish(folder, queries, entries, [kind], options)
    if kind == "coco":
      shutil.rmtree(folder / "coco")  # its parts are in annotations.json
    if kind == "yolo":
      for path in list((folder / "yolo").iterdir()):
        path.rename(folder / path.name)
    write_classes(folder, session.classes)


def _copy(session: Session, picture: Picture, folder: Path) -> Path:
  path = folder / f"{picture.name}{picture.path.suffix}"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(session.image_bytes(picture.key))
  return path


@contextlib.contextmanager
def _packing(target: Path) -> Iterator[Path]:
  """Gives a temporary folder, whose files are packed into a zip file at the end."""
  with tempfile.TemporaryDirectory(dir=target.parent) as name:
    folder = Path(name)
    yield folder
    # Images are compressed already.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
      for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:
          packed.write(path, path.relative_to(folder))


def write_network(run: Path, name: str, target: Path) -> None:
  """Writes a training run as a zip file that `seggpt infer --model-path` takes once it is unpacked.

  Args:
    run: the run directory.
    name: name of the folder in the zip file.
    target: the new zip file.
  """
  weights = run / "best" if any(run.glob("best/*")) else run / "checkpoints"
  with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
    for path in [run / "config.json", *sorted(weights.rglob("*"))]:
      if path.is_file():
        packed.write(path, Path(name) / path.relative_to(run))


def is_video(name: str) -> bool:
  """Returns whether a file has an ending of videos."""
  return Path(name).suffix.lower() in _VIDEOS


def add_frames(session: Session, path: Path, name: str, most_pixels: int) -> int:
  """Adds the frames of a video to a session and returns their number.

  Args:
    session: the session.
    path: the video file.
    name: file name that the user knows it by.
    most_pixels: pixels that a frame may have.

  Raises:
    TooLargeError: its frames are too large, or too many.
    InputError: the file is not a video.
  """
  shown = clean_name(name)
  try:
    info = probe(path)
    if info.size[0] * info.size[1] > most_pixels:
      raise TooLargeError(
        f"{shown}: found {info.size[1]} x {info.size[0]} pixels, expected at most {most_pixels / 1e6:g} million"
      )
    total = info.num_frames or sum(1 for _ in read_frames(path))
    if total > _MOST_READ:
      raise TooLargeError(f"{shown}: found {total} frames, expected at most {_MOST_READ}; cut the video")
    count = min(total, MOST_FRAMES)
    wanted = {round(place * (total - 1) / max(count - 1, 1)) for place in range(count)}
    added = 0
    for number, pixels in enumerate(read_frames(path)):
      if number in wanted:
        data = encode(pixels, "jpeg", quality=95, subsampling=0)
        session.add_image(f"{Path(shown).stem}_{number:05d}.jpg", data)
        added += 1
    return added
  except InputError as error:
    raise type(error)(str(error).replace(str(path), shown)) from error


def add_boards(session: Session) -> None:
  """Adds drawn boards, the same ones every time, and labels the copper of the first if the session needs examples."""
  source = BoardSource(max(_BOARDS) + 1, seed=3, size=320, scale=5.0, count=(0, 1), labels="etched")
  session.start_demo()
  if session.needs_examples and not session.examples:
    session.set_classes([DEMO_CLASS])
  for place, index in enumerate(_BOARDS):
    board = source[index]
    picture = session.add_image(f"board_{place + 1:02d}.png", encode(board["image"], "png"), demo=True)
    if place == 0 and session.needs_examples:
      session.set_label(picture.key, board["label"])
