"""The command people run on their folders: what it reads, what it writes, and what it says when a file is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_module

from seggpt_jax.data.images import read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError
from seggpt_jax.inference import batch, outputs
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.shard import Shard
from tests.inference.image_folders import SIZES, command, find, infer, write, write_mapping


@pytest.fixture
def predictor(model):
  return Predictor(model)


def slow_metrics(folders, names, num_classes):
  """IoU from the files that were written, by sets of pixels: of each image, and of all images laid end to end."""

  def ious(predicted, truth):
    both = [np.sum((predicted == n) & (truth == n)) for n in range(num_classes)]
    either = [np.sum((predicted == n) | (truth == n)) for n in range(num_classes)]
    return [b / e if e else None for b, e in zip(both, either, strict=True)]

  predicted = {n: np.asarray(Image.open(folders / "out" / "label" / f"{n}.png")).ravel() for n in names}
  truth = {n: np.asarray(Image.open(folders / "data" / "labels" / f"{n}.png")).ravel() for n in names}
  per_image = {name: ious(predicted[name], truth[name]) for name in names}
  return per_image, ious(np.concatenate([*predicted.values()]), np.concatenate([*truth.values()]))


def test_the_command_writes_what_the_predictor_says_and_scores_it(folders, weights_directory, predictor):
  mapping = {"a.png": ["q.png", "p.png", "r.png"], "b.png": ["r.png", "q.png"], "c.png": ["p.png"]}
  done = command(folders, weights_directory, "--mapping", write_mapping(folders, mapping), "--top_k", "2")
  assert done.returncode == 0, done.stderr
  assert "image/s" in done.stderr  # the bar, with its rate

  out = folders / "out"
  assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(
    [f"{kind}/{name}.png" for kind in ("label", "color", "concat") for name in SIZES]
    + ["metrics.json", "summary.txt", "run.json", "progress/1-of-1.jsonl"]
  )
  prompts = folders / "prompts"
  for name, chosen in {"a": "qp", "b": "rq", "c": "p"}.items():
    query = read_image(folders / "data" / "images" / f"{name}.png")
    pairs = [
      (read_image(prompts / "images" / f"{p}.png"), read_labels(prompts / "labels" / f"{p}.png", LabelFormat()))
      for p in chosen
    ]
    expected = predictor.predict(query, pairs)
    labels = Image.open(out / "label" / f"{name}.png")
    assert labels.mode == "L"
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_array_equal(Image.open(out / "color" / f"{name}.png"), expected.palette[expected.labels])
    panels = np.asarray(Image.open(out / "concat" / f"{name}.png"))
    height, width = SIZES[name]
    assert panels.shape == (height, width * (5 if name == "c" else 6), 3)
    np.testing.assert_array_equal(panels[:, :width], query)
    np.testing.assert_array_equal(panels[:, 3 * width : 4 * width], expected.colors)

  metrics = json.loads((out / "metrics.json").read_text())
  per_image, whole = slow_metrics(folders, "ab", 3)
  assert (metrics["images"], metrics["unscored"]) == (2, ["c"])
  for name, scores in per_image.items():
    np.testing.assert_allclose(metrics["per_image"][name]["iou"], scores, rtol=1e-6)
    np.testing.assert_allclose(metrics["per_image"][name]["miou"], np.mean(scores), rtol=1e-6)
  np.testing.assert_allclose([entry["iou"] for entry in metrics["classes"]], whole, rtol=1e-6)
  np.testing.assert_allclose(metrics["miou"], np.mean(whole), rtol=1e-6)
  np.testing.assert_allclose(metrics["foreground_miou"], np.mean(whole[1:]), rtol=1e-6)
  assert f"{metrics['miou']:.1%}" in done.stdout


def test_wrong_input_ends_the_command_with_status_2_and_one_line(folders, weights_directory):
  (folders / "prompts" / "labels" / "q.png").unlink()
  done = command(folders, weights_directory, "--top-k", "2")
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1
  assert "q.png" in done.stderr
  assert not (folders / "out").exists()


def test_a_wrong_flag_ends_the_command_with_status_2(folders, weights_directory):
  for options in (["--top-k", "0"], ["--threshold", "127"]):
    done = command(folders, weights_directory, *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert options[0][2:] in done.stderr


def test_a_label_of_another_size_than_its_image_is_named(folders, predictor):
  for path in (folders / "data" / "labels" / "a.png", folders / "prompts" / "labels" / "p.png"):
    right = path.read_bytes()
    write(path, np.zeros((7, 9), np.uint8))
    with pytest.raises(InputError, match=rf"{path}: found 9 x 7 pixels"):
      batch.run(predictor, find(folders), folders / "out")
    path.write_bytes(right)


def test_bad_queries_are_passed_over_where_asked_for(folders, weights_directory):
  """One broken file among thousands must not cost the night; nor may it go unseen."""
  (folders / "data" / "images" / "a.png").write_bytes(b"no picture")
  mapping = write_mapping(folders, {"a": ["p.png"], "b": ["gone.png"], "c": ["q.png"]})
  done = command(folders, weights_directory, "--mapping", mapping)
  assert done.returncode == 2 and "gone.png: found no prompt image" in done.stderr
  done = command(folders, weights_directory, "--mapping", mapping, "--skip-bad")
  assert done.returncode == 0, done.stderr
  assert [path.stem for path in (folders / "out" / "label").iterdir()] == ["c"]
  listed = (folders / "out" / batch.BAD_FILES).read_text().splitlines()
  assert [line.split(":")[0] for line in listed] == ["a", "b"] and "a.png: cannot be read" in listed[0]
  assert "passed over 2 images, the first: b: " in done.stdout
  (folders / "data" / "images" / "c.png").write_bytes(b"")
  done = command(folders, weights_directory, "--mapping", mapping, "--skip-bad")
  assert done.returncode == 2 and "none of 2 images could be segmented" in done.stderr


def test_noisy_masks_are_read_with_a_threshold(folders, predictor):
  generator = np.random.default_rng(1)
  for path in (folders / "prompts" / "labels").iterdir():
    mask = generator.random((40, 50)) < 0.5
    write(path, np.where(mask, 250, 4).astype(np.uint8) + generator.integers(0, 5, (40, 50), np.uint8))
  for path in (folders / "data" / "labels").iterdir():
    write(path, np.where(np.asarray(Image.open(path)) > 0, 250, 4).astype(np.uint8))
  metrics = batch.run(predictor, find(folders), folders / "out", labels=LabelFormat("binary", 127)).metrics
  assert len(metrics["classes"]) == 2
  assert set(np.unique(Image.open(folders / "out" / "label" / "a.png"))) <= {0, 1}


def test_scores_of_an_earlier_run_do_not_stay_beside_new_masks(folders, predictor):
  assert batch.run(predictor, find(folders), folders / "out").metrics is not None
  for path in (folders / "data" / "labels").iterdir():
    path.unlink()
  (folders / "data" / "labels").rmdir()
  assert batch.run(predictor, find(folders), folders / "out").metrics is None
  assert not (folders / "out" / "metrics.json").exists()


def test_a_failed_write_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path):
  outputs.write_json(tmp_path / "metrics.json", {"miou": 0.5})
  with pytest.raises(ValueError):
    outputs.write_json(tmp_path / "metrics.json", {"miou": float("nan")})
  with pytest.raises(InputError, match="cannot be written"):
    outputs.write_json(tmp_path / "metrics.json" / "below.json", {})
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
  assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou": 0.5}


def test_a_run_that_was_stopped_goes_on_where_it_was(folders, predictor):
  """Of a night's 100,000 images, those before the power cut are not painted again, and all are scored."""
  settings = {"split": 1}
  whole = batch.run(predictor, find(folders), folders / "out", settings=settings).metrics
  path = folders / "out" / "progress" / "1-of-1.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  # As a kill leaves it: one image noted, the next one's line cut off.
  path.write_bytes(lines[0] + lines[1][:9])
  for name in "ab":
    (folders / "out" / "label" / f"{name}.png").unlink()
  outcome = batch.run(predictor, find(folders), folders / "out", resume=True, settings=settings)
  assert (outcome.before, outcome.done, outcome.metrics) == (1, 2, whole)
  assert sorted(path.stem for path in (folders / "out" / "label").iterdir()) == ["b", "c"]
  assert json.loads((folders / "out" / "metrics.json").read_text()) == whole
  for other in ({"split": 2}, {}, {"split": 1, "top-k": 3}):
    with pytest.raises(InputError, match=r"--(split|top-k): found .*, expected .* as in the run that .*run\.json"):
      batch.run(predictor, find(folders), folders / "out", resume=True, settings=other)
  assert batch.run(predictor, find(folders), folders / "out", settings=settings).done == 3  # begun anew
  assert (folders / "out" / "label" / "a.png").exists()


