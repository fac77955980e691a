"""The work on the page: images and their labels, which are in `labeling`, and the network's answers.

In: label maps, settings and answers. Out: the state and the small pictures that the page shows, and the examples and
options that the network needs next. Nothing here knows about HTTP or about the network.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from seggpt_jax.app.labeling import Labeling
from seggpt_jax.app.pictures import MOST_CLASSES, Picture, SessionLimits, UnknownError
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import classes_in
from seggpt_jax.inference import tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import encode, overlay, write_png
from seggpt_jax.inference.prediction import Prediction, decode_prediction
from seggpt_jax.inference.prompts import without_ignored
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.palette import display_palette, fixed_palette
from seggpt_jax.retrieval.mapping import in_turn

_AUTO_EXAMPLES, _AUTO_SPLIT = 4, 3  # largest values that are chosen automatically
_THUMBNAIL = 160  # pixels of the longer side
_CUT_SIDE, _CUT_ROUNDS = 480, 4  # pixels of the longer side in which an object is cut out, and rounds of GrabCut
_MOST_COMPARED = 64  # examples that an image is compared with: each is encoded once, in a tenth of a second or more


class Session(Labeling):
  """The images, labels and answers of a project; its arguments are those of `Labeling`.

  Attributes:
    round: counts the changes after which all images have to be answered again.
    first: key of the image that is answered first: the one on the screen.
  """

  def __init__(self, folder: Path, limits: SessionLimits | None = None, learned_classes: Sequence[str] = ()):
    super().__init__(folder, limits, learned_classes)
    self.id = secrets.token_hex(8)
    self.round, self.first = 1, ""
    self._numbering = 0  # the round from which answers have the numbers of the classes
    self._split = (0, 1)  # the round it was chosen for, and the split

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

  def remove_class(self, index: int, ignore: bool = False) -> None:
    """Removes a class as `Labeling.remove_class` does, and forgets answers with the numbers of before."""
    with self.lock:
      super().remove_class(index, ignore)
      self._numbering = self.round
      for picture in self.pictures.values():
        picture.answer, picture.shows = 0, ()
        self._touch(picture)

  def _ask_again(self) -> None:
    self.round += 1
    self.changes += 1
    for picture in self.pictures.values():
      picture.error = ""

  @property
  def chooses_alike(self) -> bool:
    """True if every image gets the examples most alike to it, as there are more than an answer uses."""
    with self.lock:
      alike = self.needs_examples and self.settings.choice == "alike"
      return alike and len(_usable(self.examples)) > len(self.chosen())

  def candidates(self) -> dict[str, PromptFiles]:
    """Returns the files of the examples that images are compared with, by key: the newest ones, and some of a class."""
    with self.lock:
      newest = sorted(_usable(self.examples), key=lambda each: each.label)[-_MOST_COMPARED:]
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
      return _most_fitting(_usable(self.examples), self.settings.examples, scores)

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
      labels = [without_ignored(self.label(key)) for key in self.chosen()]
      sizes = {split: (split * tile[0], split * tile[1]) for split in range(1, _AUTO_SPLIT)}
      enough = (s for s, size in sizes.items() if not any(tiling.small_classes(each, size) for each in labels))
      self._split = round_, next(enough, _AUTO_SPLIT)
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
      if picture is not None and not picture.label and round_ >= max(picture.answer, self._numbering):
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

  def set_done(self, key: str, done: bool) -> None:
    """Marks an image as done, or as not done."""
    with self.lock:
      self.find(key).done = done
      self._touch(self.find(key))
      self._save()

  def promote(self, key: str) -> None:
    """Takes the answer of an image over as its label, which makes it an example.

    Raises:
      UnknownError: the image has no answer.
      InputError: the answer shows no class.
    """
    with self.lock:
      self.set_label(key, self.answer(key).labels.astype(np.uint8), f"{self.find(key).name}: its answer")

  # ---------------------------------------------------------------------------------------------------------- state

  def palette(self, num_classes: int) -> UInt8[np.ndarray, "n 3"]:
    """Returns the colors of classes for people, background included."""
    palette = display_palette(num_classes)
    for index, color in enumerate(self.settings.colors[: num_classes - 1], start=1):
      if color:
        palette[index] = tuple(bytes.fromhex(color[1:]))
    return palette

  def as_json(self, since: int = 0) -> dict[str, Any]:
    """Returns the state for the page; for images, only images that changed since a count of changes."""
    with self.lock:
      others = [each for each in self.pictures.values() if not each.label]
      answered = sum(each.answer == self.round or bool(each.error) for each in others)
      return {
        "session": self.id,  # differs from that of every other start, and opens nothing
        "changes": self.changes,
        "round": self.round,
        "numbering": self._numbering,
        "classes": self.classes,
        "colors": self.palette(len(self.classes) + 1)[1:].tolist(),
        "settings": self.settings.model_dump(mode="json"),
        "examples": list(self.candidates()) if self.chooses_alike else self.chosen(),
        "needs_examples": self.needs_examples,
        "order": list(self.pictures),
        "images": [each.as_json() for each in self.pictures.values() if each.changed > since],
        "progress": {"answered": answered, "total": len(others)},
      }

  def close(self) -> None:
    """Deletes what can be made again; the project stays."""
    shutil.rmtree(self.scratch, ignore_errors=True)


def _usable(examples: Sequence[Picture]) -> list[Picture]:
  """Returns the examples that answers may use.

  An example in which nobody has looked for a class would teach that this class is background. It is used only for a
  class that no other example shows.
  """
  shown = {index for each in examples if not each.unseen for index in each.holds}
  return [each for each in examples if not each.unseen or not shown.issuperset(each.holds)]


def _most_fitting(examples: Sequence[Picture], count: int, scores: Mapping[str, float] | None) -> list[str]:
  """Returns the keys of examples that show every class in turn, the best of each first; 0 is an automatic number."""
  examples = [each for each in examples if scores is None or each.key in scores]
  holds = np.zeros((len(examples), MOST_CLASSES + 1), bool)
  for place, each in enumerate(examples):
    holds[place, list(each.holds)] = True
  best = np.array([each.label if scores is None else scores[each.key] for each in examples], np.float64)
  count = count or max(_AUTO_EXAMPLES, int(holds.any(axis=0).sum()))
  # A rare class has fewer images than its turns; the best of all fill the rest.
  places = dict.fromkeys([*in_turn(holds, best, count), *np.argsort(-best, kind="stable").tolist()])
  return [examples[place].key for place in list(places)[:count]]


def thumbnail(session: Session, key: str) -> bytes:
  """Returns a JPEG file of an image with its label or answer over it."""
  image, result = session.pixels(key), session.result(key)
  scale = min(1.0, _THUMBNAIL / max(image.shape[:2]))
  size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  if result is not None:
    labels = cv2.resize(result.labels, size, interpolation=cv2.INTER_NEAREST)
    small = overlay(small, labels, session.palette(len(result.palette)), 0.55)
  return encode(small, "jpeg", quality=85)


def cut_out(session: Session, key: str, box: Sequence[int], seed: int = 0) -> UInt8[np.ndarray, "_ _"]:
  """Cuts an object out of its background with GrabCut.

  Args:
    session: the session.
    key: the image.
    box: left, top, width and height of a box around the object.
    seed: radius of a disk at the center of the box that is all of the object; 0 without one.

  Returns:
    For each pixel of the box 1 inside the object, else 0.

  Raises:
    InputError: the box is empty or not inside the image, or has no background around it.
  """
  image, (left, top, width, height) = session.pixels(key), box
  if not (0 < width <= image.shape[1] - left and 0 < height <= image.shape[0] - top):
    raise InputError(f"box: found {width} x {height} pixels at {left}, {top}, expected a box inside the image")
  # What is around the box shows the background.
  x0, y0 = max(left - width // 2 - 2, 0), max(top - height // 2 - 2, 0)
  around = image[y0 : top + height + height // 2 + 2, x0 : left + width + width // 2 + 2]
  scale = min(1.0, _CUT_SIDE / max(around.shape[:2]))
  small = cv2.resize(around, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
  guess = np.full(around.shape[:2], cv2.GC_BGD, np.uint8)
  inside = guess[top - y0 : top - y0 + height, left - x0 : left - x0 + width]
  inside[:] = cv2.GC_PR_BGD if seed else cv2.GC_PR_FGD
  if seed:
    center = left - x0 + width // 2, top - y0 + height // 2
    cv2.circle(guess, center, max(min(width, height) // 4, seed), cv2.GC_PR_FGD, -1)
    cv2.circle(guess, center, seed, cv2.GC_FGD, -1)
  guess = cv2.resize(guess, small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
  if (guess == cv2.GC_BGD).sum() < 8:
    raise InputError("box: found all of the image, expected a box with background around it")
  cv2.setRNGSeed(0)
  models = np.zeros((2, 1, 65))
  cv2.grabCut(small, guess, None, *models, _CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
  found = cv2.resize(guess & 1, around.shape[1::-1], interpolation=cv2.INTER_NEAREST)
  return found[top - y0 : top - y0 + height, left - x0 : left - x0 + width]
