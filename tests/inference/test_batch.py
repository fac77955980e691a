"""The command that segments folders: the files it reads and writes, and its messages when a file is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags
from pycocotools import mask as mask_module

from seggpt_jax.data.bad_files import LIST_FILE, BadFiles
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.inference import batch, forward, outputs, pictures
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import list_queries
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.palette import display_palette
from seggpt_jax.written import RECORD
from tests.inference.image_folders import SIZES, command, find, infer, write, write_mapping


@pytest.fixture
def predictor(model):
  return Predictor(model)


def slow_metrics(folders, names, num_classes):
  """Computes the IoU of each image, and of all images together, from the written files with plain sets of pixels."""

  def ious(predicted, truth):
    both = [np.sum((predicted == n) & (truth == n)) for n in range(num_classes)]
    either = [np.sum((predicted == n) | (truth == n)) for n in range(num_classes)]
    return [b / e if e else None for b, e in zip(both, either, strict=True)]

  predicted = {n: np.asarray(Image.open(folders / "out" / "label" / f"{n}.png")).ravel() for n in names}
  truth = {n: np.asarray(Image.open(folders / "data" / "labels" / f"{n}.png")).ravel() for n in names}
  per_image = {name: ious(predicted[name], truth[name]) for name in names}
  return per_image, ious(np.concatenate([*predicted.values()]), np.concatenate([*truth.values()]))


def test_the_command_writes_and_scores_the_predictions_of_the_predictor(folders, weights_directory, predictor):
  mapping = {"a.png": ["q.png", "p.png", "r.png"], "b.png": ["r.png", "q.png"], "c.png": ["p.png"]}
  done = command(folders, weights_directory, "--mapping", write_mapping(folders, mapping), "--top_k", "2")
  assert done.returncode == 0, done.stderr
  assert "image/s" in done.stderr  # the bar, with its rate

  out = folders / "out"
  assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(
    [f"{kind}/{name}.png" for kind in ("label", "color", "concat") for name in SIZES]
    + ["metrics.json", "summary.txt", "run.json", "progress/1-of-1.jsonl", RECORD]
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
    np.testing.assert_array_equal(Image.open(out / "color" / f"{name}.png"), display_palette(3)[expected.labels])
    strip = np.asarray(Image.open(out / "concat" / f"{name}.png"))
    height, width = SIZES[name]
    titles = pictures.title_height(width)
    assert strip.shape == (titles + height, width * (5 if name == "c" else 6), 3)
    assert (strip[:titles].reshape(titles, -1, width, 3) < 128).any(axis=(0, 2, 3)).all()  # a title above each panel
    np.testing.assert_array_equal(strip[titles:, :width], query)
    np.testing.assert_array_equal(strip[titles:, 3 * width : 4 * width], expected.colors)
    np.testing.assert_array_equal(strip[titles:, 4 * width : 5 * width], expected.overlay())

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
  for options in (["--top-k", "0"], ["--labels", "index:127"]):
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


def test_bad_queries_are_skipped_and_listed_with_skip_bad(folders, weights_directory):
  """One broken file among thousands must not end a night's run, and must not go unnoticed."""
  (folders / "data" / "images" / "a.png").write_bytes(b"no picture")
  mapping = write_mapping(folders, {"a": ["p.png"], "b": ["gone.png"], "c": ["q.png"]})
  done = command(folders, weights_directory, "--mapping", mapping)
  assert done.returncode == 2 and "gone.png: found no prompt image" in done.stderr
  done = command(folders, weights_directory, "--mapping", mapping, "--skip-bad")
  assert done.returncode == 0, done.stderr
  assert [path.stem for path in (folders / "out" / "label").iterdir()] == ["c"]
  listed = (folders / "out" / LIST_FILE).read_text().splitlines()
  assert [line.split(":")[0] for line in listed] == ["a", "b"] and "a.png: cannot be read" in listed[0]
  assert "passed over 2 images, the first: a: " in done.stdout
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
  assert [path.name for path in tmp_path.iterdir() if path.name != RECORD] == ["metrics.json"]
  assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou": 0.5}


