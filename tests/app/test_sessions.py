"""The state of a session: which examples and options answers use, and what changes ask for new answers."""

from __future__ import annotations

import os

import numpy as np
import pytest

from seggpt_jax.app import sessions
from seggpt_jax.app.bundles import write_dataset
from seggpt_jax.app.pictures import LABEL_MAPS, UnknownError, clean_name
from seggpt_jax.app.sessions import Session, cut_out
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import read_labels
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import decode_prediction
from seggpt_jax.palette import fixed_palette
from tests.app.page_clients import noise, png, square


@pytest.fixture
def session(tmp_path):
  session = Session(tmp_path / "session")
  session.set_classes(["crack", "hole", "dent"])
  return session


def add(session: Session, count: int) -> list[str]:
  return [session.add_image("part.png", png(noise(seed))).key for seed in range(count)]


def prediction(labels: np.ndarray):
  palette = fixed_palette(4)
  return decode_prediction(palette[labels], palette, np.arange(4))


def test_examples_show_every_class_and_the_newest_come_first(session):
  keys = add(session, 7)
  session.set_label(keys[0], square(2))
  for key in keys[1:6]:
    session.set_label(key, square(1))
  chosen = session.chosen()
  assert len(chosen) == 4 and keys[0] in chosen and keys[5] in chosen and keys[6] not in chosen
  session.set_settings({"examples": 2})
  assert set(session.chosen()) == {keys[0], keys[5]}
  session.set_settings({"examples": 16})
  assert set(session.chosen()) == set(keys[:6])


def test_more_classes_than_the_automatic_number_of_examples_are_all_shown(session):
  session.set_classes([f"class_{index}" for index in range(6)])
  keys = add(session, 8)
  for index, key in enumerate(keys):
    session.set_label(key, square(1 + index % 6))
  assert {session.find(key).holds for key in session.chosen()} == {(index,) for index in range(1, 7)}


@pytest.mark.parametrize(("side", "split"), [(20, 1), (2, 2), (1, 3)])
def test_small_objects_are_shown_larger(session, side, split):
  (key,) = add(session, 1)
  labels = np.zeros((40, 48), np.uint8)
  labels[5 : 5 + side, 5 : 5 + side] = 1
  session.set_label(key, labels)
  assert session.options(InferenceOptions(), (32, 32)).split == split
  session.set_settings({"split": 4})
  assert session.options(InferenceOptions(), (32, 32)).split == 4


def test_the_picture_on_the_screen_is_answered_first(session):
  keys = add(session, 4)
  assert session.waiting() == []  # no example yet
  session.set_label(keys[0], square())
  session.first = keys[2]
  assert session.waiting() == [keys[2], keys[1], keys[3]]
  session.put_answer(keys[2], session.round, prediction(square()))
  session.put_error(keys[1], session.round, "unreadable")
  assert session.waiting() == [keys[3]]
  session.set_settings({"paused": True})
  assert session.waiting() == []


def test_late_answers_never_replace_newer_ones(session):
  keys = add(session, 2)
  session.set_label(keys[0], square())
  old = session.round
  session.set_label(keys[0], square(2))
  session.put_answer(keys[1], session.round, prediction(square(2)))
  session.put_answer(keys[1], old, prediction(square(1)))
  np.testing.assert_array_equal(session.answer(keys[1]).labels, square(2))
  session.remove(keys[1])
  session.put_answer(keys[1], session.round, prediction(square(2)))
  with pytest.raises(UnknownError):
    session.answer(keys[1])


def test_taking_an_example_back_answers_it_like_the_others(session):
  keys = add(session, 2)
  for key in keys:
    session.set_label(key, square())
  session.clear_label(keys[1])
  assert session.chosen() == [keys[0]] and session.waiting() == [keys[1]]


def test_what_is_removed_leaves_room_for_more(session):
  """The folder for temporary files stays, and a new label is told from one that was taken back."""
  (key,) = add(session, 1)
  session.set_label(key, square())
  first = session.find(key).label
  session.clear_label(key)
  session.put_answer(key, session.round, prediction(square()))
  session.set_label(key, square())
  assert session.find(key).label > first
  session.remove(key)
  assert session.scratch.is_dir() and not list(session.folder.rglob("*.png"))


