"""The recipe of the small weights: what it reads, what it refuses, what its loss and its judge count."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from PIL import Image

from pretraining import drawn, judge, sets, train
from seggpt_jax.errors import InputError
from seggpt_jax.model import matcher, parameters, weights
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.matcher import Matcher
from tests.tiny_matcher import CONFIG


@pytest.fixture
def corpus(tmp_path):
  """Two sets: squares of one class on noise, and pictures that show one of two classes."""
  generator, entries = np.random.default_rng(0), []
  for name, classes in (("squares", [1]), ("kinds", [1, 2])):
    for part in ("images", "labels"):
      (tmp_path / name / part).mkdir(parents=True)
    for number in range(6):
      image, label = generator.integers(0, 90, (60, 80, 3)).astype(np.uint8), np.zeros((60, 80), np.uint8)
      place = np.s_[10 : 40 + number, 20:50]
      label[place] = classes[number % len(classes)]
      image[place] = 200
      label[:3, :3] = 255
      Image.fromarray(image).save(tmp_path / name / "images" / f"{number}.png")
      Image.fromarray(label).save(tmp_path / name / "labels" / f"{number}.png")
    entries.append({"name": name, "licence": "MIT"})
  (tmp_path / "sets.json").write_text(json.dumps(entries))
  return tmp_path


def test_examples_show_one_class_in_prompts_of_the_same_set(corpus):
  drawn_from = sets.Corpus(sets.load_corpus(corpus))
  generator = np.random.default_rng(1)
  for _ in range(40):
    example = drawn_from.draw(generator, 32, 2)
    assert example.images.shape == (3, 32, 32, 3) and example.images.dtype == np.uint8
    assert example.masks.shape == example.known.shape == (3, 32, 32)
    assert all(mask.sum() >= 6 for mask in example.masks[:2]) and set(np.unique(example.masks)) <= {0.0, 1.0}


def test_the_same_seed_draws_the_same_example(corpus):
  drawn_from = sets.Corpus(sets.load_corpus(corpus))
  first, second = (drawn_from.draw(np.random.default_rng(5), 32, 1) for _ in range(2))
  np.testing.assert_array_equal(first.images, second.images)


def test_what_is_put_into_a_picture_is_not_asked_for(corpus):
  drawn_from = sets.Corpus(sets.load_corpus(corpus))
  picture, mask, unknown = np.full((32, 32, 3), 7, np.uint8), np.ones((32, 32), bool), np.ones((32, 32), bool)
  covered = []
  for seed in range(20):
    generator = np.random.default_rng(seed)
    foreign = drawn_from._foreign(generator)
    image, left, doubtful = drawn_from._with_object(generator, picture, mask, unknown, *foreign)
    covered.append(int((~left).sum()))
    assert (doubtful == left).all() and (image[~left] > 90).any() == (not left.all())
  assert max(covered) > 0


def test_an_object_on_other_ground_keeps_its_pixels(corpus):
  drawn_from = sets.Corpus(sets.load_corpus(corpus))
  picture, mask = np.full((32, 32, 3), 255, np.uint8), np.zeros((32, 32), bool)
  mask[8:24, 8:24] = True
  image = drawn_from._on_other_ground(np.random.default_rng(0), picture, mask, 32)
  assert (image[12:20, 12:20] == 255).all() and (image[:4] < 255).all()


def test_a_shade_is_the_same_in_all_pictures():
  picture = np.zeros((32, 32, 3), np.uint8)
  picture[:16], picture[16:, 16:] = (200, 30, 30), (30, 30, 200)
  shade = sets._Shade(np.random.default_rng(0))
  shade._blur = 0.5
  first, turned = shade(picture), shade(np.rot90(picture).copy())
  assert 0 < first.mean() < 1 and (np.rot90(first)[2:-2, 2:-2] == turned[2:-2, 2:-2]).mean() > 0.95


@pytest.mark.parametrize("licence", ["", "none stated"])
def test_a_set_without_a_license_is_refused(corpus, licence):
  (corpus / "sets.json").write_text(json.dumps([{"name": "squares", "licence": licence}]))
  with pytest.raises(InputError, match=r"squares: found no license in sets\.json, expected an open one"):
    sets.load_corpus(corpus)


def test_drawn_tasks_come_back_from_their_file(tmp_path):
  drawn.draw(tmp_path / "drawn.npz", 3, 48, seed=0)
  example = drawn.DrawnTasks(tmp_path / "drawn.npz").draw(np.random.default_rng(0), 32)
  assert example.images.shape == (2, 32, 32, 3) and example.masks[0].sum() > 0 and example.known.all()


def test_the_judge_gives_1_to_the_truth_and_less_to_a_copied_mask(corpus):
  found = judge.load(corpus, 4)
  truths = {}
  for items, _ in found.values():
    for image, label in items:
      truths[judge._square(image, 32).tobytes()] = label

  def perfect(queries, prompts, masks):
    del prompts
    answers = []
    for query, mask in zip(queries, masks, strict=True):
      label = truths[query.tobytes()]
      shown = [c for c in (1, 2) if (label == c).any()]
      answers.append(judge._square((label == shown[0]).astype(np.float32), 32) if mask.any() else np.zeros((32, 32)))
    return np.stack(answers)[..., None]

  def copied(queries, prompts, masks):
    del queries, prompts
    return masks[:, 0]

  best, each = judge.evaluate(perfect, {"squares": found["squares"]}, 32)
  assert best > 0.9 and set(each) == {"squares"}
  assert judge.evaluate(copied, {"squares": found["squares"]}, 32)[0] < best


def test_the_loss_is_small_for_the_truth_and_does_not_count_unknown_pixels():
  masks = np.zeros((1, 8, 8), np.float32)
  masks[:, :4] = 1
  known = np.ones_like(masks)
  known[:, :, :2] = 0
  logits = np.where(masks > 0, 12.0, -12.0).astype(np.float32)
  right = {4: np.stack([masks[:, ::4, ::4]], axis=-1)}
  best = float(train.loss(logits, right, masks, known))
  assert best < 0.02
  elsewhere = np.where(known > 0, logits, -logits)
  assert float(train.loss(elsewhere, right, masks, known)) == pytest.approx(best, abs=1e-5)
  assert float(train.loss(-logits, right, masks, known)) > 5
  assert float(train.loss(logits, {4: 1 - right[4]}, masks, known)) > best + 1


def test_features_that_are_trained_move_by_a_tenth_of_the_rate():
  params = {name: jnp.ones((4, 4)) for name in ("features.blocks.9.project.kernel", "decode.kernel")}
  optimizer = train.make_optimizer(1e-2, 0, 300)
  updates, _ = optimizer.update({name: 1e-3 * jnp.eye(4) for name in params}, optimizer.init(params), params)
  np.testing.assert_allclose(np.diag(updates["features.blocks.9.project.kernel"]), -1e-3, rtol=1e-3)
  assert np.abs(updates["decode.kernel"]).max() > 1e-3


@pytest.mark.slow  # .ci/run runs it
@pytest.mark.parametrize(
  ("options", "learn"),
  [("--unfreeze 1", "blocks.1."), ("--without imagenet heads matches own_statistics", "")],
)
def test_only_the_blocks_that_are_named_learn(options, learn, corpus, monkeypatch, tmp_path):
  for name, _ in train._PARTS.values():
    monkeypatch.setattr(matcher, name, getattr(matcher, name))  # put back after the test
  small = VARIANTS["small"].to_dict()
  changed = {name: value for name, value in CONFIG.to_dict().items() if value != small[name]}
  _, params = parameters.split(Matcher(CONFIG, rngs=nnx.Rngs(1)))
  features = {name.removeprefix("features."): value for name, value in params.items() if name.startswith("features.")}
  safetensors.numpy.save_file({name: np.asarray(value) for name, value in features.items()}, tmp_path / "features")
  arguments = ["train", f"--corpus={corpus}", f"--imagenet={tmp_path / 'features'}", f"--workdir={tmp_path / 'run'}"]
  arguments += ["--steps=3", "--batch=2", "--sizes", "32", "--model", json.dumps(changed), *options.split()]
  monkeypatch.setattr("sys.argv", arguments)
  monkeypatch.setattr(train, "feature_statistics", lambda *_: {})
  train.main()
  found = weights.load_params(tmp_path / "run" / "weights_3")
  moved = {name for name in features if not np.array_equal(found[f"features.{name}"], features[name])}
  assert moved and all(name.startswith(learn) for name in moved)
  assert learn or len(moved) > len(features) // 2
