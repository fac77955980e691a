"""In-context scores: high for a predictor that uses the prompt, low for one that copies or ignores it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pretraining import in_context
from pretraining.held_out import HELD_OUT
from pretraining.questions import choose_families, draw_question, evaluate
from seggpt_jax.errors import InputError
from seggpt_jax.inference.predictor import Prediction, Predictor
from seggpt_jax.model import weights
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.palette import fixed_palette
from tests.commands import seggpt
from tests.loud_network import loud_params
from tests.xla_flags import QUICK

SIZE, EPISODES, PROMPTS = 48, 6, 3
SETTINGS = {"num_episodes": EPISODES, "num_prompts": PROMPTS}
KEYS = {"one_prompt", "ensemble", "copy", "constant", "swapped", "swapped_vs_old", "follows", "standard_error"}


class StandIn(Predictor):
  """A predictor without a network that applies a rule (query, prompts) -> mask."""

  def __init__(self, rule):
    self.rule, self.num_prompts = rule, []

  @property
  def tile_size(self):
    return SIZE, SIZE

  def predict(self, image, prompts, **_):
    self.num_prompts.append(len(prompts))
    labels = self.rule(image, prompts)
    assert labels.shape == image.shape[:2] and labels.dtype == np.uint8
    return Prediction(labels, image, fixed_palette(2), (0, 1))


@pytest.fixture(scope="module")
def questions():
  return {
    name: [draw_question(name, family, index, SIZE, PROMPTS) for index in range(EPISODES)]
    for name, family in HELD_OUT.items()
  }


@pytest.fixture(scope="module")
def oracle(questions):
  """A predictor that knows the true mask of every query for every mask of its prompt."""
  truths = {
    (question.query.tobytes(), question.mask(kind, 0).tobytes()): question.mask(kind)
    for of_family in questions.values()
    for question in of_family
    for kind in (question.asked, question.other)
  }
  return StandIn(lambda image, prompts: truths[image.tobytes(), prompts[0][1].tobytes()])


def test_a_predictor_that_uses_the_prompt_scores_1(oracle):
  results = evaluate(oracle, HELD_OUT, **SETTINGS)
  assert list(results["families"]) == list(HELD_OUT)
  for row in (*results["families"].values(), results["mean"]):
    assert row.keys() == KEYS
    assert (row["one_prompt"], row["ensemble"], row["swapped"], row["follows"]) == (1.0, 1.0, 1.0, 1.0)
    # Kinds do not overlap.
    assert (row["swapped_vs_old"], row["standard_error"]) == (0.0, 0.0)
  assert sorted(set(oracle.num_prompts)) == [1, PROMPTS]


def test_a_predictor_that_copies_the_mask_scores_the_copy_baseline(questions):
  results = evaluate(StandIn(lambda image, prompts: prompts[0][1]), HELD_OUT, **SETTINGS)
  for name, row in results["families"].items():
    assert row["one_prompt"] == row["ensemble"] == row["copy"] < 0.4
    by_hand = []
    for question in questions[name]:
      copied, truth = question.mask(question.asked, 0) > 0, question.mask(question.asked) > 0
      by_hand.append((copied & truth).sum() / (copied | truth).sum())
    np.testing.assert_allclose(row["copy"], np.mean(by_hand), rtol=1e-6)
    np.testing.assert_allclose(row["standard_error"], np.std(by_hand, ddof=1) / np.sqrt(EPISODES), rtol=1e-5)
  mean = np.mean([row["copy"] for row in results["families"].values()])
  np.testing.assert_allclose(results["mean"]["copy"], mean, rtol=1e-6)


def test_a_predictor_that_ignores_pictures_scores_the_constant_baseline_or_0():
  results = evaluate(StandIn(lambda image, _: np.ones(image.shape[:2], np.uint8)), HELD_OUT, **SETTINGS)
  for row in results["families"].values():
    assert row["one_prompt"] == row["constant"] < 0.5
  silent = evaluate(StandIn(lambda image, _: np.zeros(image.shape[:2], np.uint8)), HELD_OUT, **SETTINGS)
  assert (silent["mean"]["one_prompt"], silent["mean"]["swapped"], silent["mean"]["follows"]) == (0.0, 0.0, 0.0)


def test_a_predictor_that_ignores_the_other_mask_does_not_follow(questions):
  first = {q.query.tobytes(): q.mask(q.asked) for of_family in questions.values() for q in of_family}
  mean = evaluate(StandIn(lambda image, _: first[image.tobytes()]), HELD_OUT, **SETTINGS)["mean"]
  assert (mean["one_prompt"], mean["swapped"], mean["swapped_vs_old"], mean["follows"]) == (1.0, 0.0, 1.0, 0.0)


def test_questions_are_always_the_same_and_ask_for_two_kinds_that_every_picture_shows(questions):
  for name, family in HELD_OUT.items():
    again = draw_question(name, family, 1, SIZE, PROMPTS)
    question = questions[name][1]
    np.testing.assert_array_equal(question.episode.images, again.episode.images)
    assert (question.asked, question.other) == (again.asked, again.other)
    assert not np.array_equal(question.query, questions[name][0].query)
    for each in questions[name]:
      assert each.asked != each.other and min(each.asked, each.other) > 0
      for kind in (each.asked, each.other):
        assert min(each.mask(kind, index).mean() for index in range(PROMPTS + 1)) >= 0.01
      assert len(each.prompts(each.asked, PROMPTS)) == PROMPTS == len(each.episode.images) - 1
  assert len({question.asked for of_family in questions.values() for question in of_family}) >= 3


def test_with_one_prompt_and_one_episode_there_is_no_ensemble_and_no_error():
  standin = StandIn(lambda image, prompts: prompts[0][1])
  results = evaluate(standin, {"cells": HELD_OUT["cells"]}, num_episodes=1, num_prompts=1)
  assert standin.num_prompts == [1, 1]
  assert results["mean"]["ensemble"] == results["mean"]["one_prompt"]
  assert results["mean"]["standard_error"] is None
  table = in_context.table(results, 1).splitlines()
  assert [line.split()[0] for line in table[1:]] == ["cells", "mean"]
  assert table[1].split()[2] == "-"


def test_the_picture_shows_what_was_asked_and_what_was_answered(oracle, questions):
  families = {name: HELD_OUT[name] for name in ("cells", "fruits")}
  sheet = in_context.picture(oracle, families, num_prompts=PROMPTS)
  side = 2 * SIZE
  assert sheet.shape == (16 + 4 * (side + 4), 64 + 8 * (side + 4), 3)
  third_row = [sheet[16 + 2 * (side + 4) :][:side, 64 + column * (side + 4) :][:, :side] for column in range(8)]
  prompt, mask, query, truth, one, ensemble, other, swapped = (tile[::2, ::2] for tile in third_row)
  question = questions["fruits"][0]
  np.testing.assert_array_equal(prompt, question.episode.images[0])
  np.testing.assert_array_equal(query, question.query)
  np.testing.assert_array_equal(truth, one)
  np.testing.assert_array_equal(truth, ensemble)
  np.testing.assert_array_equal((truth != query).any(axis=-1), question.mask(question.asked) > 0)
  np.testing.assert_array_equal((mask != prompt).any(axis=-1), question.mask(question.asked, 0) > 0)
  np.testing.assert_array_equal((other != prompt).any(axis=-1), question.mask(question.other, 0) > 0)
  np.testing.assert_array_equal((swapped != query).any(axis=-1), question.mask(question.other) > 0)


def test_families_are_chosen_by_name_or_by_group():
  assert list(choose_families(["held_out"])) == list(HELD_OUT)
  assert list(choose_families(["regions", "cells"])) == ["regions", "cells"]
  assert not HELD_OUT.keys() & choose_families(["training"]).keys()
  for names, found in ((["cells", "galaxies"], "'galaxies'"), ([""], "''"), ([], "none")):
    with pytest.raises(InputError, match=f"--families: found {found}, expected some of held_out, training, cells"):
      choose_families(names)


def test_a_family_that_shows_nothing_in_common_is_named():
  def nothing(generator, size, count, difficulty):
    scenes = HELD_OUT["cells"](generator, size, count, difficulty)
    return scenes._replace(kinds=[np.zeros_like(kinds) for kinds in scenes.kinds])

  with pytest.raises(InputError, match="nothing: found no two kinds in 1 prompts"):
    draw_question("nothing", nothing, 0, 16, 1)


def command(*options):
  return seggpt(*options, env={"XLA_FLAGS": QUICK}, module="pretraining.in_context")


@pytest.fixture(scope="module")
def larger_weights(tmp_path_factory):
  """Weights whose pictures are large enough for two kinds of objects."""
  directory = tmp_path_factory.mktemp("weights") / "tiny"
  weights.save_weights(directory, loud_params(VARIANTS["tiny"]), VARIANTS["tiny"])
  return directory


def test_the_command_prints_a_table_and_writes_numbers_and_a_picture(larger_weights, tmp_path):
  options = ["--families", "cells,levels", "--num_episodes", 2, "--num_prompts", 2, "--output", tmp_path / "out"]
  done = command("--model_path", larger_weights, *options)
  assert done.returncode == 0, done.stderr
  assert "episode/s" in done.stderr  # the bar, with its rate
  assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["in_context.json", "in_context.png"]
  results = json.loads((tmp_path / "out" / "in_context.json").read_text())
  assert results["arguments"] == {
    "model_path": str(larger_weights),
    "families": ["cells", "levels"],
    "num_episodes": 2,
    "num_prompts": 2,
    "difficulty": 0.5,
    "size": 64,
  }
  rows = {**results["families"], "mean": results["mean"]}
  assert list(rows) == ["cells", "levels", "mean"]
  assert all(row.keys() == KEYS and all(0 <= value <= 1 for value in row.values()) for row in rows.values())
  table = done.stdout.splitlines()
  assert [line.split()[0] for line in table[1:4]] == list(rows)
  assert float(table[3].split()[1]) == pytest.approx(rows["mean"]["one_prompt"], abs=6e-4)
  assert Image.open(tmp_path / "out" / "in_context.png").size == (64 + 8 * 132, 16 + 4 * 132)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (["--families", "galaxies"], ["--families", "'galaxies'", "cells"]),
    (["--families", "cells", "--data", "lot"], ["--families cannot be combined with --data"]),
    (["--families", "cells"], ["nowhere: not found"]),
    (["--num_prompts", "0"], ["--num-prompts=0"]),
    (["more"], ["'more'"]),
  ],
)
def test_wrong_input_ends_the_command_with_status_2_and_one_line(tmp_path, options, words):
  done = command("--model_path", tmp_path / "nowhere", *options, "--output", tmp_path / "out")
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  assert all(word in done.stderr for word in words), done.stderr
  assert not (tmp_path / "out").exists()
