"""A trained head: it learns, resumes exactly, and answers without prompts from its run directory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import seggpt_jax
from configs import features as end_to_end
from configs import head as packaged
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.model import weights
from seggpt_jax.model.imagenet import ImageNetFeatures
from seggpt_jax.palette import IGNORE
from seggpt_jax.synthetic.boards import write_boards
from seggpt_jax.training import head, inputs, loop
from seggpt_jax.training.loss import head_loss
from tests.tiny_matcher import cheap_features


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "boards"
  write_boards(directory, num_train=8, num_val=3, seed=0, size=64, labels="etched")
  return directory


@pytest.fixture
def config(boards, monkeypatch):
  monkeypatch.setattr(ImageNetFeatures, "__call__", cheap_features)
  return make_config(boards, packaged)


def make_config(boards, module):
  config = module.get_config()
  config.num_steps = config.eval_every = 12
  config.checkpoint_every = 6
  config.batch_size = 4
  config.log_every = 3
  config.data.path = str(boards)
  config.data.resize = 64
  config.optim.peak, config.optim.warmup = 1e-2, 1
  config.tracker = "none"
  return config


def test_a_run_learns_and_answers_without_prompts(config, boards, tmp_path):
  config.num_steps = config.checkpoint_every = config.eval_every = 60
  result = loop.train(config, tmp_path / "run")
  assert result["miou"] > 0.6
  rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  losses = [row["loss"] for row in rows if row["split"] == "train"]
  assert losses[-1] < 0.6 * losses[0]
  assert rows[-1]["split"] == "val"
  assert (tmp_path / "run" / "panels" / "val_0000060.png").is_file()
  assert weights.load_config(tmp_path / "run").head_side == 64
  # Only the head is trained.
  before, after = weights.load_params("small"), weights.load_params(tmp_path / "run")
  for name, value in before.items():
    np.testing.assert_array_equal(np.float32(value), after[name], err_msg=name)

  predictor = seggpt_jax.Predictor.from_checkpoint(tmp_path / "run")
  assert not predictor.needs_prompts
  source = open_dataset(Dataset("folder", str(boards), 2, LabelFormat("index")), "val")
  sample = source[0]
  image = np.repeat(sample["image"], 2, axis=1)  # of another size than in training
  prediction = predictor.predict(image)
  assert prediction.labels.shape == image.shape[:2]
  assert prediction.classes == (0, 1)
  whole = predictor.predict(sample["image"])
  assert np.mean(whole.labels == sample["label"]) > 0.8
  mirrored = predictor.predict(sample["image"][:, ::-1])
  np.testing.assert_allclose(mirrored.colors[:, ::-1].astype(int), whole.colors, atol=1)
  with pytest.raises(InputError, match="split: found 2, expected 1 with a trained head"):
    predictor.predict(image, split=2)
  with pytest.raises(InputError, match=r"zoom: found 1\.0, expected 0"):
    next(predictor.predict_many([(image, ())], InferenceOptions(zoom=1.0)))
  # Explicit prompts override the head.
  by_example = predictor.predict(sample["image"], [(sample["image"], sample["label"])])
  assert not np.array_equal(by_example.colors, whole.colors)


@pytest.mark.parametrize(
  ("shape", "side", "expected"),
  [
    ((233, 233), 90, 256),  # brain slices: large regions with long contours
    ((96, 96), 40, 192),
    ((257, 597), 10, 288),
    ((300, 500), 60, 256),
    ((640, 640), 12, 384),  # printed boards
    ((3000, 3000), 5, 768),
  ],
)
def test_the_side_suits_small_images_and_small_objects(config, tmp_path, shape, side, expected):
  labels = np.zeros(shape, np.uint8)
  labels[10 : 10 + side, 10 : 10 + side] = 1
  for kind in ("images", "labels"):
    (tmp_path / "train" / kind).mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / "train" / kind / "1.png")
  source = open_dataset(Dataset("folder", str(tmp_path), 2, LabelFormat("index")), "train")
  assert inputs.head_side(source, config.data) == expected


@pytest.fixture(scope="module")
def trained_head(boards, tmp_path_factory):
  """The run of a head after one step."""
  workdir = tmp_path_factory.mktemp("trained") / "run"
  config = make_config(boards, packaged)
  config.num_steps = config.eval_every = config.checkpoint_every = 1
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ImageNetFeatures, "__call__", cheap_features)
    loop.train(config, workdir)
  return workdir


def test_head_and_features_learn_together(boards, trained_head, tmp_path):
  config = make_config(boards, end_to_end)
  config.model.init_from, config.data.resize = str(trained_head), 0
  config.num_steps = config.eval_every = config.checkpoint_every = 2
  loop.train(config, tmp_path)
  assert weights.load_config(tmp_path).head_side == 64  # the head's
  before, after = weights.load_params(trained_head), weights.load_params(tmp_path)
  changed = {name for name, value in before.items() if not np.array_equal(np.float32(value), after[name])}
  blocks = tuple(f"features.blocks.{index}." for index in range(3, 11))
  learning = {name for name in before if name.startswith(("pixel_head.", *blocks))}
  assert changed == learning


def test_features_without_a_head_that_fits_are_refused(boards, trained_head, tmp_path):
  config = make_config(boards, end_to_end)
  for source, classes in (("", 2), ("small", 2), (str(trained_head), 3)):
    config.model.init_from, config.data.num_classes = source, classes
    with pytest.raises(
      InputError, match=rf"init_from: found '{source}', expected a run with a trained head of {classes}"
    ):
      loop.train(config, tmp_path)


@pytest.mark.slow  # .ci/run runs it
@pytest.mark.parametrize("module", [packaged, end_to_end])
def test_a_resumed_run_equals_one_without_a_stop(boards, module, config, trained_head, tmp_path):
  config = make_config(boards, module)
  if module is end_to_end:
    config.model.init_from = str(trained_head)
  loop.train(config, tmp_path / "whole")

  class StopError(Exception):
    pass

  taken = []
  advance = head.Pool.batch

  def batch(self, step):
    taken.append(step)
    if step == 9 and len(taken) == 9:
      raise StopError
    return advance(self, step)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(head.Pool, "batch", batch)
    with pytest.raises(StopError):
      loop.train(config, tmp_path / "parts")
    loop.train(config, tmp_path / "parts")
  assert taken == [*range(1, 10), *range(7, 13)]
  whole, parts = (weights.load_params(tmp_path / name / "checkpoints" / "12") for name in ("whole", "parts"))
  assert any(name.startswith("pixel_head.") for name in whole)
  for name, value in whole.items():
    np.testing.assert_array_equal(value, parts[name], err_msg=name)


@pytest.mark.parametrize("kind", ["head", "features"])
@pytest.mark.parametrize("step", [0, 3, 4, 31, 32, 70])
def test_what_a_step_finds_depends_on_its_number_alone(config, boards, monkeypatch, step, kind):
  config.adapter.kind = kind
  source = open_dataset(Dataset("folder", str(boards), 2, LabelFormat("index")), "train")
  monkeypatch.setattr(head, "_MOST_BYTES", 5 * 64 * 64)  # of five of the eight images

  def describe(image):
    return {stride: image[::stride, ::stride] for stride in (2, 4, 8, 16)}

  going, later = (head.Pool(source, describe, config, 64) for _ in range(2))
  going.fill(0)
  for number in range(1, step + 1):
    going.batch(number)
  later.fill(step)
  for found, expected in zip(later.batch(step + 1), going.batch(step + 1), strict=True):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  ("group", "name", "value"), [("optim", "ema", 0.9), ("loss", "dice", 1.0), ("data", "prompts", 2)]
)
def test_keys_that_a_head_does_not_use_are_refused(config, tmp_path, group, name, value):
  config[group][name] = value
  with pytest.raises(
    InputError, match=rf"config.{group}.{name}: found {value}, expected the default .* adapter.kind=head"
  ):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_ignored_pixels_do_not_count_in_the_loss():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
  labels = np.random.default_rng(1).integers(0, 3, (2, 16, 16)).astype(np.uint8)
  labels[:, :4] = IGNORE
  changed = logits.at[:, :2].set(7.0)
  np.testing.assert_allclose(head_loss(logits, labels), head_loss(changed, labels), rtol=1e-6)
  right = jax.nn.one_hot(np.where(labels == IGNORE, 0, labels)[:, ::2, ::2], 3) * 30
  even = np.repeat(np.repeat(labels[:, ::2, ::2], 2, axis=1), 2, axis=2)
  assert float(head_loss(right, even)) < 1e-3


def test_a_network_without_features_is_refused(config, tmp_path):
  config.model.init_from = "drawn"
  with pytest.raises(InputError, match=r"config.model.init_from: found 'drawn', a network without ImageNet features"):
    loop.train(config, tmp_path)
  config.model.init_from, config.data.resize = "small", 100
  with pytest.raises(InputError, match=r"config.data.resize: found 100, expected a multiple of 16"):
    loop.train(config, tmp_path)
