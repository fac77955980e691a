"""The images of a project and the labels drawn on them, in the folder of the project.

In: files and label maps. Out: images with labels and the names of their classes. All of it is on the disk before a
method returns. Nothing here knows about HTTP, about answers or about the network.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app import pictures, project_files
from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.pictures import LABEL_MAPS, Picture, SessionLimits, Settings, UnknownError
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError, naming
from seggpt_jax.files import write_whole
from seggpt_jax.formats.images import decode_image, read_bytes, upright_size
from seggpt_jax.formats.labels import classes_in, read_labels
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.palette import IGNORE
from seggpt_jax.prepare.writers import as_stored

DEMO_CLASS = "copper"  # of the ready examples


class Labeling:
  """The images and labels of a project. All methods may be called from any thread.

  Args:
    folder: folder of the project; it is created if it is missing.
    limits: the limits.
    learned_classes: names of the classes of a learned prompt, if the page starts with one; they can be renamed only.

  Attributes:
    pictures: the images by their keys, in the order of their names.
    classes: names of classes 1, 2, ...
    settings: how images are answered, and the colors of classes.
    needs_examples: whether images are answered by examples; False for a learned prompt.
    is_new: whether the folder was empty.
    demo: whether the images are the ready examples, which make room for the first image of the user.
    learned_from: number of the first training run whose classes are those of the project.
    scratch: folder for what can be made again.
  """

  def __init__(self, folder: Path, limits: SessionLimits | None = None, learned_classes: Sequence[str] = ()):
    self.folder, self._limits, self.scratch = folder, limits or SessionLimits(), folder / project_files.SCRATCH
    self.lock = threading.RLock()
    self.pictures: dict[str, Picture] = {}
    self._learned_classes = list(learned_classes)
    self.classes = self._learned_classes or ["object"]
    self.settings, self.needs_examples, self.changes = Settings(), not learned_classes, 0
    project_files.finish_relabeling(folder)
    stored, names = project_files.read_settings(folder), project_files.read_classes(folder)
    self.classes = [*names, *self.classes[len(names) :]]
    with naming(str(folder / project_files.SETTINGS_FILE)):
      self.settings = Settings().changed(stored.get("settings", {}))
    self.is_new, self.demo = "demo" not in stored, stored.get("demo") is True
    self.learned_from = stored.get("learned_from", 1)
    for picture in project_files.read_pictures(folder, len(self.classes)):
      self._add(picture)

  def _stored(self) -> dict[str, Any]:
    """Returns what is kept of the project besides its images, labels and names of classes."""
    every = self.pictures.values()
    return {
      "settings": self.settings.model_dump(),
      "unseen": {each.name: each.unseen for each in every if each.unseen},
      "done": [each.name for each in every if each.done],
      "demo": self.demo,
      "learned_from": self.learned_from,
    }

  def _save(self) -> None:
    project_files.write_settings(self.folder, self._stored())

  def _set_classes(self, names: list[str]) -> None:
    project_files.write_classes(self.folder, names)
    self.classes = names
    self.changes += 1

  def _ask_again(self) -> None:
    """Is called when the images need other answers."""

  def _labels_changed(self) -> None:
    if self.needs_examples:
      self._ask_again()

  def _touch(self, picture: Picture) -> None:
    self.changes += 1
    picture.changed = self.changes

  def _label_path(self, picture: Picture) -> Path:
    return self._path(project_files.LABELS, picture.name)

  def _draft_path(self, picture: Picture) -> Path:
    return self._path(project_files.DRAFTS, picture.name)

  def _answer_path(self, key: str) -> Path:
    return self.scratch / "answers" / f"{key}.png"

  # --------------------------------------------------------------------------------------------------------- images

  def add_image(self, name: str, data: bytes, demo: bool = False) -> Picture:
    """Stores an image.

    Args:
      name: path that the user knows the image by; a number is added if it is taken.
      data: content of the file.
      demo: whether it is one of the ready examples; any other image takes their place.

    Raises:
      TooLargeError: the image has too many pixels, or the session too many images or bytes.
      InputError: the file is not an image that the package reads.
    """
    shown = pictures.clean_name(name)
    pictures.check_header(data, shown, self._limits.pixels)
    size = upright_size(data, shown)
    data, ending = as_stored(data, shown)
    with self.lock:
      if not demo:
        self.leave_demo()
      if len(self.pictures) >= self._limits.images:
        raise TooLargeError(
          f"{shown}: found {len(self.pictures)} images before it, expected at most {self._limits.images}"
        )
      used = sum(each.num_bytes for each in self.pictures.values())
      if used + len(data) > self._limits.total_bytes:
        raise TooLargeError(
          f"{shown}: no room, expected at most {self._limits.total_bytes >> 20} MiB of images together"
        )
      # Random, as browsers keep pictures by their address, and another project must not have the same addresses.
      key, name = secrets.token_hex(8), self._free_name(shown.removesuffix(Path(shown).suffix))
      path = self._path(project_files.UNLABELED, name, ending)
      write_whole(path, lambda file: file.write(data))
      return self._add(Picture(key, name, path, size, len(data)))

  def _add(self, picture: Picture) -> Picture:
    self._touch(picture)
    every = [*self.pictures.values(), picture]
    self.pictures = {each.key: each for each in sorted(every, key=lambda each: pictures.in_order(each.name))}
    return picture

  def start_demo(self) -> None:
    """Notes that the images that come now are the ready examples, if there are no others."""
    with self.lock:
      self.demo = self.demo or not self.pictures
      self._save()

  def leave_demo(self) -> None:
    """Removes the ready examples and their class, if nothing else is there."""
    with self.lock:
      if self.demo:
        names = [name for name in self.classes if name != DEMO_CLASS]
        self.clear(keep=True)
        self.settings = self.settings.changed({"network": "start"})
        self._set_classes(self._learned_classes or names or ["object"])

  def _path(self, kind: str, name: str, ending: str = ".png") -> Path:
    return self.folder / kind / f"{name}{ending}"

  def _free_name(self, name: str) -> str:
    taken = {each.name.lower() for each in self.pictures.values()}
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    return name if name.lower() not in taken else next(each for each in numbered if each.lower() not in taken)

  def find(self, key: str) -> Picture:
    """Returns an image.

    Raises:
      UnknownError: this session has no such image.
    """
    picture = self.pictures.get(key)
    if picture is None:
      raise UnknownError("image: not found in this session")
    return picture

  def remove(self, key: str) -> None:
    """Deletes an image with its label and answer."""
    with self.lock:
      picture = self.find(key)
      # The label first: an image without one is read again after a kill, a label without its image would be an error.
      self._answer_path(key).unlink(missing_ok=True)
      for path in (self._label_path(picture), self._draft_path(picture), picture.path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
          project_files.remove_empty(path.parent, self.folder)
      del self.pictures[key]
      self.changes += 1
      if picture.label:
        self._labels_changed()

  def clear(self, keep: bool = False) -> None:
    """Deletes all images with their labels and answers.

    Args:
      keep: whether the names of the classes and the settings stay as they are.
    """
    with self.lock:
      for key in list(self.pictures):
        self.remove(key)
      if not keep:
        self._set_classes(self._learned_classes or ["object"])
        self.settings = Settings()
      self.demo = False
      self._save()
      self._ask_again()

  def image_bytes(self, key: str) -> bytes:
    """Returns the file of an image, which a label may move at any moment."""
    with self.lock:
      return read_bytes(self.find(key).path)

  def pixels(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an image."""
    return decode_image(self.image_bytes(key), self.find(key).name)

  # --------------------------------------------------------------------------------------------------------- labels

  def set_label(self, key: str, labels: UInt8[np.ndarray, "h w"], where: str = "label") -> None:
    """Stores the label of an image, which makes it an example: all others are answered again.

    Args:
      key: the image.
      labels: class indices.
      where: name of the label map, for messages.

    Raises:
      InputError: the label has another size than the image, shows no class, or a class without a name.
    """
    picture = self.find(key)
    check_size(labels, picture.size, where)
    with self.lock:
      holds, new = classes_in(labels), not picture.label
      if not holds:
        raise InputError(f"{where}: found no class in it, expected at least one object")
      if holds[-1] > len(self.classes):
        raise InputError(f"{where}: found class {holds[-1]}, expected at most {len(self.classes)}, the named classes")
      write_png(self._label_path(picture), labels, replace=True)
      picture.path = project_files.move(self.folder, picture.name, picture.path, project_files.IMAGES)
      self._note_label(picture, labels)
      self._look(picture, () if new else set(picture.unseen) - set(holds))
      self.clear_draft(key)
      self._labels_changed()

  def _note_label(self, picture: Picture, labels: UInt8[np.ndarray, "h w"]) -> None:
    self._touch(picture)
    picture.label, picture.holds = self.changes, classes_in(labels)

  def clear_label(self, key: str) -> None:
    """Deletes the label of an image, which is answered again like the others."""
    with self.lock:
      picture = self.find(key)
      self._label_path(picture).unlink(missing_ok=True)
      self._forget_label(picture)
      self.clear_draft(key)
      self._labels_changed()

  def _forget_label(self, picture: Picture) -> None:
    picture.path = project_files.move(self.folder, picture.name, picture.path, project_files.UNLABELED)
    picture.label, picture.holds = 0, ()
    self._look(picture, ())
    self._touch(picture)

  def set_draft(self, key: str, labels: UInt8[np.ndarray, "h w"]) -> None:
    """Stores what is drawn on an image and not in use yet.

    Raises:
      InputError: it has another size than the image.
    """
    picture = self.find(key)
    check_size(labels, picture.size, "draft")
    with self.lock:
      if key in self.pictures:
        write_png(self._draft_path(picture), labels, replace=True)
        self._touch(picture)
        picture.draft = self.changes

  def look(self, key: str, index: int) -> None:
    """Notes that somebody has looked for a class in an example, which shows none of it where it is not drawn."""
    with self.lock:
      picture = self.find(key)
      self._look(picture, set(picture.unseen) - {index})
      self._labels_changed()

  def _look(self, picture: Picture, unseen: Iterable[int]) -> None:
    if picture.unseen != (unseen := tuple(sorted(unseen))):
      picture.unseen = unseen
      self._touch(picture)
      self._save()

  def clear_draft(self, key: str) -> None:
    """Deletes what is drawn on an image and not in use yet."""
    with self.lock:
      picture = self.find(key)
      self._draft_path(picture).unlink(missing_ok=True)
      if picture.draft:
        picture.draft = 0
        self._touch(picture)

  def draft(self, key: str) -> UInt8[np.ndarray, "h w"]:
    """Returns what is drawn on an image and not in use yet.

    Raises:
      UnknownError: there is nothing.
    """
    if not self.find(key).draft:
      raise UnknownError("draft: this image has none")
    return read_labels(self._draft_path(self.find(key)), LABEL_MAPS)

  @property
  def examples(self) -> list[Picture]:
    """The labeled images, the newest label last."""
    with self.lock:
      return [each for each in self.pictures.values() if each.label]

  def label(self, key: str) -> UInt8[np.ndarray, "h w"]:
    """Returns the label of an image.

    Raises:
      UnknownError: the image has none.
    """
    with self.lock:
      if not self.find(key).label:
        raise UnknownError("label: this image has none")
      return read_labels(self._label_path(self.find(key)), LABEL_MAPS)

  def set_classes(self, names: Any) -> None:
    """Sets the names of classes 1, 2, ...

    Raises:
      InputError: a name is empty, too long or given twice, or a class of a label would lose its name.
    """
    names = pictures.class_names(names)
    with self.lock:
      if len(names) < self.least_classes:
        why = "labels show that many" if self.needs_examples else "the learned prompt has that many"
        raise InputError(f"classes: found {len(names)} names, expected {self.least_classes}: {why}")
      for each in self.examples:  # nobody has looked for the new classes in them
        self._look(each, {*each.unseen, *range(len(self.classes) + 1, len(names) + 1)} & {*range(len(names) + 1)})
      self._set_classes(names)

  def check_class(self, index: int) -> None:
    """Raises InputError for a number that no class has."""
    if not 1 <= index <= len(self.classes):
      raise InputError(f"class: found {index}, expected an integer from 1 to {len(self.classes)}")

  def remove_class(self, index: int, ignore: bool = False) -> None:
    """Removes a class. Its pixels in labels and drafts become background, or are ignored; later classes move up.

    Args:
      index: the class.
      ignore: whether its pixels are ignored.

    Raises:
      InputError: it is the only class, or one of the learned prompt.
    """
    with self.lock:
      self.check_class(index)
      if len(self.classes) == 1 or index <= len(self._learned_classes):
        why = "one of the learned prompt, which can be renamed" if self._learned_classes else "the only one"
        raise InputError(f"class: found {why}, expected another one to remove")

      def without(each: Picture) -> tuple[int, ...]:
        return tuple(other - (other > index) for other in each.unseen if other != index)

      every, settings = self.pictures.values(), self.settings.without_class(index)
      first_run = 1 + max(map(int, project_files.run_numbers(self.folder)), default=0)
      stored = self._stored() | {"settings": settings.model_dump(), "learned_from": first_run}
      stored["unseen"] = {each.name: without(each) for each in every if without(each)}
      labeled = sorted(self.examples, key=lambda each: each.label)
      drafts = [each for each in every if each.draft]
      paths = [*map(self._label_path, labeled), *map(self._draft_path, drafts)]
      names = [*self.classes[: index - 1], *self.classes[index:]]
      project_files.relabel(self.folder, paths, index, IGNORE if ignore else 0, names, stored)
      self.classes, self.settings, self.learned_from = names, settings, first_run
      for each in every:
        each.unseen = without(each)
      for each in labeled:  # in their order, as the newest labels are the first examples
        if self._label_path(each).exists():
          self._note_label(each, self.label(each.key))
        else:
          self._forget_label(each)
      for each in drafts:
        self._touch(each)
        each.draft = self.changes
      self._ask_again()

  @property
  def least_classes(self) -> int:
    """Number of classes that need a name: classes of the labels and of the learned prompt."""
    return max([len(self._learned_classes), *(each.holds[-1] for each in self.pictures.values() if each.holds)])