def test_a_stopped_run_resumes_after_its_finished_images(folders, predictor):
  """After a power cut, images that were finished are not segmented again, and all images are scored."""
  settings = {"split": 1}
  whole = batch.run(predictor, find(folders), folders / "out", settings=settings).metrics
  path = folders / "out" / "progress" / "1-of-1.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  # The state after a kill: one image is noted, and the line of the next is cut off.
  path.write_bytes(lines[0] + lines[1][:9])
  for name in "ab":
    (folders / "out" / "label" / f"{name}.png").unlink()
  outcome = batch.run(predictor, find(folders), folders / "out", resume=True, settings=settings)
  assert (outcome.before, outcome.done, outcome.metrics) == (1, 2, whole)
  assert sorted(path.stem for path in (folders / "out" / "label").iterdir()) == ["b", "c"]
  assert json.loads((folders / "out" / "metrics.json").read_text()) == whole
  for other in ({"split": 2}, {}, {"split": 1, "top-k": 3}):
    with pytest.raises(
      InputError, match=r"run\.json: found --(split|top-k)=.* of an earlier run, expected .*; repeat the"
    ):
      batch.run(predictor, find(folders), folders / "out", resume=True, settings=other)
  assert batch.run(predictor, find(folders), folders / "out", settings=settings).done == 3  # started over
  assert (folders / "out" / "label" / "a.png").exists()


def test_the_command_resumes_with_the_same_flags_and_no_others(folders, weights_directory):
  assert command(folders, weights_directory).returncode == 0
  path = folders / "out" / "progress" / "1-of-1.jsonl"
  path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
  done = command(folders, weights_directory, "--resume")
  assert done.returncode == 0 and "resumed: 1 images were done, 2 are done now" in done.stdout, done.stderr
  other = command(folders, weights_directory, "--resume", "--split", "2")
  assert other.returncode == 2
  assert (
    "run.json: found --split=['auto'] of an earlier run, expected ['2'] as asked for" in other.stderr.splitlines()[-1]
  )


def test_results_of_another_run_are_not_overwritten_without_a_word(folders, predictor, capsys):
  """The wrong --outdir costs a night's results; one line says how to keep them, in time for Ctrl-C."""
  settings = {"split": ["1"], "top-k": 1}
  batch.run(predictor, find(folders), folders / "out", settings=settings)
  assert "overwriting" not in capsys.readouterr().out
  batch.run(predictor, find(folders), folders / "out", settings=settings, resume=True)
  assert "overwriting" not in capsys.readouterr().out
  for changed, words in (
    ({**settings, "split": ["1", "2"]}, "of an earlier run with --split=1; to keep them, choose another --outdir\n"),
    ({**settings, "split": ["1", "2"]}, "with the same settings; to keep them, use --resume, or another --outdir\n"),
  ):
    batch.run(predictor, find(folders), folders / "out", settings=changed)
    said = capsys.readouterr().out
    assert said.startswith(f"{folders / 'out'}: overwriting 3 results of an earlier run") and words in said
    assert said.index("overwriting") < said.index("compiling the network, about")


def test_a_home_directory_is_expanded_in_every_path(folders, weights_directory, monkeypatch):
  """A shell leaves the `~` of --outdir=~/out to the program."""
  monkeypatch.setenv("HOME", str(folders))
  mapping = write_mapping(folders, {"a.png": ["~/p.png"]})
  done = infer(
    folders,
    *("--model-path", weights_directory, "--mapping", f"~/{mapping.name}", "--outdir=~/there", "--skip-bad"),
    *("--dataset-dir=~/data", "--prompt-img-dir=~/prompts/images", "--prompt-label-dir=~/prompts/labels"),
  )
  assert done.returncode == 0, done.stderr
  assert (folders / "there" / "label" / "a.png").exists() and not (folders / "~").exists()
  files = [f"--image=~/data/images/{name}.png" for name in "a"]
  pair = ["--prompt-image=~/prompts/images/p.png", "--prompt-label=~/prompts/labels/p.png"]
  done = infer(folders, "--model-path", weights_directory, *files, *pair, "--outdir=~/one")
  assert done.returncode == 0, done.stderr
  assert (folders / "one" / "label" / "a.png").exists()


def test_processes_that_share_a_run_write_the_scores_of_a_single_process(folders, predictor):
  whole = batch.run(predictor, find(folders), folders / "whole").metrics
  second = batch.run(predictor, find(folders), folders / "out", shard=Shard(2, 2))
  assert (second.done, second.left, second.metrics) == (1, 2, None)
  assert not (folders / "out" / "metrics.json").exists()
  with pytest.raises(InputError, match=r"2-of-2\.jsonl: in use by an earlier run; use --resume"):
    batch.run(predictor, find(folders), folders / "out", shard=Shard(2, 2))
  first = batch.run(predictor, find(folders), folders / "out", shard=Shard(1, 2))
  assert (first.done, first.left, first.metrics) == (2, 0, whole)
  assert json.loads((folders / "out" / "metrics.json").read_text()) == whole