def test_classes_in_use_keep_their_names(session):
  (key,) = add(session, 1)
  session.set_label(key, square(3))
  with pytest.raises(InputError, match="labels show that many"):
    session.set_classes(["crack", "hole"])
  session.set_classes(["a", "b", "c", "d"])


def test_an_example_from_before_a_class_does_not_show_it_as_background(session, tmp_path):
  keys = add(session, 4)
  session.set_label(keys[0], square(1))
  session.set_classes(["crack", "hole", "dent", "rust"])
  assert session.find(keys[0]).unseen == (4,) and session.chosen() == [keys[0]]  # there is no other one
  both = square(1)
  both[:4] = 4
  session.set_label(keys[1], both)
  assert session.find(keys[1]).unseen == () and session.as_json()["examples"] == [keys[1]]
  session.set_done(keys[2], True)
  write_dataset(session, tmp_path / "data", training=True)
  name = session.find(keys[0]).name
  labels = read_labels(tmp_path / "data" / "train" / "labels" / f"{name}.png", LABEL_MAPS)
  np.testing.assert_array_equal(labels, np.where(square(1) == 0, 255, 1))
  again = Session(tmp_path / "session")
  assert {each.unseen for each in again.examples} == {(), (4,)} and sum(
    each.done for each in again.pictures.values()
  ) == 1
  session.look(keys[0], 4)
  assert set(session.chosen()) == set(keys[:2])


def test_ignored_pixels_are_no_class(session):
  (key,) = add(session, 1)
  labels = square(1)
  labels[:3] = 255
  session.set_label(key, labels)
  assert session.find(key).holds == (1,) and session.options(InferenceOptions(), (32, 32)).split == 1
  np.testing.assert_array_equal(session.result(key).labels, square(1))
  np.testing.assert_array_equal(session.label(key), labels)


def test_an_object_is_cut_out_by_a_box_or_a_click(session):
  rows, columns = np.mgrid[:120, :160]
  disk = (rows - 60) ** 2 + (columns - 80) ** 2 < 25**2
  image = np.where(disk[..., None], 180, 90) + np.random.default_rng(0).integers(0, 20, (120, 160, 3))
  key = session.add_image("disk.png", png(image.astype(np.uint8))).key
  for (left, top, width, height), seed in (((45, 30, 70, 62), 0), ((30, 20, 100, 80), 6)):
    found = cut_out(session, key, (left, top, width, height), seed)
    assert ((found == 1) == disk[top : top + height, left : left + width]).mean() > 0.99
  for box in ((0, 0, 160, 120), (100, 0, 100, 20), (0, 0, 0, 5)):
    with pytest.raises(InputError, match="box: found"):
      cut_out(session, key, box)


def test_least_area_applies_to_answers_that_are_there(session):
  keys = add(session, 2)
  session.set_label(keys[0], square())
  labels = square(1)
  labels[38, 40] = 2
  session.put_answer(keys[1], session.round, prediction(labels))
  before = session.round
  session.set_settings({"least_area": 4})
  np.testing.assert_array_equal(session.answer(keys[1]).labels, square(1))
  assert session.round == before


def test_a_late_answer_does_not_make_a_label_the_newest(session):
  keys = add(session, 3)
  for key in keys[:2]:
    session.set_label(key, square())
  session.set_settings({"examples": 1})
  session.put_answer(keys[0], session.round, prediction(square()))
  session.put_error(keys[0], session.round, "unreadable")
  assert session.chosen() == [keys[1]] and not session.find(keys[0]).error


