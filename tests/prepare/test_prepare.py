"""The prepare command: the output has the same samples as the input, however often the run was stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import seggpt_jax
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.errors import InputError
from seggpt_jax.files import exclusive
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.prepare.conversion import Settings, prepare
from seggpt_jax.written import RECORD


def make(path, count, size=24, splits=("train", "val")):
  """Writes a dataset with masks stored as JPEG and three images for each patient p0, p1, ..."""
  generator = np.random.default_rng(0)
  for split in splits:
    for kind in ("images", "labels"):
      (path / split / kind).mkdir(parents=True)
    for i in range(count):
      name = f"p{i // 3}_{i:04d}"
      pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
      Image.fromarray(pixels).save(path / split / "images" / f"{name}.{'png' if i % 2 else 'jpg'}")
      mask = np.zeros((size, size), np.uint8)
      mask[: size // 2, : i % size] = 255
      Image.fromarray(mask).save(path / split / "labels" / f"{name}.jpg")
  return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return make(tmp_path_factory.mktemp("data"), 12)


def settings(path, output="folder", splits=("train", "val"), **more):
  return Settings(Dataset("folder", str(path), 2, LabelFormat("binary", threshold=127)), splits, output, **more)


def written(out, output, split):
  if output == "records":
    return open_dataset(Dataset("tfds", str(out), 2), split)
  return open_dataset(Dataset("folder", str(out), 2, LabelFormat(ignore=(255,))), split)


def same(source, truth):
  assert [source.name(i) for i in range(len(source))] == [truth.name(i) for i in range(len(truth))]
  for i in range(len(truth)):
    np.testing.assert_array_equal(source[i]["image"], truth[i]["image"])
    np.testing.assert_array_equal(source[i]["label"], truth[i]["label"])


def command(path, out, output, *more):
  """Starts the command line that a user would type."""
  flags = [f"--path={path}", "--num_classes=2", "--labels=binary:127", f"--outdir={out}"]
  environment = {**os.environ, "PYTHONPATH": os.path.dirname(seggpt_jax.__path__[0]), "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(
    [sys.executable, "-m", "seggpt_jax", "prepare", *flags, f"--format={output}", *more],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
  )


@pytest.mark.parametrize("output", ["folder", "records"])
def test_the_command_converts_and_says_what_comes_next(data, tmp_path, output):
  process = command(data, tmp_path / "out", output)
  text, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert "Traceback" not in errors and "WARNING" not in errors
  assert f"--config.data.source={'tfds' if output == 'records' else 'folder'}" in text and "seggpt train" in text
  for split in ("train", "val"):
    same(written(tmp_path / "out", output, split), open_dataset(settings(data).dataset, split))
  again, _ = command(data, tmp_path / "out", output).communicate(timeout=60)
  assert "finished by an earlier run" in again and "seggpt train" in again
  expected = ["prepare.json", "train", "val"] if output == "folder" else ["mine", "prepare.json"]
  assert sorted(os.listdir(tmp_path / "out")) == [RECORD, *expected]


def test_image_files_are_copied_as_they_are(data, tmp_path):
  prepare(settings(data), tmp_path)
  for file in (data / "train/images").iterdir():
    assert (tmp_path / "train/images" / file.name).read_bytes() == file.read_bytes()
  label = Image.open(next((tmp_path / "train/labels").iterdir()))
  assert label.mode == "L" and label.format == "PNG"


@pytest.mark.parametrize("output", ["folder", "records"])
def test_a_run_killed_at_any_moment_can_be_resumed(tmp_path, output):
  path, out = make(tmp_path / "data", 150, 160, ("train",)), tmp_path / "out"
  for seconds in (0.02, 0.1, 0.05):
    process = command(path, out, output, "--split=train")
    sign = out / ".journal-train" if output == "folder" else out / "mine/incomplete/shards/train-00000.array_record"
    while not sign.exists() and process.poll() is None:
      time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    if output == "records":
      with pytest.raises(InputError):
        written(out, output, "train")
  process = command(path, out, output, "--split=train")
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  same(written(out, output, "train"), open_dataset(settings(path).dataset, "train"))
  files = [os.path.join(folder, file) for folder, _, files in os.walk(out) for file in files]
  names = [os.path.relpath(file, out) for file in files if os.path.basename(file) != RECORD]
  assert not [name for name in names if os.path.basename(name).startswith(".") or "incomplete" in name]


@pytest.mark.parametrize("output", ["folder", "records"])
def test_output_that_was_moved_away_is_written_again(data, tmp_path, output):
  prepare(settings(data, output), tmp_path / "out")
  (tmp_path / "out" / ("val" if output == "folder" else "mine")).rename(tmp_path / "away")
  assert "finished by an earlier run" not in prepare(settings(data, output), tmp_path / "out")
  same(written(tmp_path / "out", output, "val"), open_dataset(settings(data).dataset, "val"))
  assert "finished by an earlier run" in prepare(settings(data, output), tmp_path / "out")


def test_two_runs_do_not_mix(data, tmp_path):
  with open(tmp_path / "prepare.json", "w") as file:
    json.dump({}, file)
  refused("no settings of an earlier run", lambda: prepare(settings(data), tmp_path))
  (tmp_path / "prepare.json").unlink()
  with exclusive(tmp_path):
    refused("in use by another run", lambda: prepare(settings(data), tmp_path))
  prepare(settings(data), tmp_path)


class StoppedError(Exception):
  """Raised where a test simulates the end of the process."""


def test_finished_samples_are_not_written_again(data, tmp_path, monkeypatch):
  from seggpt_jax.prepare import writers

  whole = writers._write
  made = []

  def stopping(directory, sample):
    if len(made) == 7:
      raise StoppedError
    made.append(sample.name)
    return whole(directory, sample)

  monkeypatch.setattr(writers, "_write", stopping)
  with pytest.raises(StoppedError):
    prepare(settings(data, splits=("train",)), tmp_path)
  torn = tmp_path / "train/images" / f".p0_0000.jpg.seggpt-{32 * '0'}"
  torn.write_bytes(b"torn")
  os.utime(torn, (0, 0))
  with open(tmp_path / ".journal-train", "a") as journal:
    journal.write('\n{"name": "p2_')
  made.clear()
  prepare(settings(data, splits=("train",)), tmp_path)
  assert made == [f"p{i // 3}_{i:04d}" for i in range(7, 12)]
  same(written(tmp_path, "folder", "train"), open_dataset(settings(data).dataset, "train"))
  assert not torn.exists()


@pytest.mark.parametrize("output", ["folder", "records"])
def test_a_patient_is_in_train_or_val_and_not_in_both(data, tmp_path, output):
  """Otherwise validation images would look much like training images, and the score would be too good."""
  text = prepare(settings(data, output, ("train",), val_share=0.25, groups="prefix:_"), tmp_path)
  names = {
    split: [written(tmp_path, output, split).name(i) for i in range(n)] for split, n in (("train", 9), ("val", 3))
  }
  patients = {split: {name.split("_")[0] for name in names[split]} for split in names}
  assert len(patients["val"]) == 1 and not patients["val"] & patients["train"]
  assert len(set(names["train"] + names["val"])) == 12
  assert [line.split()[:3] for line in text.splitlines()[1:3]] == [["train", "9", "3"], ["val", "3", "1"]]
  if output == "records":
    source = written(tmp_path, output, "val")
    assert {source.field(i, "group") for i in range(3)} == patients["val"]


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_division_needs_groups_and_a_free_name(data, tmp_path):
  refused(
    "found one group, expected at least two",
    lambda: prepare(settings(data, splits=("train",), val_share=0.1), tmp_path),
  )
  refused("expected train without val", lambda: settings(data, val_share=0.1))
  refused("expected parts of different names", lambda: settings(data, splits=("train[:5]", "train[5:]")))
  refused("dataset_name: found 'My Data'", lambda: settings(data, name="My Data"))


def test_flags_that_differ_from_the_earlier_run_are_refused(data, tmp_path):
  prepare(settings(data), tmp_path)
  refused("prepare.json: found seed=0 of an earlier run, expected 1", lambda: prepare(settings(data, seed=1), tmp_path))
  refused("found output='folder'", lambda: prepare(settings(data, "records"), tmp_path))


@pytest.mark.parametrize("output", ["folder", "records"])
def test_wrong_flags_can_be_corrected_if_nothing_was_written(data, tmp_path, output):
  wrong = Settings(Dataset("folder", str(data), 2), ("train", "val"), output)
  refused("found JPEG, expected class values", lambda: prepare(wrong, tmp_path / "out"))
  assert os.listdir(tmp_path / "out") == []
  prepare(settings(data, output), tmp_path / "out")
  same(written(tmp_path / "out", output, "val"), open_dataset(settings(data).dataset, "val"))


def test_samples_that_changed_since_the_earlier_run_are_refused(tmp_path):
  path = make(tmp_path / "data", 4)
  (path / "train/images/p0_0001.png").rename(tmp_path / "away.png")
  label = path / "train/labels/p0_0001.jpg"
  content = label.read_bytes()
  label.unlink()
  (path / "val/images/p0_0000.jpg").write_bytes(b"bad")
  refused("val/images/p0_0000.jpg: cannot be read", lambda: prepare(settings(path), tmp_path / "out"))
  (tmp_path / "away.png").rename(path / "train/images/p0_0001.png")
  label.write_bytes(content)
  refused("found train='3 samples .*expected '4 samples", lambda: prepare(settings(path), tmp_path / "out"))


def test_folders_with_other_content_are_refused(data, tmp_path):
  (tmp_path / "thesis.txt").write_text("dear")
  refused("found thesis.txt in it, expected a new folder", lambda: prepare(settings(data), tmp_path))
  refused("expected a local folder", lambda: prepare(settings(data), "gs://bucket/out"))
  (tmp_path / "prepare.json").write_text("{")
  refused("prepare.json: cannot be read", lambda: prepare(settings(data), tmp_path))


@pytest.mark.parametrize("output", ["folder", "records"])
def test_bad_files_stop_the_command_or_are_listed(tmp_path, output):
  path = make(tmp_path / "data", 6, splits=("train",))
  torn = path / "train/images/p0_0002.jpg"
  torn.write_bytes(torn.read_bytes()[:-200])
  what = settings(path, output, ("train",))
  process = command(path, tmp_path / "out", output, "--split=train")
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 2 and "Traceback" not in errors
  assert errors.splitlines()[-1].startswith(f"error: {torn}: cannot be read as an image")
  text = prepare(what, tmp_path / "out", skip_bad=True)
  assert "left out: 1 bad files" in text and f"train: p0_0002: {torn}" in text
  assert (tmp_path / "out/bad_files.txt").read_text().startswith(f"train: p0_0002: {torn}")
  assert len(written(tmp_path / "out", output, "train")) == 5


def test_ignored_pixels_and_unequal_sizes_and_dots_in_folders(tmp_path):
  for kind in ("images", "labels"):
    (tmp_path / "data/train" / kind).mkdir(parents=True)
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "data/train/images/a.png")
  Image.fromarray(np.array([[0, 1, 2, 3]] * 4, np.uint8)).save(tmp_path / "data/train/labels/a.png")
  label_format = LabelFormat("table", table=(2, 1), ignore=(0, 3))
  what = Settings(Dataset("folder", str(tmp_path / "data"), 2, label_format), ("train",), "records")
  prepare(what, tmp_path / "out")
  expected = [[255, 1, 0, 255]] * 4
  np.testing.assert_array_equal(written(tmp_path / "out", "records", "train")[0]["label"], expected)
  Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "data/train/labels/a.png")
  refused("labels/a.png: found 4 x 5 pixels, expected 4 x 4", lambda: prepare(what, tmp_path / "out2"))


def test_the_settings_are_kept(data, tmp_path):
  prepare(settings(data), tmp_path)
  kept = json.loads((tmp_path / "prepare.json").read_text())["settings"]
  assert kept["path"] == str(data) and kept["label_format"]["threshold"] == 127


@pytest.mark.parametrize(
  "more, match",
  [(["--split=train,train"], "--split:"), (["--labels=table:a"], "--labels: found 'a'"), (["x"], "found argument 'x'")],
)
def test_wrong_flags_are_one_line(data, tmp_path, more, match):
  process = command(data, tmp_path / "out", "folder", *more)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 2 and errors.startswith(f"error: {match}") and errors.count("\n") == 1


@pytest.mark.parametrize("output", ["folder", "records"])
def test_large_images_are_shrunk_with_their_labels(tmp_path, output):
  """Decoding photographs of 12 million pixels for every pair would take most of the time of the pipeline."""
  make(tmp_path / "data", 3, size=64)
  make_small = tmp_path / "data" / "train" / "images" / "p0_0002.jpg"
  Image.open(make_small).resize((30, 20)).save(make_small)
  small_label = tmp_path / "data" / "train" / "labels" / "p0_0002.jpg"
  Image.open(small_label).resize((30, 20)).save(small_label)
  prepare(settings(tmp_path / "data", output, ("train",), shorter_side=32), tmp_path / "out")
  source = written(tmp_path / "out" / ("" if output == "folder" else "mine"), output, "train")
  truth = open_dataset(settings(tmp_path / "data").dataset, "train")
  assert [source[i]["image"].shape for i in range(3)] == [(32, 32, 3), (32, 32, 3), (20, 30, 3)]
  # Every pixel of the smaller label is one of the four pixels that it replaces.
  for i in range(2):
    blocks = truth.label(i).reshape(32, 2, 32, 2)
    label = source.label(i)
    assert ((label >= blocks.min(axis=(1, 3))) & (label <= blocks.max(axis=(1, 3)))).all() and set(label.flat) <= {0, 1}
  np.testing.assert_array_equal(source[2]["image"], truth[2]["image"])
  kinds = [source.encoded_image(i)[0][:2] for i in range(2)]
  assert kinds == [b"\xff\xd8", b"\x89P"]


def test_the_next_line_can_be_run_as_it_is_printed(data, tmp_path, monkeypatch):
  """A space in a path and a folder without parts are usual; the released weights are not there at first."""
  report = prepare(settings(data), tmp_path / "my data")
  assert "--config small --workdir" in report
  (tmp_path / "weights/vit_large").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert "--config base --workdir" in prepare(settings(data), tmp_path / "large")
  assert f"--config.data.path={tmp_path}/my data" in shlex.split(report.partition("next:")[2].replace("\\\n", ""))
  alone = settings(data / "train", splits=(".",))
  words = shlex.split(prepare(alone, tmp_path / "one").partition("next:")[2].replace("\\\n", ""))
  split = next(word.partition("=")[2] for word in words if "train_split" in word)
  assert (tmp_path / "one" / split / "images").is_dir() and f"--config.data.val_split={split}" in words