def test_bad_files_are_tried_again_when_a_run_is_resumed(folders, predictor):
  path = folders / "data" / "images" / "b.png"
  right = path.read_bytes()
  path.write_bytes(b"")
  assert [file.name for file in batch.run(predictor, find(folders), folders / "out", bad=BadFiles()).bad] == ["b"]
  path.write_bytes(right)
  outcome = batch.run(predictor, find(folders), folders / "out", bad=BadFiles(), resume=True)
  assert (outcome.before, outcome.done, len(outcome.bad)) == (2, 1, 0)
  assert not (folders / "out" / LIST_FILE).exists()


def test_stitched_predictions_are_written_beside_the_unstitched_ones(folders, weights_directory, predictor):
  done = command(folders, weights_directory, "--split", "2", "--stitch-width", "1", "--prompts", "first")
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
  assert "with the seams predicted again" in (folders / "out" / "summary.txt").read_text()


def test_one_image_and_its_prompts_are_enough(folders, weights_directory, predictor):
  """Somebody who tries the command needs no folders and no mapping."""
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
    ([*options, *prompts, *labels, "--top-k", "2"], "--top-k cannot be combined with --prompt-image"),
  ):
    done = infer(folders, *wrong)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr


def test_every_kind_of_result_describes_the_same_prediction(folders, weights_directory, predictor):
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


