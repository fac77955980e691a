"""From training at the scale of objects to a calibrated network, with the commands that people type."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import seggpt
from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[2]


def command(*arguments):
  return seggpt(*arguments, cwd=ROOT, env={"XLA_FLAGS": QUICK})  # one device, not those of the other tests


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Images of 48 x 64 pixels with square objects of 16 pixels, of class 1 or 2; every fourth one is without any."""
  folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
  for split, count in (("train", 12), ("val", 8)):
    for kind in ("images", "labels"):
      (folder / split / kind).mkdir(parents=True)
    for index in range(count):
      image, label = generator.integers(90, 110, (48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
      if index % 4:
        row, col = generator.integers(0, 32), generator.integers(0, 48)
        label[row : row + 16, col : col + 16] = 1 + index % 2
        image[label > 0] = (250, 250, 250) if index % 2 else (0, 0, 0)
      Image.fromarray(image).save(folder / split / "images" / f"{index:02}.png")
      Image.fromarray(label).save(folder / split / "labels" / f"{index:02}.png")
  return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  run = tmp_path_factory.mktemp("runs") / "run"
  line = (
    *(
      "train",
      "--config",
      "benchmarks/nano.py",
      "--workdir",
      run,
      f"--config.data.path={data}",
      "--config.num_steps=10",
    ),
    *("--config.data.zoom=-1", "--config.data.resize=1024", "--config.eval_every=10", "--config.loss.dice=1"),
    *("--config.loss.cross_entropy=1", "--config.data.lower_half_share=1", "--config.data.palette=fixed"),
  )
  return run, line, command(*line)


def prompts(data):
  return "--prompt-img-dir", data / "train" / "images", "--prompt-label-dir", data / "train" / "labels"


def test_training_measures_the_scale_says_so_and_stores_it(trained):
  run, line, done = trained
  assert done.returncode == 0, done.stderr
  said = " ".join((done.stdout + done.stderr).split())
  # Objects of 16 pixels become as large as the patch of 8 pixels; an image then takes 2 x 2 tiles of 16 pixels.
  assert "scale: 0.5 pixels of the network for one of an image, as objects of class 1 are 16 pixels large" in said
  assert "an image of 64 x 48 pixels becomes 4 tiles of 16" in said
  config = json.loads((run / "config.json").read_text())
  assert (config["data"]["zoom"], config["data"]["prompt_grid"]) == (0.5, 2)
  resumed = command(*line, "--config.num_steps=12")
  assert resumed.returncode == 0, resumed.stderr
  assert "resumed at step 10" in resumed.stdout and "as objects of class" not in resumed.stdout


def test_inference_and_calibration_use_the_scale_of_training(trained, data, tmp_path):
  run = trained[0]
  done = command(
    "infer", "--model-path", run, "--dataset-dir", data / "val", *prompts(data), "--outdir", tmp_path / "a"
  )
  assert done.returncode == 0, done.stderr
  assert "--split=auto: tiles at the scale of training, 0.5 pixels" in done.stdout
  assert "every query gets up to 4 prompts that show every class in turn, the same for all" in done.stdout
  assert Image.open(tmp_path / "a" / "label" / "00.png").size == (64, 48)
  similar = command(
    *("infer", "--model-path", run, "--image", data / "val" / "images" / "01.png", *prompts(data)),
    *("--outdir", tmp_path / "b", "--prompts", "similar"),
  )
  assert similar.returncode == 0 and "show every class in turn, the most similar to it" in similar.stdout
  plain = command(
    "infer",
    "--model-path",
    run,
    "--dataset-dir",
    data / "val",
    *prompts(data),
    "--outdir",
    tmp_path / "c",
    "--split",
    1,
  )
  assert (
    plain.returncode == 0 and "every query gets up to 5 prompts that show every class in turn, the same" in plain.stdout
  )
  scaled = command(
    *("infer", "--model-path", run, "--image", data / "val" / "images" / "01.png", *prompts(data)),
    *("--outdir", tmp_path / "f", "--split", "objects"),
  )
  assert scaled.returncode == 0, scaled.stderr
  assert "--split=objects: the smallest are those of class 1, 16 pixels large" in scaled.stdout
  assert "--split=objects: tiles at their scale, 1.0 pixels" in scaled.stdout

  calibrate = ("calibrate", "--model-path", run, "--dataset-dir", data / "val", *prompts(data))
  done = command(*calibrate, "--catch", 0.9)
  assert done.returncode == 0, done.stderr
  assert "chosen, --catch 0.9: foreground IoU" in done.stdout
  point = json.loads((run / "operating_point.json").read_text())
  assert len(point["sensitivity"]) == 2 and point["aim"] == "--catch 0.9"
  assert Image.open(run / "operating_point.png").width == 1200
  again = command(
    "infer", "--model-path", run, "--dataset-dir", data / "val", *prompts(data), "--outdir", tmp_path / "d"
  )
  assert again.returncode == 0 and "operating point of the run: sensitivity" in again.stdout
  # One unit and one meaning: both commands have seen the same images with the same prompts.
  said = re.search(r"chosen, .*: foreground IoU ([0-9.]+%)", done.stdout)[1]
  assert re.search(r"^  foreground +([0-9.]+%)", again.stdout, re.M)[1] == said
  assert "8 of 8 scored images are those that seggpt calibrate chose on" in again.stdout
  line = ("--model-path", run, "--dataset-dir", data / "train", *prompts(data), "--outdir", tmp_path / "h")
  assert "of 12 scored images are those of training: their mean IoU is" in command("infer", *line).stdout
  mixed = command(
    *(
      "infer",
      "--model-path",
      run,
      "--dataset-dir",
      data / "val",
      *prompts(data),
      "--outdir",
      tmp_path / "a",
      "--resume",
    )
  )
  assert mixed.returncode == 2 and "found --sensitivity=['auto'] of an earlier run" in mixed.stderr
  off = command(
    *("infer", "--model-path", run, "--dataset-dir", data / "val", *prompts(data), "--outdir", tmp_path / "e"),
    *("--sensitivity", "1,1", "--least-area", 0),
  )
  assert off.returncode == 0 and "operating point" not in off.stdout
  for name in ("00.png", "05.png"):
    first, last = (np.asarray(Image.open(tmp_path / folder / "label" / name)) for folder in ("a", "e"))
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--catch", 0.9, "--yield", 0.9), "error: --yield cannot be combined with --catch"),
    (("--sensitivity", "2"), "error: --sensitivity: unknown flag"),
    (("--catch", 2), "error: --catch"),
  ],
)
def test_wrong_input_is_one_line(trained, data, options, message):
  done = command("calibrate", "--model-path", trained[0], "--dataset-dir", data / "val", *prompts(data), *options)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  assert message in done.stderr