def test_the_command_resumes_with_the_same_flags_and_no_others(folders, weights_directory):
  assert command(folders, weights_directory).returncode == 0
  path = folders / "out" / "progress" / "1-of-1.jsonl"
  path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
  done = command(folders, weights_directory, "--resume")
  assert done.returncode == 0 and "resumed: 1 images were done, 2 are done now" in done.stdout, done.stderr
  other = command(folders, weights_directory, "--resume", "--split", "2")
  assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
  assert "--split: found ['2'], expected ['1'] as in the run" in other.stderr


def test_processes_that_share_a_run_come_to_the_same_scores(folders, predictor):
  whole = batch.run(predictor, find(folders), folders / "whole").metrics
  second = batch.run(predictor, find(folders), folders / "out", shard=Shard(2, 2))
  assert (second.done, second.left, second.metrics) == (1, 2, None)
  assert not (folders / "out" / "metrics.json").exists()
  with pytest.raises(InputError, match=r"2-of-2\.jsonl: found an earlier run, expected none, or --resume"):
    batch.run(predictor, find(folders), folders / "out", shard=Shard(2, 2))
  first = batch.run(predictor, find(folders), folders / "out", shard=Shard(1, 2))
  assert (first.done, first.left, first.metrics) == (2, 0, whole)
  assert json.loads((folders / "out" / "metrics.json").read_text()) == whole


