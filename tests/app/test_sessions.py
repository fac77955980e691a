"""The state of a session: which examples and options answers use, and what changes ask for new answers."""

from __future__ import annotations

import numpy as np
import pytest

from seggpt_jax.app import sessions
from seggpt_jax.app.sessions import Session, UnknownError, clean_name
from seggpt_jax.errors import InputError
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


def test_classes_in_use_keep_their_names(session):
  (key,) = add(session, 1)
  session.set_label(key, square(3))
  with pytest.raises(InputError, match="labels show that many"):
    session.set_classes(["crack", "hole"])
  session.set_classes(["a", "b", "c", "d"])


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
  assert clean_name("cam1/001.png") == "cam1_001.png"
  assert (
    clean_name("C:\\fakepath\\001.png") == clean_name("/home/me/001.png") == clean_name("../../001.png") == "001.png"
  )
  assert clean_name("a" * 100 + "/001.png").endswith("a_001.png")


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "\ufeffcrack"])
def test_names_of_classes_that_cannot_be_written_are_refused(session, name):
  with pytest.raises(InputError, match="expected different names"):
    session.set_classes([name])
  assert session.classes == ["crack", "hole", "dent"]