def test_images_are_compared_with_the_newest_examples_and_with_every_class(session, monkeypatch):
  monkeypatch.setattr(sessions, "_MOST_COMPARED", 2)
  keys = add(session, 5)
  session.set_settings({"examples": 2})
  for place, key in enumerate(keys):
    session.set_label(key, square(2 if place == 0 else 1))
  assert session.chooses_alike and set(session.candidates()) == {keys[0], keys[3], keys[4]}
  assert session.chosen({key: float(key == keys[3]) for key in session.candidates()}) == [keys[3], keys[0]]
  session.set_settings({"choice": "newest"})
  assert not session.chooses_alike


def test_names_are_cut_by_bytes_and_keep_their_folders(session):
  """A name of 80 characters may have 320 bytes, and no file system has such names."""
  for name in ("\u6f22" * 75, "\U00020000" * 80, "\u044f" * 300):
    assert len(clean_name(f"{name}.png").encode()) <= 210
  assert clean_name("cam1/001.png") == "cam1/001.png"
  assert clean_name("@eaDir/ .x/001.png") == "_@eaDir/x/001.png"
  assert (
    clean_name("C:\\fakepath\\001.png") == clean_name("/home/me/001.png") == clean_name("../../001.png") == "001.png"
  )
  assert clean_name("a" * 100 + "/001.png").endswith("a/001.png")


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "\ufeffcrack"])
def test_names_of_classes_that_cannot_be_written_are_refused(session, name):
  with pytest.raises(InputError, match="expected different names"):
    session.set_classes([name])
  assert session.classes == ["crack", "hole", "dent"]


@pytest.mark.parametrize("ignore", [False, True])
def test_a_class_goes_and_later_ones_move_up(session, ignore):
  keys = add(session, 4)
  both = square(3)
  both[0] = 1
  for key, labels in zip(keys[:3], (square(2), both, square(1)), strict=True):
    session.set_label(key, labels)
  session.set_draft(keys[3], square(3))
  session.set_settings({"sensitivity": [1.0, 2.0, 3.0], "colors": ["", "#0000ff", "#ff0000"]})
  session.put_answer(keys[3], session.round, prediction(square(3)))
  old = session.round
  session.remove_class(1, ignore)
  assert session.classes == ["hole", "dent"] and session.settings.sensitivity == (2.0, 3.0)
  assert session.palette(3)[1:].tolist() == [[0, 0, 255], [255, 0, 0]]
  np.testing.assert_array_equal(session.label(keys[0]), square(1))
  np.testing.assert_array_equal(session.label(keys[1]), np.where(both == 3, 2, np.where(both == 1, 255 * ignore, 0)))
  assert [each.key for each in session.examples] == keys[:2], "the third one shows no class any more"
  np.testing.assert_array_equal(session.draft(keys[3]), square(2))
  session.put_answer(keys[3], old, prediction(square(1)))
  with pytest.raises(UnknownError):
    session.answer(keys[3])  # one with the numbers of before came late
  again = Session(session.folder)
  assert again.classes == session.classes and again.settings == session.settings
  assert {each.name: each.holds for each in again.pictures.values()} == {
    each.name: each.holds for each in session.pictures.values()
  }
  session.remove_class(2)
  for index, message in ((1, "found the only one"), (2, "found 2, expected an integer from 1 to 1")):
    with pytest.raises(InputError, match=message):
      session.remove_class(index)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_while_a_class_is_removed_leaves_all_of_it_or_nothing(session, monkeypatch, moved):
  keys = add(session, 2)
  for key in keys:
    session.set_label(key, square(2))
  real, calls = os.replace, []

  def killed(source, target):
    if ".relabeled" in str(source):
      calls.append(target)
      if len(calls) > moved:
        raise KeyboardInterrupt
    real(source, target)

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    session.remove_class(1)
  monkeypatch.undo()
  again = Session(session.folder)
  assert again.classes == ["hole", "dent"]
  assert [each.holds for each in again.pictures.values()] == [(1,), (1,)]
  monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError("killed")))
  with pytest.raises(OSError, match="killed"):
    again.remove_class(2)  # before the moment from which it counts
  monkeypatch.undo()
  third = Session(session.folder)
  assert third.classes == ["hole", "dent"] and again.classes == ["hole", "dent"]