def test_images_that_are_their_own_prompts_do_not_count(trained, data, tmp_path):
  """Otherwise the network would be calibrated on answers that it was shown."""
  run = tmp_path / "run"
  shutil.copytree(trained[0], run)
  line = ("calibrate", "--model-path", run, "--dataset-dir", data / "train", *prompts(data))
  done = command(*line, "--prompts", "first")
  assert done.returncode == 0, done.stderr
  assert "4 labeled images are their own prompts and are left out of the scores: " in done.stdout
  for kind in ("images", "labels"):
    (tmp_path / "one" / kind).mkdir(parents=True)
    shutil.copy(data / "train" / kind / "01.png", tmp_path / "one" / kind)
  one = tmp_path / "one"
  done = command(
    *("calibrate", "--model-path", run, "--dataset-dir", one),
    *("--prompt-img-dir", one / "images", "--prompt-label-dir", one / "labels"),
  )
  assert done.returncode == 2, done.stderr
  assert "every image is one of its own prompts" in done.stderr.splitlines()[-1]


def test_a_sensitivity_that_is_no_number_is_refused(trained, data, tmp_path):
  line = (
    "infer",
    "--model-path",
    trained[0],
    "--dataset-dir",
    data / "val",
    *prompts(data),
    "--outdir",
    tmp_path / "a",
  )
  done = command(*line, "--sensitivity", "high")
  assert done.stderr == "error: --sensitivity: found high, expected auto, or a number for each class\n"


def test_images_without_labels_cannot_calibrate(trained, data):
  done = command("calibrate", "--model-path", trained[0], "--dataset-dir", data / "val" / "images", *prompts(data))
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
  assert "found no label for it" in done.stderr
