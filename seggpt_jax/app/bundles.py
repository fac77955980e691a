"""A session as files that people keep: a zip in which every command of the package finds a dataset, and downloads.

In: a session, or a zip file. Out: a zip file, or images and labels in a session. The zip of a session holds
train/images, train/labels and classes.txt (one name a line, from class 1), and images without a label in unlabeled/.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.sessions import Picture, Session, answered
from seggpt_jax.app.settings import MOST_CLASSES
from seggpt_jax.data.images import list_images, open_image, read_bytes, read_text, remote_or_local
from seggpt_jax.data.labels import LabelFormat, classes_in, read_labels
from seggpt_jax.data.layouts import folder_layout
from seggpt_jax.data.recognize import folder_splits
from seggpt_jax.data.sources import Item
from seggpt_jax.errors import InputError
from seggpt_jax.inference import annotation_files
from seggpt_jax.inference.annotation_files import AnnotationOptions
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.inference.queries import Query
from seggpt_jax.written import RECORD

Download = Literal["masks", "coco", "labelme"]
CLASSES_FILE, UNLABELED = "classes.txt", "unlabeled"
_MOST_FILES = 20_000  # of an archive
_MOST_ENTRY = 1000  # bytes of a file in the list of contents
_MOST_END = 2**16 + 64  # bytes at the end of a zip file that hold the place of that list
_MOST_NAMES_BYTES = 2**16  # of the names of classes


def write_dataset(session: Session, folder: Path, val_share: float = 0.0) -> int:
  """Writes the labeled images of a session as a dataset folder.

  Args:
    session: the session.
    folder: the new folder.
    val_share: share of the labeled images that goes to val/ instead of train/.

  Returns:
    The number of labeled images.
  """
  count, taken = 0, 0.0
  for split in ("train", "val") if val_share else ("train",):
    for kind in ("images", "labels"):
      (folder / split / kind).mkdir(parents=True)
  for picture in session.examples:
    count, taken = count + 1, taken + val_share
    split = "val" if taken >= 1 else "train"
    taken -= split == "val"
    shutil.copyfile(picture.path, folder / split / "images" / f"{picture.name}{picture.path.suffix}")
    write_png(folder / split / "labels" / f"{picture.name}.png", session.label(picture.key))
  (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in session.classes), "utf-8")
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
        (folder / UNLABELED).mkdir(exist_ok=True)
        shutil.copyfile(picture.path, folder / UNLABELED / f"{picture.name}{picture.path.suffix}")


def load_session(session: Session, archive: Path, most_bytes: int) -> int:
  """Adds the images and labels of a zip file to a session; the labels become examples.

  Args:
    session: the session. Class names of the archive replace its own if it has no example yet; else the archive's
      classes are found among its own by name, and new ones are added. Classes without names are taken by number, and
      are new ones if the session has labels of that number.
    archive: a zip file of `save_session`, or of any dataset with images and label maps in folders.
    most_bytes: bytes that the content may have in all.

  Returns:
    The number of images added.

  Raises:
    TooLargeError: the archive holds more than is accepted.
    InputError: the file is no such archive.
  """
  with tempfile.TemporaryDirectory(dir=session.folder) as unpacked:
    root = Path(unpacked)
    _unpack(archive, root, most_bytes)
    base = next(iter(sorted(root.glob("*/"))), root)
    if not folder_splits(remote_or_local(root)) and folder_splits(remote_or_local(base)):
      root = base  # the archive holds one folder around everything
    splits = folder_splits(remote_or_local(root))
    if not splits:
      raise InputError("archive: found no dataset in it, expected train/images and train/labels")
    items = [item for split in splits for item in folder_layout(root, split)]
    # Labels are read one at a time, here and again below: all of them at once may not fit into memory.
    meaning = _adopt_classes(session, root, max(classes_in(_label(item))[-1:] or (1,) for item in items)[0])
    for item in items:
      labels = meaning[_label(item)]
      picture = session.add_image(f"{item.name}{Path(item.image).suffix}", read_bytes(item.image))
      if classes_in(labels):
        session.set_label(picture.key, labels, item.name)
    others = list_images(root / UNLABELED, recursive=True) if (root / UNLABELED).is_dir() else {}
    for name, path in others.items():
      session.add_image(f"{name}{Path(path).suffix}", read_bytes(path))
    return len(items) + len(others)


def _label(item: Item) -> UInt8[np.ndarray, "h w"]:
  """Reads the label map of an image, once the headers of both say that they have the same number of pixels.

  Raises:
    InputError: they differ, or a file cannot be read.
  """
  image, label = (open_image(read_bytes(path), item.name).size for path in (item.image, item.label))
  if sorted(image) != sorted(label):
    raise InputError(f"{item.name}: found a label of {label[0]} x {label[1]} pixels, expected {image[0]} x {image[1]}")
  return read_labels(item.label, LabelFormat())


def _adopt_classes(session: Session, root: Path, needed: int) -> UInt8[np.ndarray, "256"]:
  """Gives the classes of an archive a place among those of the session: by their names, if the archive has them.

  Returns:
    The class of the session for each class of the archive.
  """
  path = root / CLASSES_FILE
  if path.is_file() and (size := path.stat().st_size) > _MOST_NAMES_BYTES:
    raise InputError(f"archive: {CLASSES_FILE}: found {size} bytes, expected at most {_MOST_NAMES_BYTES}")
  stated = [line.strip() for line in read_text(path).splitlines() if line.strip()] if path.is_file() else []
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
  """Refuses a zip file with a list of contents that would take much memory, before it is read.

  Raises:
    TooLargeError: it lists too many files.
  """
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
    kind: "masks" (images/ and labels/ with class indices), "coco" (images/ and annotations.json) or "labelme" (images/
      and labelme/NAME.json).
    target: the new zip file.

  Raises:
    InputError: no image has a label or an answer.
  """
  with _packing(target) as folder:
    queries, entries, options = [], {}, AnnotationOptions(tuple(session.classes), root=folder / "images")
    for picture, prediction in answered(session):
      query = _copy(picture, folder)
      queries.append(query)
      if kind == "masks":
        write_png(folder / "labels" / f"{picture.name}.png", prediction.labels)
      else:
        entries[query.name] = annotation_files.write(folder, query, prediction, [kind], options)
    if not queries:
      raise InputError("download: found no label and no answer, expected at least one")
    if kind == "coco":
      annotation_files.finish(folder, queries, entries, [kind], options)
      shutil.rmtree(folder / "coco")  # its parts are in annotations.json
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in session.classes), "utf-8")


def _copy(picture: Picture, folder: Path) -> Query:
  path = folder / "images" / f"{picture.name}{picture.path.suffix}"
  path.parent.mkdir(exist_ok=True)
  shutil.copyfile(picture.path, path)
  return Query(picture.name, path, None, ())


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
