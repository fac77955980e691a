"""One person's work on the page: images, labels drawn by hand, and the network's answers, in a temporary folder.

In: files and label maps. Out: the state that the page shows, and the examples and options that the network needs next.
Nothing here knows about HTTP or about the network.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.settings import MOST_CLASSES, SessionLimits, Settings
from seggpt_jax.data.images import open_image, read_image, upright_size
from seggpt_jax.data.labels import LabelFormat, classes_in, read_labels
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import is_plain_text, plain_name, write_whole
from seggpt_jax.inference import tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.inference.prediction import Prediction, decode_prediction
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.palette import fixed_palette
from seggpt_jax.prepare.encoding import as_stored
from seggpt_jax.retrieval.every_class import in_turn

_AUTO_EXAMPLES, _AUTO_SPLIT = 4, 3  # largest values that are chosen automatically
_MOST_COMPARED = 64  # examples that an image is compared with: each is encoded once, in a tenth of a second or more
_MOST_NAME = 80  # characters of the name of an image or a class
_MOST_NAME_BYTES = 200  # of the name of an image; a file name has 255, and gets endings and numbers
_UNSAFE = re.compile(r"[^\w .,()+=@-]")


class UnknownError(LookupError):
  """A session, an image or an answer does not exist. The message is one line for the user."""


@dataclasses.dataclass
class Picture:
  """An image of a session.

  Attributes:
    key: name in addresses and of its files.
    name: name that people see, without ending; different from those of all other images.
    path: the stored image file.
    size: height and width in pixels.
    num_bytes: size of the stored file.
    label: version of its label, drawn by hand or taken over from an answer; 0 if it has none.
    holds: classes of its label.
    answer: round of its answer; 0 if it has none.
    classes: classes that its answer was decoded to.
    used: keys of the examples that its answer used.
    error: why it could not be answered.
    changed: count of the session's changes when it last changed.
  """

  key: str
  name: str
  path: Path
  size: tuple[int, int]
  num_bytes: int
  label: int = 0
  holds: tuple[int, ...] = ()
  answer: int = 0
  classes: tuple[int, ...] = (0,)
  used: tuple[str, ...] = ()
  error: str = ""
  changed: int = 0

  def as_json(self) -> dict[str, Any]:
    """Returns what the page shows of the image."""
    height, width = self.size
    state = {"label": self.label, "answer": self.answer, "error": self.error, "changed": self.changed}
    state |= {"holds": list(self.holds), "used": list(self.used)}
    return {"key": self.key, "name": self.name, "height": height, "width": width, **state}


class Session:
  """One person's images, labels and answers.

  All methods may be called from any thread.

  Args:
    folder: folder for the session's files; it is created, and deleted with the session.
    limits: the limits.
    learned_classes: names of the classes of a learned prompt, if the page starts with one; they can be renamed only.

  Attributes:
    pictures: the images by their keys, in the order of their names.
    classes: names of classes 1, 2, ...
    settings: how images are answered.
    needs_examples: whether images are answered by examples; False for a learned prompt.
    round: counts the changes after which all images have to be answered again.
    first: key of the image that is answered first: the one on the screen.
    used: time of the last request.
    has_work: whether its owner has labeled something, which lasts until the owner ends the session or stays away.
  """

  def __init__(self, folder: Path, limits: SessionLimits | None = None, learned_classes: Sequence[str] = ()):
    self.folder, self._limits = folder, limits or SessionLimits()
    for name in ("images", "labels", "answers", "features"):
      (folder / name).mkdir(parents=True, mode=0o700)
    self.lock = threading.RLock()
    self.pictures: dict[str, Picture] = {}
    self._learned_classes = list(learned_classes)
    self.classes = self._learned_classes or ["object"]
    self.settings, self.needs_examples = Settings(), not learned_classes
    self.round, self.changes, self.first = 1, 0, ""
    self.used = time.monotonic()
    self.has_work = False
    self._split = (0, 1)  # the round it was chosen for, and the split

  # --------------------------------------------------------------------------------------------------------- images

  def add_image(self, name: str, data: bytes) -> Picture:
    """Stores an image.

    Args:
      name: file name that the user knows the image by; a number is added if it is taken.
      data: content of the file.

    Raises:
      TooLargeError: the image has too many pixels, or the session too many images or bytes.
      InputError: the file is not an image that the package reads.
    """
    shown = clean_name(name)
    check_header(data, shown, self._limits.pixels)
    size = upright_size(data, shown)
    data, ending = as_stored(data, shown)
    with self.lock:
      if len(self.pictures) >= self._limits.images:
        raise TooLargeError(
          f"{shown}: found {len(self.pictures)} images before it, expected at most {self._limits.images}"
        )
      used = sum(each.num_bytes for each in self.pictures.values())
      if used + len(data) > self._limits.total_bytes:
        raise TooLargeError(
          f"{shown}: no room, expected at most {self._limits.total_bytes >> 20} MiB of images together"
        )
      # Random, as browsers keep pictures by their address, and another session must not have the same addresses.
      key = secrets.token_hex(8)
      path = self.folder / "images" / f"{key}{ending}"
      write_whole(path, lambda file: file.write(data), replace=True)
      picture = Picture(key, self._free_name(Path(shown).stem or key), path, size, len(data))
      self.pictures[key] = picture
      self._touch(picture)
      return picture

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
      for path in (picture.path, self._label_path(key), self._answer_path(key)):
        path.unlink(missing_ok=True)
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
      for path in (self.folder / "features").iterdir():
        path.unlink(missing_ok=True)
      if not keep:
        self.classes, self.settings = self._learned_classes or ["object"], Settings()
      self._ask_again()

  def pixels(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an image."""
    return read_image(self.find(key).path)

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
      holds = classes_in(labels)
      if not holds:
        raise InputError(f"{where}: found no class in it, expected at least one object")
      if holds[-1] > len(self.classes):
        raise InputError(f"{where}: found class {holds[-1]}, expected at most {len(self.classes)}, the named classes")
      write_png(self._label_path(key), labels, replace=True)
      picture.label, picture.holds, self.has_work = picture.label + 1, holds, True
      self._touch(picture)
      self._labels_changed()

  def clear_label(self, key: str) -> None:
    """Deletes the label of an image, which is answered again like the others."""
    with self.lock:
      picture = self.find(key)
      self._label_path(key).unlink(missing_ok=True)
      picture.label, picture.holds = 0, ()
      self._touch(picture)
      self._labels_changed()

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
    if not self.find(key).label:
      raise UnknownError("label: this image has none")
    return read_labels(self._label_path(key), LabelFormat())

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
      self.classes = names
      self.changes += 1

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
      if before.shapes_answers != self.settings.shapes_answers:
        self._ask_again()

  def ask_again(self) -> None:
    """Lets all images be answered again, as by another network."""
    with self.lock:
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
      return alike and len(self.examples) > len(self.chosen())

  def candidates(self) -> dict[str, PromptFiles]:
    """Returns the files of the examples that images are compared with, by key: the newest ones, and some of a class."""
    with self.lock:
      newest = sorted(self.examples, key=lambda each: each.changed)[-_MOST_COMPARED:]
      compared = [self.find(key) for key in dict.fromkeys([*(each.key for each in newest), *self.chosen()])]
      return {each.key: PromptFiles(each.path, self._label_path(each.key), each.key) for each in compared}

  def chosen(self, scores: Mapping[str, float] | None = None) -> list[str]:
    """Returns the keys of the examples that an answer uses: they show every class in turn, the best of each first.

    Args:
      scores: score of each example by its key; by default the newest labels are best.
    """
    with self.lock:
      if not self.needs_examples:
        return []
      examples = self.examples if scores is None else [each for each in self.examples if each.key in scores]
      holds = np.zeros((len(examples), MOST_CLASSES + 1), bool)
      for place, each in enumerate(examples):
        holds[place, list(each.holds)] = True
      best = np.array([each.changed if scores is None else scores[each.key] for each in examples], np.float64)
      count = self.settings.examples or max(_AUTO_EXAMPLES, int(holds.any(axis=0).sum()))
      # A rare class has fewer images than its turns; the best of all fill the rest.
      places = dict.fromkeys([*in_turn(holds, best, count), *np.argsort(-best, kind="stable").tolist()])
      return [examples[place].key for place in list(places)[:count]]

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
      labels = [self.label(key) for key in self.chosen()]
      shown = (
        split
        for split in range(1, _AUTO_SPLIT)
        if not any(tiling.small_classes(each, (split * tile[0], split * tile[1])) for each in labels)
      )
      self._split = round_, next(shown, _AUTO_SPLIT)
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
    labels = self.label(key)
    palette = fixed_palette(len(self.classes) + 1)
    return Prediction(labels, palette[labels], palette, tuple(range(len(palette))))

  def confidence(self, key: str) -> Float[np.ndarray, "h w"]:
    """Returns the confidence of an answer; see `Prediction.confidence`."""
    return self.answer(key).confidence()

  # ---------------------------------------------------------------------------------------------------------- state

  def _touch(self, picture: Picture) -> None:
    self.changes += 1
    picture.changed = self.changes

  def _label_path(self, key: str) -> Path:
    return self.folder / "labels" / f"{key}.png"

  def _answer_path(self, key: str) -> Path:
    return self.folder / "answers" / f"{key}.png"

  def as_json(self, since: int = 0) -> dict[str, Any]:
    """Returns the state for the page; for images, only images that changed since a count of changes."""
    with self.lock:
      others = [each for each in self.pictures.values() if not each.label]
      answered = sum(each.answer == self.round or bool(each.error) for each in others)
      settings = dataclasses.asdict(self.settings)
      return {
        "session": self.folder.name,  # differs from that of every other session, and opens none
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
    """Deletes all files of the session."""
    shutil.rmtree(self.folder, ignore_errors=True)


def check_header(data: bytes, where: str, most_pixels: int) -> None:
  """Compares the pixels that the header of an image file states with a limit, before any is decoded.

  Raises:
    TooLargeError: there are more.
    InputError: the file is not an image.
  """
  width, height = open_image(data, where).size
  if width * height > most_pixels:
    raise TooLargeError(
      f"{where}: found {width} x {height} pixels, expected at most {most_pixels / 1e6:g} million pixels"
    )


def clean_name(name: str) -> str:
  """Returns the path that a browser names as one file name: `cam1/001.png` becomes `cam1_001.png`.

  Of a path from a root only the last name counts. Characters that a file name should not have become `_`, and what is
  too long loses its start.
  """
  path = plain_name(name)
  *folders, last = [part for part in path.split("/") if part.strip(" .")] or ["image"]
  if path.startswith("/") or ":" in path or ".." in path.split("/"):
    folders = []
  stem, dot, ending = last.rpartition(".")
  stem = "_".join([*folders, stem if dot else last])
  stem = _UNSAFE.sub("_", stem).strip(" .")[-_MOST_NAME:]
  while len(stem.encode()) > _MOST_NAME_BYTES:
    stem = stem[1:]
  stem = stem.strip(" .") or "image"
  return f"{stem}.{ending[:5]}" if dot and ending.isascii() and ending.isalnum() else stem


def drawn_label(data: bytes, where: str, class_index: int) -> UInt8[np.ndarray, "h w"]:
  """Reads a label map that a person made elsewhere.

  Args:
    data: content of the file. One value other than 0 marks one class; several values are class indices.
    where: name of the file, for messages.
    class_index: the class that one value marks.

  Raises:
    InputError: the file is not a label map.
  """
  try:
    return LabelFormat("binary").decode(data, where) * np.uint8(class_index)
  except InputError:
    return LabelFormat().decode(data, where)


def answered(session: Session) -> Iterator[tuple[Picture, Prediction]]:
  """Yields the images of a session that have a label or an answer, with it."""
  for key in list(session.pictures):
    result = session.result(key) if key in session.pictures else None
    if result is not None:
      yield session.find(key), result
