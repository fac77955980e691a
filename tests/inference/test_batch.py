"""The command people run on their folders: what it reads, what it writes, and what it says when a file is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax import palette
from seggpt_jax.data.images import read_image
from seggpt_jax.data.labels import LabelFormat, read_labels
from seggpt_jax.errors import InputError
from seggpt_jax.inference import batch, outputs
from seggpt_jax.inference.predictor import Prediction, Predictor

ROOT = Path(__file__).parents[2]
SIZES = {"a": (31, 45), "b": (64, 20), "c": (33, 33)}  # height and width of the queries


def write(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path):
  """Three queries, the last one without a label, and three prompts of three classes."""
  generator = np.random.default_rng(0)

  def picture(*size):
    return generator.integers(0, 256, (*size, 3), np.uint8)

  for name, size in SIZES.items():
    write(tmp_path / "data" / "images" / f"{name}.png", picture(*size))
    if name != "c":
      write(tmp_path / "data" / "labels" / f"{name}.png", generator.integers(0, 3, size, np.uint8))
  for name in ("p", "q", "r"):
    write(tmp_path / "prompts" / "images" / f"{name}.png", picture(40, 50))
    write(tmp_path / "prompts" / "labels" / f"{name}.png", generator.integers(0, 3, (40, 50), np.uint8))
  return tmp_path


@pytest.fixture
def predictor(model):
  return Predictor(model)


def find(folders, **options):
  prompts = folders / "prompts"
  return batch.list_queries(folders / "data", prompts / "images", prompts / "labels", **options)


def write_mapping(folders, mapping):
  path = folders / "mapping.json"
  path.write_text(mapping if isinstance(mapping, str) else json.dumps(mapping))
  return path


def command(folders, weights_directory, *options):
  prompts = folders / "prompts"
  return subprocess.run(
    [
      *(sys.executable, ROOT / "infer.py", "--model-path", weights_directory, "--dataset-dir", folders / "data"),
      *("--prompt-img-dir", prompts / "images", "--prompt-label-dir", prompts / "labels"),
      *("--outdir", folders / "out", *options),
    ],
    capture_output=True,
    text=True,
    cwd=folders,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    check=False,
  )


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
    [f"{kind}/{name}.png" for kind in ("label", "color", "concat") for name in SIZES] + ["metrics.json"]
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


def test_without_a_mapping_the_first_prompts_by_name_serve_every_query(folders):
  for query in find(folders, top_k=2):
    assert [prompt.image.stem for prompt in query.prompts] == ["p", "q"]
    assert [prompt.labels.parent.name for prompt in query.prompts] == ["labels", "labels"]
  assert len(find(folders, top_k=10)[0].prompts) == 3


def test_a_mapping_gives_the_best_first_and_files_match_by_name_without_ending(folders):
  write(folders / "prompts" / "labels" / "q.bmp", np.zeros((40, 50), np.uint8))
  (folders / "prompts" / "labels" / "q.png").unlink()
  mapping = write_mapping(folders, {f"{name}.jpg": ["r.png", "q.png", "p.png"] for name in "abcz"})
  queries = find(folders, mapping=mapping, top_k=2)
  assert [query.name for query in queries] == ["a", "b", "c"]
  assert [prompt.labels.name for prompt in queries[0].prompts] == ["r.png", "q.bmp"]


def test_a_folder_that_holds_images_directly_has_no_truth(folders):
  prompts = folders / "prompts"
  queries = batch.list_queries(folders / "data" / "images", prompts / "images", prompts / "labels")
  assert [(query.name, query.truth) for query in queries] == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize(
  "mapping, words",
  [
    ({"a.png": ["p.png"], "b.png": ["p.png"]}, ["mapping.json", "'c.png'"]),
    ({name + ".png": ["p.png", "lost.png"] for name in "abc"}, ["mapping.json", "a.png", "lost.png"]),
    ({name + ".png": [] for name in "abc"}, ["mapping.json", "a.png", "[]"]),
    ({name + ".png": "p.png" for name in "abc"}, ["mapping.json", "a.png", "list"]),
    (["p.png"], ["mapping.json", "list"]),
    ("{'a.png'", ["mapping.json", "JSON"]),
  ],
)
def test_a_wrong_mapping_is_named_with_its_key(folders, mapping, words):
  with pytest.raises(InputError) as error:
    find(folders, mapping=write_mapping(folders, mapping), top_k=5)
  assert all(word in str(error.value) for word in words), error.value


def test_a_missing_mapping_is_named(folders):
  with pytest.raises(InputError, match=r"nowhere\.json: not found"):
    find(folders, mapping=folders / "nowhere.json")


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
  metrics = batch.run(predictor, find(folders), folders / "out", labels=LabelFormat("binary", 127))
  assert len(metrics["classes"]) == 2
  assert set(np.unique(Image.open(folders / "out" / "label" / "a.png"))) <= {0, 1}


def test_scores_of_an_earlier_run_do_not_stay_beside_new_masks(folders, predictor):
  assert batch.run(predictor, find(folders), folders / "out") is not None
  for path in (folders / "data" / "labels").iterdir():
    path.unlink()
  (folders / "data" / "labels").rmdir()
  assert batch.run(predictor, find(folders), folders / "out") is None
  assert not (folders / "out" / "metrics.json").exists()


def test_a_truth_with_classes_that_no_prompt_shows_counts_against_the_prediction():
  scores = batch.Scores()
  zeros = np.zeros((2, 2), np.uint8)
  scores.add("first", zeros, zeros)
  scores.add("second", zeros, np.array([[0, 0], [5, 5]], np.uint8))
  summary = scores.summary()
  assert summary["per_image"]["first"]["iou"] == [1.0, None, None, None, None, None]
  assert [entry["iou"] for entry in summary["classes"]] == [0.75, None, None, None, None, 0.0]
  assert (summary["miou"], summary["foreground_miou"]) == (0.375, 0.0)
  prediction = Prediction(zeros, np.zeros((2, 2, 3), np.uint8), palette.fixed_palette(2), (0, 1))
  truth = np.full((2, 2), 5, np.uint8)
  picture = outputs.concat(prediction.colours, (prediction.colours, zeros), prediction, truth)
  assert picture.shape == (2, 12, 3)


def test_a_picture_larger_than_a_block_is_counted_once(model):
  generator = np.random.default_rng(0)
  predicted, truth = generator.integers(0, 3, (2, 600, 901), np.uint8)
  expected = np.bincount((truth.astype(int) * 3 + predicted).ravel(), minlength=9).reshape(3, 3)
  np.testing.assert_array_equal(batch.confusion_counts(predicted, truth, 3), expected)


def test_a_failed_write_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path):
  outputs.write_json(tmp_path / "metrics.json", {"miou": 0.5})
  with pytest.raises(ValueError):
    outputs.write_json(tmp_path / "metrics.json", {"miou": float("nan")})
  with pytest.raises(InputError, match="cannot be written"):
    outputs.write_json(tmp_path / "metrics.json" / "below.json", {})
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
  assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou": 0.5}


def test_labels_are_read_as_in_training_unless_asked_otherwise(tmp_path):
  """A run trained on masks of 0 and 255 is judged on the same classes without further flags."""
  for folder in ("best/7", "checkpoints/9"):
    for item in ("params", "config"):
      (tmp_path / "run" / folder / item).mkdir(parents=True)
  settings = {"data": {"labels": "binary", "threshold": 127}}
  (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
  for path in ("run", "run/best", "run/best/7", "run/checkpoints/9"):
    assert batch.label_format(tmp_path / path) == LabelFormat("binary", 127), path
  assert batch.label_format(tmp_path / "run", threshold=5) == LabelFormat("binary", 5)
  assert batch.label_format(tmp_path / "run", "index").mode == "index"
  settings = {"data": {"labels": "table", "threshold": 0, "table": [[0, 0, 0], [255, 0, 0]], "ignore": [[1, 2, 3]]}}
  (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
  expected = LabelFormat("table", 0, ((0, 0, 0), (255, 0, 0)), ((1, 2, 3),))
  assert batch.label_format(tmp_path / "run") == expected
  assert batch.label_format(tmp_path / "run", "index") == LabelFormat()
  (tmp_path / "run" / "config.json").unlink()
  assert batch.label_format(tmp_path / "run") == LabelFormat()
  with pytest.raises(InputError, match="--threshold: found with index labels"):
    batch.label_format(tmp_path / "run", None, 127)


@pytest.mark.parametrize(
  "text, words",
  [
    ("{'data'", "cannot be read as JSON"),
    ("\udcff", "cannot be read as JSON"),
    ("", "cannot be read as JSON"),
    ("[]", "found no object"),
    ("5", "found no object"),
    ('{"data": []}', "found no object"),
    ('{"data": {"labels": 5}}', "data.labels: found 5, expected one of index, binary, table"),
    ('{"data": {"labels": ["binary"]}}', "data.labels: found ['binary']"),
    ('{"data": {"labels": "binary", "threshold": "x"}}', "data.threshold: found 'x', expected 0..255"),
    ('{"data": {"labels": "binary", "threshold": 300}}', "data.threshold: found 300, expected 0..255"),
    ('{"data": {"labels": "table", "table": 5}}', "data.table: found 5, expected a list"),
    ('{"data": {"labels": "table", "table": [0, null]}}', "data.table: found [0, None], expected a list"),
    ('{"data": {"labels": "table"}}', "data: table: found 0 entries"),
    ('{"data": {"ignore": ["x"]}}', "data.ignore: found ['x'], expected a list"),
  ],
)
def test_a_garbled_configuration_of_the_run_is_named(tmp_path, text, words):
  for item in ("params", "config"):
    (tmp_path / "best" / "7" / item).mkdir(parents=True)
  (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(InputError) as error:
    batch.label_format(tmp_path)
  assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")
  assert words in str(error.value) and "\n" not in str(error.value)


def test_a_garbled_configuration_ends_the_command_with_one_line(folders, weights_directory):
  shutil.copytree(weights_directory, folders / "run" / "best" / "7")
  (folders / "run" / "config.json").write_text('{"data": {"labels": "binary", "threshold": "x"}}')
  done = command(folders, folders / "run")
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
  assert "config.json: data.threshold: found 'x'" in done.stderr
