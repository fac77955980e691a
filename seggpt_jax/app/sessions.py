"""The work on the page: images, labels drawn by hand, and the network's answers, in the folder of a project.

In: files and label maps. Out: the state that the page shows, and the examples and options that the network needs next.
All but the answers is on the disk before a method returns. Nothing here knows about HTTP or about the network.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app import choice, project_files
from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.pictures import LABEL_MAPS, Picture, UnknownError, check_header, clean_name, in_order
from seggpt_jax.app.settings import MOST_CLASSES, SessionLimits, Settings
from seggpt_jax.errors import InputError, naming, one_line
from seggpt_jax.files import is_plain_text, write_whole
from seggpt_jax.formats.images import decode_image, read_bytes, read_image, upright_size
from seggpt_jax.formats.labels import check_size, classes_in, read_labels
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.inference.prediction import Prediction, decode_prediction
from seggpt_jax.inference.prompts import without_ignored
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.palette import fixed_palette
from seggpt_jax.prepare.writers import as_stored

DEMO_CLASS = "copper"  # of the ready examples
_MOST_COMPARED = 64  # examples that an image is compared with: each is encoded once, in a tenth of a second or more
_MOST_NAME = 80  # characters of the name of a class


class Session:
  """The images, labels and answers of a project.

  All methods may be called from any thread.

  Args:
    folder: folder of the project; it is created if it is missing.
    limits: the limits.
    learned_classes: names of the classes of a learned prompt, if the page starts with one; they can be renamed only.

  Attributes:
    pictures: the images by their keys, in the order of their names.
    classes: names of classes 1, 2, ...
    settings: how images are answered.
    needs_examples: whether images are answered by examples; False for a learned prompt.
    round: counts the changes after which all images have to be answered again.
    first: key of the image that is answered first: the one on the screen.
    is_new: whether the folder was empty.
    demo: whether the images are the ready examples, which make room for the first image of the user.
    scratch: folder for what can be made again.
  """

  def __init__(self, folder: Path, limits: SessionLimits | None = None, learned_classes: Sequence[str] = ()):
    self.folder, self._limits, self.scratch = folder, limits or SessionLimits(), folder / project_files.SCRATCH
    self.id = secrets.token_hex(8)
    self.lock = threading.RLock()
    self.pictures: dict[str, Picture] = {}
    self._learned_classes = list(learned_classes)
    self.classes = self._learned_classes or ["object"]
    self.settings, self.needs_examples, self.demo = Settings(), not learned_classes, False
    self.round, self.changes, self.first = 1, 0, ""
    self._split = (0, 1)  # the round it was chosen for, and the split
    self._read()

  def _read(self) -> None:
    """Reads what is in the folder.

    Raises:
      InputError: a file was changed by hand and cannot be used.
    """
    stored = project_files.read_settings(self.folder)
    names = project_files.read_classes(self.folder)
    self.classes = [*names, *self.classes[len(names) :]]
    with naming(str(self.folder / project_files.SETTINGS_FILE)):
      self.settings = Settings().changed(stored.get("settings", {}))
    self.is_new, self.demo = "demo" not in stored, stored.get("demo") is True
    for picture in project_files.read_pictures(self.folder, len(self.classes)):
      self._add(picture)

  def _save(self) -> None:
    pictures = self.pictures.values()
    values = {"unseen": {each.name: each.unseen for each in pictures if each.unseen}}
    values |= {"done": [each.name for each in pictures if each.done], "demo": self.demo}
    project_files.write_settings(self.folder, {"settings": dataclasses.asdict(self.settings), **values})

  def _set_classes(self, names: list[str]) -> None:
    project_files.write_classes(self.folder, names)
    self.classes = names
    self.changes += 1

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
    shown = clean_name(name)
    check_header(data, shown, self._limits.pixels)
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
    pictures = [*self.pictures.values(), picture]
    self.pictures = {each.key: each for each in sorted(pictures, key=lambda each: in_order(each.name))}
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
        self.set_settings({"network": "start"})
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
      picture.path = project_files.move(self.folder, picture.name, picture.path, project_files.UNLABELED)
      picture.label, picture.holds = 0, ()
      self._look(picture, ())
      self.clear_draft(key)
      self._touch(picture)
      self._labels_changed()

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

  def set_done(self, key: str, done: bool) -> None:
    """Marks an image as done, or as not done."""
    with self.lock:
      self.find(key).done = done
      self._touch(self.find(key))
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

  def promote(self, key: str) -> None:
    """Takes the answer of an image over as its label, which makes it an example.

    Raises:
      UnknownError: the image has no answer.
      InputError: the answer shows no class.
    """
    with self.lock:
      self.set_label(key, self.answer(key).labels.astype(np.uint8), f"{self.find(key).name}: its answer")

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
    if not isinstance(names, list) or not 1 <= len(names) <= MOST_CLASSES:
      raise InputError(f"classes: expected a list of 1 to {MOST_CLASSES} names")
    names = [one_line(name) if isinstance(name, str) else "" for name in names]
    for place, name in enumerate(names):
      if not name or len(name) > _MOST_NAME or "," in name or name in names[:place] or not is_plain_text(name):
        raise InputError(
          f"classes: found {name[:_MOST_NAME]!a}, expected different names, not empty, without commas "
          "and control characters"
        )
    with self.lock:
      if len(names) < self.least_classes:
        why = "labels show that many" if self.needs_examples else "the learned prompt has that many"
        raise InputError(f"classes: found {len(names)} names, expected {self.least_classes}: {why}")
      for each in self.examples:  # nobody has looked for the new classes in them
        self._look(each, {*each.unseen, *range(len(self.classes) + 1, len(names) + 1)} & {*range(len(names) + 1)})
      self._set_classes(names)

  @property
  def least_classes(self) -> int:
    """Number of classes that need a name: classes of the labels and of the learned prompt."""
    return max([len(self._learned_classes), *(each.holds[-1] for each in self.pictures.values() if each.holds)])

  # -------------------------------------------------------------------------------------------------------- answers

  def set_settings(self, values: Mapping[str, Any]) -> None:
    """Changes how images are answered. Sensitivity and least area only decode answers again.

    Raises:
      InputError: a name or value is wrong.
    """
    with self.lock:
      before, self.settings = self.settings, self.settings.changed(values)
      self.changes += 1
      self._save()
      if before.shapes_answers != self.settings.shapes_answers:
        self._ask_again()

  def answer_by_examples(self, needs_examples: bool) -> None:
    """Notes whether the network in use needs examples. If that has changed, all images are answered again."""
    with self.lock:
      if self.needs_examples != needs_examples:
        self.needs_examples = needs_examples
        self._ask_again()

  def _labels_changed(self) -> None:
    """Lets all images be answered again if answers depend on labels."""
    if self.needs_examples:
      self._ask_again()

  def _ask_again(self) -> None:
    self.round += 1
    self.changes += 1
    for picture in self.pictures.values():
      picture.error = ""

  @property
  def examples(self) -> list[Picture]:
    """The labeled images, the newest label last."""
    with self.lock:
      return [each for each in self.pictures.values() if each.label]

  @property
  def chooses_alike(self) -> bool:
    """True if every image gets the examples most alike to it, as there are more than an answer uses."""
    with self.lock:
      alike = self.needs_examples and self.settings.choice == "alike"
      return alike and len(choice.usable(self.examples)) > len(self.chosen())

  def candidates(self) -> dict[str, PromptFiles]:
    """Returns the files of the examples that images are compared with, by key: the newest ones, and some of a class."""
    with self.lock:
      newest = sorted(choice.usable(self.examples), key=lambda each: each.label)[-_MOST_COMPARED:]
      compared = [self.find(key) for key in dict.fromkeys([*(each.key for each in newest), *self.chosen()])]
      return {each.key: PromptFiles(each.path, self._label_path(each), each.key) for each in compared}

  def chosen(self, scores: Mapping[str, float] | None = None) -> list[str]:
    """Returns the keys of the examples that an answer uses: they show every class in turn, the best of each first.

    Args:
      scores: score of each example by its key; by default the newest labels are best.
    """
    with self.lock:
      if not self.needs_examples:
        return []
      return choice.most_fitting(choice.usable(self.examples), self.settings.examples, scores)

  def options(self, base: InferenceOptions, tile: tuple[int, int]) -> InferenceOptions:
    """Returns the options for answers.

    Args:
      base: options that fit the network.
      tile: height and width of the network's input.
    """
    split = 1 if base.zoom else self.settings.split or self._split_that_shows(tile)
    return dataclasses.replace(base, split=split, flips=self.settings.flips, sensitivity=(), least_area=0)

  def _split_that_shows(self, tile: tuple[int, int]) -> int:
    """Returns the smallest split at which the network can see every class of the examples."""
    round_ = self.round
    if self._split[0] != round_:
      self._split = round_, choice.split_that_shows([without_ignored(self.label(key)) for key in self.chosen()], tile)
    return self._split[1]

  def waiting(self) -> list[str]:
    """Returns the keys of the images to answer, the one on the screen first."""
    with self.lock:
      if self.settings.paused or (self.needs_examples and not self.examples):
        return []
      left = [p.key for p in self.pictures.values() if not p.label and not p.error and p.answer != self.round]
      return sorted(left, key=lambda key: key != self.first)

  def put_answer(self, key: str, round_: int, prediction: Prediction, used: Sequence[str] = ()) -> None:
    """Stores an answer and the examples it used. One of an earlier round is shown until the next one comes."""
    with self.lock:
      picture = self.pictures.get(key)
      # That of an image labeled meanwhile is not needed, and must not make its label the newest one.
      if picture is not None and not picture.label and round_ >= picture.answer:
        write_png(self._answer_path(key), prediction.colors, replace=True)
        picture.answer, picture.classes, picture.error = round_, prediction.classes, ""
        picture.shows = classes_in(prediction.labels.astype(np.uint8))
        picture.sure = float(prediction.confidence().mean())
        picture.used = tuple(used)
        self._touch(picture)

  def put_error(self, key: str, round_: int, message: str) -> None:
    """Notes that an image cannot be answered."""
    with self.lock:
      if key in self.pictures and not self.pictures[key].label and round_ == self.round:
        self.pictures[key].error = one_line(message)[:300]
        self._touch(self.pictures[key])

  def answer(self, key: str) -> Prediction:
    """Returns the answer of an image, decoded with the settings.

    Raises:
      UnknownError: the image has no answer.
    """
    picture = self.find(key)
    if not picture.answer:
      raise UnknownError("answer: this image has none yet")
    classes = np.array(picture.classes)
    return decode_prediction(
      read_image(self._answer_path(key)),
      fixed_palette(max(2, int(classes[-1]) + 1)),
      classes,
      sensitivity=self.settings.sensitivity[: int(classes[-1])],
      least_area=self.settings.least_area,
    )

  def result(self, key: str) -> Prediction | None:
    """Returns the label of an image as a prediction of full confidence, or else its answer; None without both."""
    picture = self.find(key)
    if not picture.label:
      return self.answer(key) if picture.answer else None
    labels = without_ignored(self.label(key))
    palette = fixed_palette(len(self.classes) + 1)
    return Prediction(labels, palette[labels], palette, tuple(range(len(palette))))

  # ---------------------------------------------------------------------------------------------------------- state

  def _touch(self, picture: Picture) -> None:
    self.changes += 1
    picture.changed = self.changes

  def _label_path(self, picture: Picture) -> Path:
    return self._path(project_files.LABELS, picture.name)

  def _draft_path(self, picture: Picture) -> Path:
    return self._path(project_files.DRAFTS, picture.name)

  def _answer_path(self, key: str) -> Path:
    return self.scratch / "answers" / f"{key}.png"

  def as_json(self, since: int = 0) -> dict[str, Any]:
    """Returns the state for the page; for images, only images that changed since a count of changes."""
    with self.lock:
      others = [each for each in self.pictures.values() if not each.label]
      answered = sum(each.answer == self.round or bool(each.error) for each in others)
      settings = dataclasses.asdict(self.settings)
      return {
        "session": self.id,  # differs from that of every other start, and opens nothing
        "changes": self.changes,
        "round": self.round,
        "classes": self.classes,
        "settings": {**settings, "sensitivity": list(self.settings.sensitivity)},
        "examples": list(self.candidates()) if self.chooses_alike else self.chosen(),
        "needs_examples": self.needs_examples,
        "order": list(self.pictures),
        "images": [each.as_json() for each in self.pictures.values() if each.changed > since],
        "progress": {"answered": answered, "total": len(others)},
      }

  def close(self) -> None:
    """Deletes what can be made again; the project stays."""
    project_files.end(self.folder)
