"""Prompts that show every class: a class without a prompt could never be found."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.retrieval.labeled_images import Facts, digest
from seggpt_jax.retrieval.mapping import in_turn, prompt_every_class, warn_of_left_out


def test_classes_take_turns_and_the_best_come_first():
  holds = np.zeros((6, 4), bool)
  holds[[0, 1, 2], 1], holds[[3, 4], 2], holds[[2], 3] = True, True, True
  scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 1.0])  # image 5 shows nothing
  assert in_turn(holds, scores, 3) == [1, 4, 2]
  # What was shown least continues: class 2 with its other image, class 3 with its only one again.
  assert in_turn(holds, scores, 6) == [1, 4, 2, 3, 2, 4]
  scores[2] = 2
  assert in_turn(holds, scores, 2) == [2, 4], "image 2 shows classes 1 and 3, so class 2 is next"
  assert in_turn(np.zeros((2, 3), bool), scores[:2], 2) == []


def test_a_query_prompts_itself_only_for_classes_that_no_other_image_shows(tmp_path):
  """Otherwise one query without a prompt would end the run of all."""
  files = []
  for name in "ab":
    Image.fromarray(np.full((8, 8, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
    files.append(PromptFiles(tmp_path / f"{name}.png", tmp_path / f"{name}_label.png"))
  queries = [Query(each.written, each.image, None, ()) for each in files]
  digests = [digest(each.image.read_bytes()) for each in files]
  for holds, prompts in (
    ([[1, 1], [1, 1]], [["b.png", "b.png"], ["a.png", "a.png"]]),
    ([[1, 1], [1, 0]], [["b.png", "a.png"], ["a.png", "a.png"]]),
  ):
    facts = Facts(digests, np.array([[0, *row] for row in holds], bool))
    found = prompt_every_class(queries, files, facts, 2)
    assert [[each.written for each in query.prompts] for query in found] == prompts
  facts = Facts(digests[:1], np.array([[0, 1]], bool))
  (found,) = prompt_every_class(queries[:1], files[:1], facts, 1)
  assert found.prompts == (files[0],)


def test_two_prompts_of_one_class_each_are_both_shown_and_what_is_left_out_is_named(tmp_path, caplog):
  """The first prompt by name shows one class: the other one would never be found, without a word."""
  files = [PromptFiles(tmp_path / f"{name}.png", tmp_path / f"{name}_label.png") for name in "ab"]
  Image.new("RGB", (8, 8)).save(tmp_path / "q.png")
  facts = Facts(["a", "b"], np.array([[0, 1, 0], [0, 0, 1]], bool))
  query = Query("q", tmp_path / "q.png", None, ())
  (found,) = prompt_every_class([query], files, facts, 2)
  assert sorted(each.written for each in found.prompts) == ["a.png", "b.png"]
  warn_of_left_out([found], files, facts)
  alone = [dataclasses.replace(found, prompts=(file,)) for file in files]
  warn_of_left_out(alone, files, facts)  # images of one class each: each query has prompts like itself
  assert not caplog.text
  warn_of_left_out(alone, files, Facts(["a", "b"], np.array([[0, 1, 0], [0, 1, 1]], bool)))
  assert "the prompts of 1 of 2 images show only some of the 2 classes; --top-k=2 shows all" in caplog.text
  warn_of_left_out([dataclasses.replace(found, prompts=(files[1],))], files, facts)
  assert (
    "the prompts of 1 of 1 images show only some of the 2 classes, and none shows class 1; --top-k=2" in caplog.text
  )
