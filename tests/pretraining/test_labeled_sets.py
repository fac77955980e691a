"""Scores of real datasets without training: one for whoever knows the answer, the baselines' for whoever does not."""

import json

import numpy as np
import pytest
from PIL import Image

from pretraining import in_context, labeled_sets
from seggpt_jax.errors import InputError
from seggpt_jax.inference.predictor import Prediction, Predictor
from seggpt_jax.model import weights
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.palette import fixed_palette
from seggpt_jax.retrieval.labeled_images import list_prompts
from seggpt_jax.retrieval.prompt_index import PromptIndex
from tests.loud_network import loud_params

SHAPE = (40, 56)


class StandIn(Predictor):
  """A predictor without a network that applies a rule (query, prompts) -> mask."""

  config = VARIANTS["tiny"]

  def __init__(self, rule):
    self.rule, self.counts = rule, []

  def predict(self, image, prompts, **_):
    self.counts.append(len(prompts))
    return Prediction(self.rule(image, prompts).astype(np.uint8), image, fixed_palette(2), (0, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """Two classes, told apart by their brightness; class 3 is in no validation image, and one image is faultless."""
  folder, generator = tmp_path_factory.mktemp("lot"), np.random.default_rng(0)
  for split, shown in (("train", (1, 1, 2, 2, 3, 1)), ("val", (1, 2, 1, 0))):
    for kind in ("images", "labels"):
      (folder / split / kind).mkdir(parents=True)
    for number, value in enumerate(shown):
      label = np.zeros(SHAPE, np.uint8)
      top, left = generator.integers(0, 20), generator.integers(0, 36)
      label[top : top + 15, left : left + 18] = value
      image = np.repeat((80 * label + generator.integers(0, 9, SHAPE)).astype(np.uint8)[..., None], 3, -1)
      Image.fromarray(image).save(folder / split / "images" / f"{number}.png")
      Image.fromarray(label).save(folder / split / "labels" / f"{number}.png")
  return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  directory = tmp_path_factory.mktemp("weights") / "tiny"
  weights.save_weights(directory, loud_params(VARIANTS["tiny"]), VARIANTS["tiny"])
  return directory


@pytest.fixture(scope="module")
def index(dataset, tiny):
  return PromptIndex.build(weights.load_model(tiny), list_prompts(dataset / "train/images", dataset / "train/labels"))


def like_the_prompt(image, prompts):
  """Finds what is as bright as what the first prompt shows."""
  shown, mask = prompts[0]
  return abs(image[..., 0].astype(float) - shown[mask > 0].mean()) < 40


def test_whoever_reads_the_prompt_finds_the_class_and_only_shared_classes_count(dataset, index):
  predictor = StandIn(like_the_prompt)
  results = labeled_sets.evaluate_set(predictor, index, dataset, num_prompts=3)
  assert {value: row["queries"] for value, row in results.items()} == {1: 2, 2: 1}
  for row in results.values():
    assert (row["one_prompt"], row["ensemble"], row["similar"]) == (1.0, 1.0, 1.0)
    assert 0 <= row["copy"] < 1 and row["constant"] == pytest.approx(15 * 18 / np.prod(SHAPE))
  # One prompt, three or as many as there are, one.
  assert predictor.counts == [1, 3, 1, 1, 3, 1, 1, 2, 1]
  again = labeled_sets.evaluate_set(StandIn(like_the_prompt), index, dataset, num_prompts=3)
  assert again == results


def test_whoever_copies_the_mask_scores_the_copy(dataset, index):
  results = labeled_sets.evaluate_set(StandIn(lambda image, prompts: prompts[0][1]), index, dataset)
  mean = labeled_sets.mean_over_classes(results)
  assert mean["one_prompt"] == mean["copy"] == np.mean([row["copy"] for row in results.values()])


def test_the_report_has_a_row_for_each_class_and_their_mean(dataset, tiny, tmp_path, capsys):
  in_context.evaluate_weights(tiny, data=[str(dataset)], num_episodes=1, num_prompts=2, output=tmp_path)
  printed = capsys.readouterr().out.splitlines()
  assert [line.split(", ")[1].split("  ")[0] for line in printed[1:4]] == ["class 1", "class 2", "mean"]
  written = json.loads((tmp_path / "in_context.json").read_text())
  assert written["arguments"]["num_prompts"] == 2 and written["sets"][dataset.name].keys() == {"1", "2"}
  assert float(printed[3].split()[2]) == pytest.approx(
    np.mean([row["one_prompt"] for row in written["sets"][dataset.name].values()]), abs=6e-4
  )


def test_a_folder_that_is_no_dataset_is_refused(dataset, index, tmp_path):
  with pytest.raises(InputError, match="images"):
    labeled_sets.evaluate_set(StandIn(like_the_prompt), index, tmp_path)
