"""Few-shot scores: counted like in published code, and equal from one process and from many."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot, parts
from seggpt_jax.evaluation.few_shot import ClassCounts, FewShot, episode_counts
from seggpt_jax.evaluation.few_shot_data import read_benchmark
from seggpt_jax.inference.predictor import Prediction, Predictor
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.palette import fixed_palette
from tests.commands import seggpt
from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[2]


class StandIn(Predictor):
  """A predictor that segments the bright pixels of every image and records its inputs."""

  def __init__(self):
    self.asked = []

  @property
  def tile_size(self):
    return 16, 16

  def predict_many(self, queries, approach=None, *, palette=None):
    for image, prompts in queries:
      self.asked.append((image, prompts))
      yield Prediction((image[..., 0] > 127).astype(np.uint8), image, fixed_palette(2), (0, 1))


def by_hand(data, episodes):
  """Returns mIoU, FB-IoU and IoU by class, computed with plain loops over pixels."""
  sums = {}
  for episode in episodes:
    image, truth = data.samples.read(episode.query, episode.class_index)
    pixels = sums.setdefault(episode.class_index, [[0, 0], [0, 0]])
    for red, true in zip(image[..., 0].ravel().tolist(), truth.ravel().tolist(), strict=True):
      if true == 255:
        continue
      found = int(red > 127)
      for label in (0, 1):
        pixels[label][0] += found == label and true == label
        pixels[label][1] += found == label or true == label
  ious = {index: foreground[0] / foreground[1] for index, (_, foreground) in sums.items()}
  totals = np.sum(list(sums.values()), axis=0)
  return np.mean(list(ious.values())), np.mean(totals[:, 0] / totals[:, 1]), ious


@pytest.mark.parametrize("name", ["fss1000", "pascal5i"])
def test_the_scores_are_those_of_plain_loops(name, fss, voc, tmp_path):
  data = read_benchmark(name, {"fss1000": fss, "pascal5i": voc}[name])
  folds = list(data.folds)[-2:]
  predictor = StandIn()
  results = parts.run(FewShot(name, data, folds=folds, count=40), lambda: predictor, tmp_path)
  for fold in folds:
    miou, fb_iou, classes = by_hand(data, data.episodes(fold, 1, count=40))
    scores = results["folds"][str(fold)]
    assert scores["miou"] == pytest.approx(miou, abs=1e-12) and scores["fb_iou"] == pytest.approx(fb_iou, abs=1e-12)
    assert {key: entry["iou"] for key, entry in scores["classes"].items()} == pytest.approx(
      {data.class_names[index]: iou for index, iou in classes.items()}, abs=1e-12
    )
  assert results["miou"] == pytest.approx(np.mean([results["folds"][str(fold)]["miou"] for fold in folds]))


def test_the_network_is_asked_about_each_episode_in_order_with_its_prompts(voc, tmp_path):
  data = read_benchmark("pascal5i", voc)
  predictor = StandIn()
  FewShot("pascal5i", data, folds=[1], shots=2, count=50).run(predictor, "fold-1.2-of-3", tmp_path)
  episodes = data.episodes(1, 2, count=50)[1::3]
  assert len(predictor.asked) == len(episodes) == 17
  for (image, prompts), episode in zip(predictor.asked, episodes, strict=True):
    np.testing.assert_array_equal(image, data.samples.read(episode.query, episode.class_index)[0])
    assert len(prompts) == 2
    for pixels, labels in prompts:
      # Resized to the tile size, with only the class that is asked for.
      assert pixels.shape == (16, 16, 3) and set(np.unique(labels)) == {0, 1}


def test_episodes_whose_query_is_a_prompt_are_not_scored(fss, tmp_path):
  """Otherwise an image that a dataset holds twice would be scored with its answer shown."""
  shutil.copytree(fss, tmp_path / "fss")
  for number in range(2, 6):
    for ending in ("jpg", "png"):
      shutil.copy(tmp_path / f"fss/abacus/1.{ending}", tmp_path / f"fss/abacus/{number}.{ending}")
  data = read_benchmark("fss1000", tmp_path / "fss")
  results = parts.run(FewShot("fss1000", data, count=60), StandIn, tmp_path / "out")

  def image(index):
    return data.samples.read(index, 1)[0].tobytes()

  episodes = data.episodes(0, 1, 0, 60)
  others = [each for each in episodes if image(each.query) not in map(image, each.prompts)]
  assert results["own_prompts"] == len(episodes) - len(others) > 0
  assert results["miou"] == pytest.approx(by_hand(data, others)[0], abs=1e-12)
  said = f"{len(episodes) - len(others)} of them are not scored: their query is one of their prompts."
  assert said in (tmp_path / "out/results.md").read_text()
  for path in (tmp_path / "fss").glob("*/*.jpg"):
    shutil.copy(fss / "mug/1.jpg", path)
  with pytest.raises(InputError, match="every query is one of its own prompts"):
    parts.run(FewShot("fss1000", read_benchmark("fss1000", tmp_path / "fss"), count=5), StandIn, tmp_path / "none")


def test_shards_add_up_exactly(voc, tmp_path):
  def run(outdir, shard):
    benchmark = FewShot("pascal5i", read_benchmark("pascal5i", voc), folds=[0, 2], count=30)
    return parts.run(benchmark, StandIn, outdir, Shard.parse(shard))

  whole = run(tmp_path / "whole", "1/1")
  assert run(tmp_path / "shared", "3/3") is None and run(tmp_path / "shared", "1/3") is None
  assert not (tmp_path / "shared" / "results.json").exists()
  assert run(tmp_path / "shared", "2/3") == whole
  for name in ("results.json", "results.md"):
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()


def test_there_can_be_more_processes_than_episodes(fss, tmp_path):
  for index in (1, 2, 3, 4):
    benchmark = FewShot("fss1000", read_benchmark("fss1000", fss), count=2)
    results = parts.run(benchmark, StandIn, tmp_path, Shard(index, 4))
  assert results["folds"]["0"]["classes"].keys() == {"abacus", "mug"}


def test_ignored_pixels_and_empty_masks_count_like_in_published_code():
  truth = np.array([[0, 1, 255], [1, 0, 255]], np.uint8)
  found = np.array([[1, 1, 1], [0, 0, 0]], np.uint8)
  np.testing.assert_array_equal(episode_counts(found, truth), [[1, 1], [3, 3]])
  counts = ClassCounts()
  counts.add(1, episode_counts(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8)))
  assert counts.mean_iou() == 0.0 and counts.fb_iou() == 0.5


def test_counts_beyond_32_bits_stay_exact():
  counts, again = ClassCounts(), ClassCounts()
  for _ in range(3):
    counts.add(5, np.array([[2**40 + 1, 2**31], [2**41, 2**32 + 3]], np.int64))
  values = json.loads(json.dumps(counts.values()))
  assert values["5"]["intersection"] == [3 * 2**40 + 3, 3 * 2**31] and values["5"]["episodes"] == 3
  again.add_values(values)
  assert again.values() == counts.values()


def test_the_published_figure_is_shown_only_for_comparable_runs(voc, fss, tmp_path):
  data = read_benchmark("pascal5i", voc)
  parts.run(FewShot("pascal5i", data, folds=[0], count=8, shots=2), StandIn, tmp_path / "one")
  table = (tmp_path / "one" / "results.md").read_text()
  assert "| fold 0 | published |" in table and "89.8" not in table
  parts.run(FewShot("pascal5i", data, count=8, shots=2), StandIn, tmp_path / "all")
  table = (tmp_path / "all" / "results.md").read_text()
  assert "| fold 0 | fold 1 | fold 2 | fold 3 | mean | published |" in table and "89.8 [1]" in table
  assert "the published lists have fewer" in table and "Only some of the episodes" in table
  parts.run(FewShot("fss1000", read_benchmark("fss1000", fss)), StandIn, tmp_path / "fss")
  table = (tmp_path / "fss" / "results.md").read_text()
  assert "85.6" not in table and "3 classes; published figures are of the 240 of the test split" in table


def test_unknown_folds_and_too_many_prompts_are_refused(voc):
  data = read_benchmark("pascal5i", voc)
  with pytest.raises(InputError, match="--fold: found 7, expected some of 0, 1, 2, 3"):
    FewShot("pascal5i", data, folds=[1, 7])
  with pytest.raises(InputError, match="expected at least 41 for --shots 40"):
    FewShot("pascal5i", data, shots=40)


def command(*options):
  return seggpt("evaluate", *options, cwd=ROOT, env={"XLA_FLAGS": QUICK})


def test_the_command_writes_a_table_numbers_and_a_picture_and_does_nothing_twice(weights_directory, voc, tmp_path):
  options = [
    "--benchmark",
    "pascal5i",
    "--model-path",
    weights_directory,
    "--data-dir",
    voc,
    "--outdir",
    tmp_path / "out",
  ]
  options += ["--outdir", tmp_path / "out", "--fold", "0,3", "--shots", 2, "--episodes", 6]
  done = command(*options)
  assert done.returncode == 0, done.stderr
  assert "episode/s" in done.stderr and "mIoU=" in done.stderr  # the bar, with its rate and the score so far
  assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
    "examples.png", "parts", "results.json", "results.md",
  ]  # fmt: skip
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  assert results["benchmark"] == "pascal5i" and results["folds"].keys() == {"0", "3"}
  assert results["settings"]["shots"] == 2 and results["settings"]["episodes"] == [6, 6]
  table = (tmp_path / "out" / "results.md").read_text()
  assert table in done.stdout and f"{100 * results['folds']['0']['miou']:.1f}" in table
  sheet = Image.open(tmp_path / "out" / "examples.png")
  assert sheet.size == (4 * 196, 2 * few_shot._EXAMPLES * 162)

  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()}
  again = command(*options)
  assert again.returncode == 0 and again.stdout == done.stdout and "episode/s" not in again.stderr
  assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()}
  other = command(*options, "--seed", 1)
  assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
  assert "found seed=0 of an earlier run, expected 1 as asked for now; choose another --outdir" in other.stderr


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (["--benchmark", "pascal5i", "--fold", "5"], ["--fold: found '5'", "0,1,2,3"]),
    (["--benchmark", "pascal5i", "--shots", "99"], ["class ", "expected at least 100"]),
    (["--benchmark", "davis2017"], ["found no JPEGImages/ in it", "DAVIS/JPEGImages"]),
    (["--benchmark", "fss1000", "--fold", "0"], ["--fold cannot be combined with fss1000", "pascal5i"]),
    (["--benchmark", "pascal5i", "--num_frames", "2"], ["--num-frames cannot be combined with pascal5i", "davis2017"]),
    (["--benchmark", "isaid5i", "--fold", "3"], ["--fold: found '3'", "0,1,2"]),
    (["--benchmark", "suim", "--fold", "0"], ["--fold cannot be combined with suim", "pascal5i", "isaid5i"]),
    (["--benchmark", "isic2018"], ["found no ISIC2018_Task1-2_Training_Input/ in it", "ISIC"]),
    (["--benchmark", "pascal5i", "--shard", "3/2"], ["--shard: found '3/2'", "2/4"]),
  ],
)
def test_wrong_input_ends_the_command_with_status_2_and_one_line(weights_directory, voc, tmp_path, options, words):
  done = command("--model-path", weights_directory, "--data-dir", voc, *options, "--outdir", tmp_path / "out")
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  assert all(word in done.stderr for word in words), done.stderr
  assert not (tmp_path / "out").exists()
