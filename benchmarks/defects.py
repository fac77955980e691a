"""Finds real defects with the packaged weights, fine-tuned, and with a U-Net from scratch: same images, same minutes.

  python -m benchmarks.defects DATASET --num_classes=6 --counts=all --keep
  python -m benchmarks.defects DATASET --num_classes=6 --minutes=10 --methods=features,unet --keep
  python -m benchmarks.defects DATASET --num_classes=6 --counts=5,10,20 --seeds=3 --minutes=0.5 --keep

DATASET holds {train,val}/{images,labels} with labels of class indices. Ours is what a user would run: `seggpt train
--config head`, then `seggpt infer`, with nothing else set; the method "features" adds `--config features` for what
the head's 1,600 steps leave of the time. A fifth of the training images is kept to calibrate on, if they are at
least 40; DATASET/val only scores. The U-Net (benchmarks/unet.py) trains on all of them for the time that our training
took, on the same cores. With --keep, each row is written at once, and a later start measures only the rows
that are missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import app, flags
from tqdm import tqdm

from benchmarks import report, unet
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import IGNORE, LabelFormat, classes_in, read_labels

_NUM_CLASSES = flags.DEFINE_integer("num_classes", 2, "Number of classes, background included.", lower_bound=2)
_COUNTS = flags.DEFINE_list("counts", ["all"], "Numbers of training images, or all.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each number, with other images and other random numbers.")
_MINUTES = flags.DEFINE_float("minutes", 2.0, "Time to train, for which ours gets steps by `_STEPS_A_MINUTE`.")
_METHODS = flags.DEFINE_list("methods", ["ours", "unet"], "Which of ours, features and unet to run, in this order.")
_OVERRIDES = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the configuration, for trying out a recipe.")
_SIDE = flags.DEFINE_integer("unet_side", 224, "Images are resampled to the area of a square of this side.")
_WIDTH = flags.DEFINE_integer("unet_width", 8, "Channels of the U-Net's first level.")
_RATE = flags.DEFINE_float("unet_rate", 3e-3, "Largest learning rate of the U-Net.")
_CROP = flags.DEFINE_integer("unet_crop", 0, "Side of the U-Net's training crops; 0 trains on whole images.")
_OUT = flags.DEFINE_string("out", "", "Folder that keeps runs and predictions; by default a temporary one.")
_KEEP = flags.DEFINE_bool("keep", False, "Also write the rows to benchmarks/results/defects.json.")

CAUGHT = 0.3  # foreground IoU from which the defects of an image count as caught
# On two quiet cores, with start and calibration.
_STEPS_A_MINUTE = {"head": 800, "features": 270}
_HEAD_STEPS = 1600  # before the features learn
_LEAST_TO_HOLD = 40
KEY = ("dataset", "method", "images", "seed", "minutes")


class Score:
  """Adds up how well label maps agree with the truth, at full size.

  Args:
    num_classes: number of classes, background included.
  """

  def __init__(self, num_classes: int):
    self._counts = np.zeros((num_classes, num_classes), np.int64)
    self._caught, self._alone = [], []

  def add(self, labels: np.ndarray, truth: np.ndarray) -> None:
    """Adds one image; ignored pixels do not count."""
    known = truth != IGNORE
    size = len(self._counts)
    pairs = size * truth[known].astype(np.int64) + labels[known]
    self._counts += np.bincount(pairs, minlength=size * size).reshape(size, size)
    found, there = (labels > 0) & known, (truth > 0) & known
    if there.any():
      self._caught.append((found & there).sum() / (found | there).sum() >= CAUGHT)
    else:
      self._alone.append(not found.any())

  def row(self) -> dict[str, Any]:
    """Returns foreground IoU, IoU of each class, catch rate, and the share of faultless images left alone, 0..1."""
    counts = self._counts
    common, either = counts[1:, 1:].sum(), counts.sum() - counts[0, 0]
    hits, unions = counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    rates = {"catch": self._caught, "left_alone": self._alone}
    return {
      "foreground_iou": common / either if either else 0.0,
      **{name: float(np.mean(values)) if values else None for name, values in rates.items()},
      "class_iou": [round(float(value), 3) for value in (hits / np.maximum(unions, 1))[1:]],
    }


def choose(dataset: Path, folder: Path, count: int | None, seed: int) -> list[str]:
  """Makes datasets of a random part of the training images, as links, and returns their names.

  FOLDER/data has them all in train, FOLDER/own every fifth one in val.

  Args:
    dataset: the whole dataset.
    folder: where to make them.
    count: number of training images; None takes all.
    seed: seed of the choice; a larger part contains a smaller one. The first image of each part shows a class.
  """
  images, labels = (list_images(dataset / "train" / kind) for kind in ("images", "labels"))
  names = sorted(images)
  if count is not None:
    order = [names[index] for index in np.random.default_rng(1000 + seed).permutation(len(names))]
    first = next(name for name in order if classes_in(read_labels(labels[name], LabelFormat())))
    names = sorted([first, *(name for name in order if name != first)][:count])
  held = set(names[::5]) if len(names) >= _LEAST_TO_HOLD else set(names)
  own = set(names) - held or set(names)
  for part, members in (("data/train", set(names)), ("own/train", own), ("own/val", held)):
    for kind, files in (("images", images), ("labels", labels)):
      (folder / part / kind).mkdir(parents=True)
      for name in members:
        path = Path(files[name])
        (folder / part / kind / path.name).symlink_to(path.absolute())
  (folder / "data" / "val").symlink_to((dataset / "val").absolute())
  return names


def _truths(dataset: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
  images, labels = (list_images(dataset / "val" / kind) for kind in ("images", "labels"))
  for name, path in tqdm(sorted(images.items()), "score", unit="image"):
    yield name, Path(path), read_labels(labels[name], LabelFormat())


def _run(*arguments: str) -> float:
  """Runs a command of the package and returns the seconds it took."""
  start = time.monotonic()
  subprocess.run([sys.executable, "-m", "seggpt_jax", *arguments], check=True)
  return time.monotonic() - start


def ours(data: Path, run: Path, seed: int, num_classes: int, minutes: float, settings: list[str]) -> dict[str, Any]:
  """Trains a head, and in a run called "features" what it sees, and segments the validation images by commands."""

  def train(config: str, workdir: Path, steps: int, *extra: str) -> float:
    extra += (f"--config.num_steps={steps}", f"--config.eval_every={max(steps // 3, 1)}")
    return _run(
      *("train", "--config", config, "--workdir", str(workdir), f"--config.data.path={data.parent / 'own'}"),
      *(f"--config.data.num_classes={num_classes}", f"--config.seed={seed}", *extra),
      *(f"--config.{setting}" for setting in settings),
    )

  if run.name == "features":
    base = run.with_name("base")
    trained = train("head", base, _HEAD_STEPS)
    steps = max(round(_STEPS_A_MINUTE["features"] * (minutes - trained / 60)), 20)
    trained += train("features", run, steps, f"--config.model.init_from={base}")
  else:
    trained = train("head", run, max(round(_STEPS_A_MINUTE["head"] * minutes), 20))
  inferred = _run(
    *("infer", "--model-path", str(run), "--dataset-dir", str(data / "val"), "--outdir", str(run / "val")),
  )
  score, count = Score(num_classes), 0
  for name, _, truth in _truths(data):
    score.add(read_labels(run / "val" / "label" / f"{name}.png", LabelFormat()), truth)
    count += 1
  return {**score.row(), "train_s": trained, "s_per_image": inferred / count}


def peer(data: Path, run: Path, seed: int, num_classes: int, seconds: float) -> dict[str, Any]:
  """Trains a U-Net for a number of seconds and segments the validation images."""
  images, labels = (list_images(data / "train" / kind) for kind in ("images", "labels"))
  start = time.monotonic()
  samples = [{"image": read_image(images[n]), "label": read_labels(labels[n], LabelFormat())} for n in sorted(images)]
  with tqdm(desc="U-Net", total=100, unit="%") as bar:
    network, steps = unet.train(
      samples,
      num_classes,
      seconds=seconds - (time.monotonic() - start),
      side=_SIDE.value,
      width=_WIDTH.value,
      rate=_RATE.value,
      crop=_CROP.value,
      seed=seed,
      progress=lambda share: bar.update(int(100 * share) - bar.n),
    )
  trained, score, count, inferred = time.monotonic() - start, Score(num_classes), 0, 0.0
  folder = run / "val" / "label"
  folder.mkdir(parents=True)
  for name, path, truth in _truths(data):
    before = time.monotonic()
    found = unet.predict(network, read_image(path), _SIDE.value, whole=not _CROP.value).argmax(axis=0).astype(np.uint8)
    inferred += time.monotonic() - before
    score.add(found, truth)
    np.save(folder / f"{name}.npy", found)
    count += 1
  row = {**score.row(), "train_s": trained, "s_per_image": inferred / count, "steps": steps}
  return row | {"side": _SIDE.value, "width": _WIDTH.value, "rate": _RATE.value, "crop": _CROP.value}


def main(argv: list[str]) -> None:
  dataset, num_classes = Path(argv[1]), _NUM_CLASSES.value
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  rows = []
  with tempfile.TemporaryDirectory() as temporary:
    out = Path(_OUT.value or temporary)
    for text in _COUNTS.value:
      count = None if text == "all" else int(text)
      for seed in range(_SEEDS.value):
        if _KEEP.value and all(_kept(dataset.name, method, text, seed) for method in _METHODS.value):
          print(f"{dataset.name}, {text} images, seed {seed}: kept in defects.json; remove its rows to measure again")
          continue
        place = out / f"{dataset.name}_{text}_{seed}"
        names = choose(dataset, place, count, seed)
        seconds = 60 * _MINUTES.value
        for method in _METHODS.value:
          about = {"dataset": dataset.name, "method": method, "images": text, "seed": seed, "minutes": _MINUTES.value}
          arguments = (place / "data", place / method, seed, num_classes)
          if method != "unet":
            row = ours(*arguments, _MINUTES.value, _OVERRIDES.value)
            seconds = row["train_s"]
          else:
            row = peer(*arguments, seconds)
          rows.append({**about, **row, "settings": _OVERRIDES.value if method != "unet" else []})
          print(json.dumps(rows[-1]), flush=True)
          if _KEEP.value:
            _keep(rows[-1])
        print(f"{len(names)} images, seed {seed} done")


def _kept(*about: str | int) -> bool:
  """Returns whether the results have a row of a dataset, method, number of images and seed, of the same minutes."""
  path = report.RESULTS / "defects.json"
  rows = json.loads(path.read_text())["rows"] if path.exists() else []
  return any([row[name] for name in KEY] == [*about, _MINUTES.value] for row in rows)


def _keep(row: dict[str, Any]) -> None:
  """Adds a row to the results, in place of the one with the same dataset, method, images, seed and minutes."""
  path = report.RESULTS / "defects.json"
  old = json.loads(path.read_text())["rows"] if path.exists() else []
  about = report.machine(["jax", "torch", "numpy"])
  report.write("defects", {"machine": about, "rows": report.merge_rows(old, [row], KEY)})


if __name__ == "__main__":
  app.run(main)
