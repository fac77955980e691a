"""DAVIS: videos in its layout, scores like its toolkit's, and prediction files that the toolkit can read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import parts
from seggpt_jax.evaluation.davis import Davis, _list_videos
from seggpt_jax.inference.predictor import Prediction, Predictor
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.palette import fixed_palette
from tests.commands import seggpt
from tests.xla_flags import QUICK


class StandIn(Predictor):
  """A predictor that returns the objects of the first frame for every frame and records the number of prompts."""

  def __init__(self):
    self.learned, self.num_prompts = None, []

  @property
  def tile_size(self):
    return 24, 30  # the size of the frames, so that prompts are not resized

  def predict(self, image, prompts=(), **options):
    return next(iter(self.predict_many([(image, prompts)], **options)))

  def predict_many(self, queries, approach=None, *, palette=None):
    for image, prompts in queries:
      self.num_prompts.append(len(prompts))
      labels = prompts[0][1].astype(np.uint8)
      yield Prediction(labels, image, fixed_palette(1 + int(labels.max())), tuple(range(1 + int(labels.max()))))


def annotation(davis, name, index):
  label = np.array(Image.open(davis / f"DAVIS/Annotations/480p/{name}/{index:05}.png"))
  return np.where(label == 255, 0, label)


def f_measure(found, true):
  """Returns F computed by dilation with SciPy; the tolerance is one pixel on frames of this size."""

  def contour(mask):
    shifted = [
      np.pad(mask, ((0, 1), (0, 1)), mode="edge")[dy:, dx:][: mask.shape[0], : mask.shape[1]]
      for dy, dx in ((0, 1), (1, 0), (1, 1))
    ]
    return np.logical_or.reduce([mask != other for other in shifted])

  ours, theirs = contour(found), contour(true)
  if not ours.any() or not theirs.any():
    return float(ours.any() == theirs.any())
  cross = ndimage.generate_binary_structure(2, 1)
  precision = (ours & ndimage.binary_dilation(theirs, cross)).sum() / ours.sum()
  recall = (theirs & ndimage.binary_dilation(ours, cross)).sum() / theirs.sum()
  return 2 * precision * recall / max(precision + recall, 1e-9)


def test_the_scores_are_means_over_objects_of_means_over_inner_frames(davis, tmp_path):
  results = parts.run(Davis(davis), StandIn, tmp_path)
  j, f = {}, {}
  for name, frames, objects in (("swan", 7, 1), ("bear", 5, 2)):
    first = annotation(davis, name, 0)
    for index in range(1, objects + 1):
      pairs = [(first == index, annotation(davis, name, frame) == index) for frame in range(1, frames - 1)]
      j[f"{name}_{index}"] = np.mean([(found & true).sum() / (found | true).sum() for found, true in pairs])
      f[f"{name}_{index}"] = np.mean([f_measure(found, true) for found, true in pairs])
  for title, expected in (("J", j), ("F", f)):
    found = {key: entry[title]["mean"] for key, entry in results["objects"].items()}
    assert found == pytest.approx(expected, abs=1e-12)
    assert results["scores"][f"{title} mean"] == pytest.approx(np.mean(list(expected.values())))
  assert results["scores"]["J&F mean"] == pytest.approx((np.mean(list(j.values())) + np.mean(list(f.values()))) / 2)
  # The scores decay because the objects move and the predictions do not.
  assert results["scores"]["J decay"] > 0.2
  table = (tmp_path / "results.md").read_text()
  # The published figure is of 30 videos.
  assert f"| J mean | {100 * results['scores']['J mean']:.1f} |  |" in table and "3 objects in 2 videos" in table


def test_the_whole_validation_set_is_put_beside_the_published_figure(davis, tmp_path):
  root = tmp_path / "DAVIS"
  for index in range(30):
    for kind in ("JPEGImages", "Annotations"):
      (root / kind / "480p").mkdir(parents=True, exist_ok=True)
      (root / kind / "480p" / f"video{index}").symlink_to(davis / "DAVIS" / kind / "480p" / "swan")
  (root / "ImageSets" / "2017").mkdir(parents=True)
  (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(f"video{index}" for index in range(30)))
  parts.run(Davis(root), StandIn, tmp_path / "out")
  assert "| 72.5 [1] |" in (tmp_path / "out" / "results.md").read_text()


def test_predictions_are_written_as_the_toolkit_reads_them(davis, tmp_path):
  parts.run(Davis(davis), StandIn, tmp_path)
  for name, frames in (("swan", 7), ("bear", 5)):
    files = sorted((tmp_path / name).iterdir())
    assert [path.name for path in files] == [f"{index:05}.png" for index in range(frames)]
    for path in files:
      image = Image.open(path)
      assert image.mode == "P" and image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
      np.testing.assert_array_equal(np.asarray(image), annotation(davis, name, 0))
  assert Image.open(tmp_path / "examples.png").size == (4 * 196, 4 * 162)


def test_recent_predictions_join_the_first_frame(davis, tmp_path):
  predictor = StandIn()
  Davis(davis, num_frames=2).run(predictor, "swan", tmp_path)
  assert predictor.num_prompts == [1, 2, 3, 3, 3, 3]
  assert "num_frames" in Davis(davis, num_frames=2).settings


def test_videos_are_shared_and_not_done_twice(davis, tmp_path):
  assert parts.run(Davis(davis), StandIn, tmp_path, Shard(2, 2)) is None
  assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["bear", "parts"]
  shared = parts.run(Davis(davis), StandIn, tmp_path, Shard(1, 2))
  assert shared == parts.run(Davis(davis), StandIn, tmp_path / "whole")
  assert shared == parts.run(Davis(davis), lambda: pytest.fail("loaded"), tmp_path)
  with pytest.raises(
    InputError, match=r"swan\.json: found num_frames=0 of an earlier run, expected 4 as asked for now"
  ):
    parts.run(Davis(davis, num_frames=4), StandIn, tmp_path)


def test_what_is_missing_or_does_not_fit_is_named(davis, tmp_path):
  with pytest.raises(InputError, match="nowhere: folder not found"):
    _list_videos(tmp_path / "nowhere")
  root = tmp_path / "DAVIS"
  shutil.copytree(davis / "DAVIS", root)
  frames = root / "JPEGImages" / "480p" / "bear"
  Image.fromarray(np.zeros((24, 33), np.uint8)).save(root / "Annotations/480p/bear/00002.png")
  with pytest.raises(InputError, match=r"00002\.png: found 33 x 24 pixels, expected 30 x 24 as its image has"):
    Davis(root).run(StandIn(), "bear", tmp_path / "out")
  Image.fromarray(np.zeros((24, 30), np.uint8)).save(root / "Annotations/480p/bear/00000.png")
  with pytest.raises(InputError, match=r"00000\.png: found no object"):
    Davis(root).run(StandIn(), "bear", tmp_path / "out")
  (root / "Annotations/480p/bear/00003.png").unlink()
  with pytest.raises(InputError, match=r"00003\.jpg: found no annotation for it, expected .*00003\.png"):
    Davis(root)
  for index in (2, 3, 4):
    (frames / f"{index:05}.jpg").unlink()
  with pytest.raises(InputError, match="bear: found 2 frames, expected at least 3"):
    Davis(root)
  (root / "ImageSets/2017/val.txt").write_text("swan\nlion\n")
  with pytest.raises(InputError, match="lion: folder not found"):
    Davis(root)
  (root / "ImageSets/2017/val.txt").unlink()
  with pytest.raises(InputError, match=r"val\.txt: not found"):
    Davis(root)


def test_the_command_follows_objects_with_a_network(weights_directory, davis, tmp_path):
  options = ["--benchmark", "davis2017", "--model-path", weights_directory, "--data-dir", davis, "--num-frames", 1]
  done = seggpt("evaluate", *options, "--outdir", tmp_path, env={"XLA_FLAGS": QUICK})
  assert done.returncode == 0, done.stderr
  assert "frame/s" in done.stderr and "J=" in done.stderr
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["settings"]["num_frames"] == 1 and results["objects"].keys() == {"swan_1", "bear_1", "bear_2"}
  assert "| J&F mean |" in done.stdout and "1 recent predictions as prompts" in done.stdout
  assert np.asarray(Image.open(tmp_path / "bear" / "00004.png")).max() <= 2