def test_label_maps_of_geotiffs_keep_their_place_on_the_earth(folders, predictor, caplog):
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  stated = {33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 4e5, 5.5e6, 0.0), 34735: (1, 1, 0, 1, 3072, 0, 1, 32633)}
  for tag, value in {**stated, 34737: "WGS 84 / UTM zone 33N|"}.items():
    tags.tagtype[tag] = {34735: TiffTags.SHORT, 34737: TiffTags.ASCII}.get(tag, TiffTags.DOUBLE)
    tags[tag] = value
  image = Image.open(folders / "data/images/a.png")
  image.save(folders / "data/images/a.tif", tiffinfo=tags)
  (folders / "data/images/a.png").unlink()
  batch.run(predictor, find(folders), folders / "out", kinds=["label", "geotiff"])
  found = Image.open(folders / "out/geotiff/a.tif")
  assert {tag: found.tag_v2[tag] for tag in stated} == stated
  assert found.tag_v2[34737] == "WGS 84 / UTM zone 33N|"
  for name in ("a", "b"):
    labels = np.asarray(Image.open(folders / f"out/label/{name}.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(folders / f"out/geotiff/{name}.tif")), labels)
  assert 33550 not in Image.open(folders / "out/geotiff/b.tif").tag_v2
  assert caplog.text.count("images without coordinates") == 1


def test_results_of_queries_in_folders_keep_the_folders(folders, predictor):
  for camera in ("cam1", "cam2"):
    for kind in ("images", "labels"):
      (folders / "data" / kind / camera).mkdir()
      shutil.copy(folders / "data" / kind / "a.png", folders / "data" / kind / camera / "a.png")
  outcome = batch.run(predictor, find(folders), folders / "out")
  assert outcome.done == 5 and {"cam1/a", "cam2/a"} <= outcome.metrics["per_image"].keys()
  for name in ("cam1/a", "cam2/a"):
    for kind in ("label", "color", "concat"):
      assert (folders / "out" / kind / f"{name}.png").exists()


def test_an_empty_prompt_is_named_by_its_file(folders, predictor, caplog):
  write(folders / "prompts" / "labels" / "p.png", np.zeros((40, 50), np.uint8))
  batch.run(predictor, find(folders), folders / "out")
  assert f"{folders / 'prompts' / 'labels' / 'p.png'}: no foreground" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_reported_before_the_work(folders, weights_directory):
  (folders / "out").write_text("a file")
  done = command(folders, weights_directory)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
  assert "out: cannot be written: File exists" in done.stderr


def test_an_empty_folder_is_named(folders, weights_directory):
  for path in (folders / "data" / "images").iterdir():
    path.unlink()
  done = command(folders, weights_directory)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
  assert "data/images: found no images" in done.stderr


def stop_after_one(folders):
  """Takes a finished run back to the state after its first image."""
  path = folders / "out" / "progress" / "1-of-1.jsonl"
  path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


@pytest.mark.parametrize("changed", ["prompts", "image", "label", "weights"])
def test_a_run_whose_files_have_changed_does_not_resume(folders, predictor, monkeypatch, changed):
  """Half of the results from each of two runs, and one mean over both, would be nobody's result."""
  batch.run(predictor, find(folders), folders / "out", kinds=["label"])
  stop_after_one(folders)
  path = {"prompts": "prompts/labels/p.png", "image": "data/images/a.png", "label": "data/labels/a.png"}.get(changed)
  if path is None:
    monkeypatch.setattr(batch, "_weights_of", lambda predictor: "others")
  else:
    write(folders / path, np.asarray(Image.open(folders / path))[::-1])
  before = {file: file.read_bytes() for file in (folders / "out").rglob("*") if file.is_file()}
  with pytest.raises(InputError, match="two runs would be mixed; leave out --resume to start over"):
    batch.run(predictor, find(folders), folders / "out", kinds=["label"], resume=True)
  with pytest.raises(InputError, match="two runs would be mixed"):  # a share of the same results
    batch.run(predictor, find(folders), folders / "out", kinds=["label"], shard=Shard(2, 2))
  assert before == {file: file.read_bytes() for file in (folders / "out").rglob("*") if file.is_file()}


def test_an_image_that_is_its_own_prompt_is_not_scored(folders, predictor):
  """It was shown the answer. The same pixels in another file are the same image."""
  image = Image.open(folders / "data/images/a.png")
  image.save(folders / "prompts/images/p.tif")
  (folders / "prompts/images/p.png").unlink()
  Image.open(folders / "data/labels/a.png").save(folders / "prompts/labels/p.png")
  outcome = batch.run(predictor, find(folders), folders / "out", kinds=["label"])
  assert outcome.own_prompts == ("a",) and outcome.metrics["own_prompts"] == ["a"]
  assert list(outcome.metrics["per_image"]) == ["b"] and outcome.metrics["images"] == 1
  assert "1 labeled image is its own prompt and is left out" in (folders / "out/summary.txt").read_text()


def test_results_of_images_that_are_gone_do_not_stay(folders, predictor, capsys):
  batch.run(predictor, find(folders), folders / "out", kinds=["label", "color"])
  mine = folders / "out" / "label" / "mine.png"
  mine.write_bytes(b"of the user")
  (folders / "data/images/c.png").rename(folders / "data/images/d.png")
  batch.run(predictor, find(folders), folders / "out", kinds=["label"])
  assert sorted(path.name for path in (folders / "out/label").iterdir()) == ["a.png", "b.png", "d.png", "mine.png"]
  assert not list((folders / "out/color").iterdir())
  assert "removing 4 files of the earlier run" in capsys.readouterr().out


def test_results_never_replace_images_and_labels(folders, predictor):
  """With --outdir above them, results would go to the folders of images and of true labels."""
  (folders / "data/images").rename(folders / "data/color")
  (folders / "data/labels").rename(folders / "data/label")
  before = {file: file.read_bytes() for file in (folders / "data").rglob("*.png")}
  prompts = [folders / "prompts/images", folders / "prompts/labels"]
  found = list_queries(folders / "data/color", *prompts)
  for kinds in (["label"], ["color"]):
    with pytest.raises(InputError, match=r"choose another --outdir"):
      batch.run(predictor, found, folders / "data", kinds=kinds)
  assert before == {file: file.read_bytes() for file in (folders / "data").rglob("*") if file.is_file()}


def test_a_class_that_is_never_found_is_named(folders, predictor, monkeypatch, caplog):
  """Somebody with two classes would otherwise see one of them and think that the other is not there."""
  decode = forward.decode_prediction

  def without(*classes):
    def found(*args):
      prediction = decode(*args)
      return dataclasses.replace(prediction, labels=np.where(np.isin(prediction.labels, classes), 0, prediction.labels))

    return found

  queries = find(folders, mapping=write_mapping(folders, {"a.png": ["q.png"], "b.png": ["q.png"], "c.png": ["p.png"]}))
  batch.run(predictor, queries, folders / "all")
  assert "never found" not in caplog.text
  monkeypatch.setattr(forward, "decode_prediction", without(2))
  batch.run(predictor, queries[:2], folders / "all", resume=True)
  assert "never found" not in caplog.text, "an image of the run that is resumed has it"
  batch.run(predictor, queries, folders / "some")
  assert "class 2: never found, although it is asked for; try other or more prompts" in caplog.text
  caplog.clear()
  monkeypatch.setattr(forward, "decode_prediction", without(1, 2))
  batch.run(predictor, queries, folders / "none")
  assert re.search(
    r"^classes 1 and 2: never found, although they are asked for; .* they are small$", caplog.messages[-1]
  )