def test_bad_files_are_tried_again_when_a_run_is_resumed(folders, predictor):
  path = folders / "data" / "images" / "b.png"
  right = path.read_bytes()
  path.write_bytes(b"")
  assert set(batch.run(predictor, find(folders), folders / "out", bad={}).bad) == {"b"}
  path.write_bytes(right)
  outcome = batch.run(predictor, find(folders), folders / "out", bad={}, resume=True)
  assert (outcome.before, outcome.done, outcome.bad) == (2, 1, {})
  assert not (folders / "out" / batch.BAD_FILES).exists()


def test_seams_painted_again_lie_beside_the_tiles_as_they_were(folders, weights_directory, predictor):
  done = command(folders, weights_directory, "--split", "2", "--stitch-width", "1")
  assert done.returncode == 0, done.stderr
  image, prompt = (read_image(folders / kind) for kind in ("data/images/a.png", "prompts/images/p.png"))
  label = read_labels(folders / "prompts/labels/p.png", LabelFormat())
  expected = predictor.predict(image, [(prompt, label)], split=2, stitch_width=1)
  for folder, prediction in (("out", expected.unstitched), ("out/stitch", expected)):
    np.testing.assert_array_equal(Image.open(folders / folder / "label" / "a.png"), prediction.labels)
    assert (folders / folder / "color" / "a.png").exists() and (folders / folder / "concat" / "a.png").exists()
  metrics = json.loads((folders / "out" / "metrics.json").read_text())
  assert metrics["stitched"]["per_image"].keys() == metrics["per_image"].keys() == {"a", "b"}
  assert metrics["stitched"]["miou"] != metrics["miou"]
  assert "with the seams painted again" in (folders / "out" / "summary.txt").read_text()


def test_one_image_and_its_prompts_are_enough(folders, weights_directory, predictor):
  """No folders and no mapping for somebody who only wants to try it."""
  options = ["--model-path", weights_directory, "--image", "data/images/a.png,data/images/c.png"]
  prompts = ["--prompt-image", "prompts/images/p.png,prompts/images/q.png"]
  labels = ["--prompt-label", "prompts/labels/p.png,prompts/labels/q.png"]
  done = infer(folders, *options, *prompts, *labels)
  assert done.returncode == 0, done.stderr
  files = [(folders / f"prompts/images/{p}.png", folders / f"prompts/labels/{p}.png") for p in "pq"]
  expected = predictor.predict(folders / "data/images/a.png", files)
  np.testing.assert_array_equal(Image.open(folders / "out" / "label" / "a.png"), expected.labels)
  assert sorted(path.stem for path in (folders / "out" / "label").iterdir()) == ["a", "c"]
  for wrong, words in (
    ([*options, *prompts], "--prompt-label: missing"),
    ([*options, *prompts, *labels, "--dataset-dir", "data"], "found --dataset-dir and --image, expected one"),
    ([*options, *prompts, *labels, "--top-k", "2"], "--top-k: found beside --prompt-image"),
  ):
    done = infer(folders, *wrong)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr


def test_every_kind_of_result_says_the_same(folders, weights_directory, predictor):
  done = command(folders, weights_directory, "--save", "label,overlay,confidence,rle")
  assert done.returncode == 0, done.stderr
  out = folders / "out"
  assert not (out / "color").exists()
  labels = np.asarray(Image.open(out / "label" / "a.png"))
  entries = json.loads((out / "rle" / "a.json").read_text())
  assert [entry["category_id"] for entry in entries] == [index for index in (1, 2) if (labels == index).any()]
  for entry in entries:
    mask = mask_module.decode(entry["segmentation"])
    np.testing.assert_array_equal(mask == 1, labels == entry["category_id"])
    assert entry["area"] == mask.sum() and entry["image_id"] == "a" and 0 < entry["score"] < 1
    rows, cols = np.nonzero(mask)
    assert entry["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
  confidence = np.asarray(Image.open(out / "confidence" / "a.png"))
  assert confidence.shape == labels.shape and len(np.unique(confidence)) > 10
  shown, query = (np.asarray(Image.open(path)) for path in (out / "overlay" / "a.png", folders / "data/images/a.png"))
  np.testing.assert_array_equal((shown == query).all(axis=-1)[labels == 0], True)
  wrong = command(folders, weights_directory, "--save", "label,masks")
  assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
  assert "--save: found 'masks', expected some of label, color, concat" in wrong.stderr


def test_a_folder_that_cannot_be_written_to_is_known_before_the_work(folders, weights_directory):
  (folders / "out").write_text("a file")
  done = command(folders, weights_directory)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
  assert "out/progress: cannot be written" in done.stderr


def test_an_empty_folder_is_named(folders, weights_directory):
  for path in (folders / "data" / "images").iterdir():
    path.unlink()
  done = command(folders, weights_directory)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
  assert "data/images: found no images" in done.stderr
