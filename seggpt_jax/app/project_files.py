"""The folder of a project of the page: a dataset that every command reads, and what the page keeps with it.

PROJECT/
  classes.txt                  names of classes 1, 2, ..., one a line
  train/images, train/labels   images with a label, and their class indices
  unlabeled/                   all other images
  drafts/                      labels that are drawn and not in use yet
  learned/N/run                training runs
  project.json                 settings

An image is moved to train/images when it gets a label. A kill between two of these steps leaves a label or an image
alone, which the next start completes. `.scratch` holds what can be made again, and is deleted at the end.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seggpt_jax.app.pictures import LABEL_MAPS, Picture
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError
from seggpt_jax.files import cache_folder, parse_json, refuse_remote, remove_leftovers, write_whole
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_bytes, read_text, upright_size
from seggpt_jax.formats.labels import classes_in, read_labels
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.palette import IGNORE
from seggpt_jax.written import RECORD, open_record

IMAGES, LABELS, UNLABELED, DRAFTS = "train/images", "train/labels", "unlabeled", "drafts"
LEARNED, CLASSES_FILE, SCRATCH, _RELABELED = "learned", "classes.txt", ".scratch", ".relabeled"
SETTINGS_FILE = "project.json"
_FORM = {"seggpt_project": 1}  # tells the folders that belong to the page
_ENDINGS = (".jpg", ".png")  # that the page stores


def default_folder() -> str:
  """Returns the folder of the project that the page opens when no other is named."""
  data = os.environ.get("XDG_DATA_HOME", "")
  return os.path.join(data if os.path.isabs(data) else "~/.local/share", "seggpt", "project")


def create_project(path: str | os.PathLike) -> Path:
  """Creates the folder of a project, if it is missing, and returns it.

  Raises:
    InputError: there is something else, or it cannot be written.
  """
  refuse_remote("PROJECT", path)
  folder = Path(path).expanduser()
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder}: is a file, expected the folder of a project, or a new one")
  others = [] if not folder.is_dir() else [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
  if others and SETTINGS_FILE not in others:
    raise InputError(f"{folder}: found {others[0]}, expected a project, or a new or empty folder")
  folder = cache_folder(folder)
  if not others:
    write_settings(folder, {})
  read_settings(folder)
  return folder


def read_settings(folder: Path) -> dict[str, Any]:
  """Reads what `write_settings` has written; nothing of a folder without it.

  Raises:
    InputError: the file is from something else.
  """
  path = folder / SETTINGS_FILE
  try:
    found = parse_json(path.read_bytes()) if path.exists() else _FORM
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON, expected the settings of a project") from error
  if not isinstance(found, dict) or found.get("seggpt_project") != 1:
    raise InputError(f"{path}: found no seggpt_project of 1, expected the settings of a project")
  return found


def write_settings(folder: Path, values: dict[str, Any]) -> None:
  """Writes the settings of a project."""
  data = json.dumps(_FORM | values, indent=1).encode() + b"\n"
  write_whole(folder / SETTINGS_FILE, lambda file: file.write(data), replace=True)


def write_classes(folder: Path, names: list[str]) -> None:
  """Writes the names of classes."""
  data = "".join(f"{name}\n" for name in names).encode()
  write_whole(folder / CLASSES_FILE, lambda file: file.write(data), replace=True)


def read_classes(folder: Path) -> list[str]:
  """Returns the names of classes 1, 2, ...; none if there is no file of them."""
  path = folder / CLASSES_FILE
  return read_text(path).splitlines() if path.is_file() else []


def read_pictures(folder: Path, num_classes: int) -> list[Picture]:
  """Completes what a kill has interrupted, and reads the images of a project with their labels.

  Args:
    folder: the project.
    num_classes: number of classes that have a name.

  Raises:
    InputError: an image or label cannot be read, or they do not fit.
  """
  (folder / SCRATCH).mkdir(parents=True, mode=0o700, exist_ok=True)
  if not (folder / RECORD).exists():
    open_record(folder)
  remove_leftovers(folder, IMAGES, LABELS, UNLABELED, DRAFTS)
  stored, drafts, labels = read_settings(folder), listed(folder, DRAFTS), listed(folder, LABELS)
  pictures = {}
  for name, path in sorted((listed(folder, UNLABELED) | listed(folder, IMAGES)).items()):
    path = move(folder, name, path, IMAGES if name in labels else UNLABELED)
    data = read_bytes(path)
    pictures[name] = Picture(secrets.token_hex(8), name, path, upright_size(data, str(path)), len(data))
    pictures[name].draft, pictures[name].done = int(name in drafts), name in stored.get("done", ())
  by_time = sorted(labels.keys() & pictures.keys(), key=lambda name: labels[name].stat().st_mtime_ns)
  for place, name in enumerate(by_time):
    picture, read = pictures[name], read_labels(labels[name], LABEL_MAPS)
    check_size(read, picture.size, str(labels[name]))
    picture.label, picture.holds = place + 1, classes_in(read)
    picture.unseen = tuple(stored.get("unseen", {}).get(name, ()))
    if (last := max(picture.holds, default=0)) > num_classes:
      raise InputError(
        f"{labels[name]}: found class {last}, expected at most {num_classes}, the names in {CLASSES_FILE}"
      )
  return list(pictures.values())


def relabel(
  folder: Path, paths: Iterable[Path], removed: int, becomes: int, names: list[str], settings: dict[str, Any]
) -> None:
  """Removes a class from label maps, with the names and settings that go with it: all of it or nothing.

  Args:
    folder: the project.
    paths: the label maps. A label that shows no class any more is deleted; a draft stays.
    removed: the class; later ones move up.
    becomes: the value of its pixels.
    names: names of the other classes.
    settings: settings of the project.
  """
  staged = folder / SCRATCH / "staged"
  shutil.rmtree(staged, ignore_errors=True)
  for path in paths:
    target, labels = staged / path.relative_to(folder), read_labels(path, LABEL_MAPS)
    later = (labels > removed) & (labels != IGNORE)
    labels = np.where(labels == removed, np.uint8(becomes), labels - later)
    target.parent.mkdir(parents=True, exist_ok=True)
    if classes_in(labels) or path.is_relative_to(folder / DRAFTS):
      write_png(target, labels, replace=True)
    else:
      target.touch()
  staged.mkdir(parents=True, exist_ok=True)
  write_classes(staged, names)
  write_settings(staged, settings)
  os.rename(staged, folder / _RELABELED)  # from here on, the next start completes it after a kill
  finish_relabeling(folder)


def finish_relabeling(folder: Path) -> None:
  """Moves what `relabel` has prepared to its place, if there is something."""
  for path in sorted((folder / _RELABELED).rglob("*")):
    target = folder / path.relative_to(folder / _RELABELED)
    if path.is_file() and path.stat().st_size:
      os.replace(path, target)
    elif path.is_file():
      target.unlink(missing_ok=True)
  shutil.rmtree(folder / _RELABELED, ignore_errors=True)


def run_numbers(folder: Path) -> list[str]:
  """Returns the numbers of the training runs of a project in their order."""
  names = (path.name for path in (folder / LEARNED).glob("*"))
  return sorted((name for name in names if name.isascii() and name.isdigit()), key=int)


def listed(folder: Path, kind: str) -> dict[str, Path]:
  """Returns the files of a kind by the names of their images."""
  found = list_images(folder / kind, recursive=True, problems=[]) if (folder / kind).is_dir() else {}
  return {name: Path(path) for name, path in found.items() if path.endswith(_ENDINGS)}


def move(folder: Path, name: str, path: Path, kind: str) -> Path:
  """Moves an image to where images of a kind are, and returns its new path."""
  target = folder / kind / f"{name}{path.suffix}"
  if target != path:
    if os.path.lexists(target):
      raise InputError(f"{target}: found {path} too, expected one file for each image")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, target)
    remove_empty(path.parent, folder)
  return target


def remove_empty(below: Path, folder: Path) -> None:
  """Removes folders that have become empty, up to that of the project."""
  while below != folder and not any(below.iterdir()):
    below.rmdir()
    below = below.parent
