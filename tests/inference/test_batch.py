"""The command people run on their folders: what it reads, what it writes, and what it says when a file is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from image_folders import SIZES, command, find, write, write_mapping
from PIL import Image

from seggpt_jax.data.images import read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError
from seggpt_jax.inference import batch, outputs
from seggpt_jax.inference.predictor import Predictor


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
    + ["metrics.json", "summary.txt", "run.json", "progress/0-of-1.jsonl"]
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
    np.testing.assert_array_equal(panels[:, 3 * width : 4 * width], expected.colours)

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
