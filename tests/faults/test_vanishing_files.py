"""Files that somebody deletes while a command reads them end in one line, or are passed over if the user says so."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest

from benchmarks import nano
from seggpt_jax.audit.advice import advise, train_line
from seggpt_jax.audit.contact_sheet import draw_samples
from seggpt_jax.audit.findings import audit_dataset
from seggpt_jax.audit.report import as_facts
from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.groups import scan_classes
from seggpt_jax.errors import InputError
from seggpt_jax.inference import batch, outputs, queries
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.training.inputs import open_inputs


class Vanishing:
  """Deletes a file of a folder at the moment when it is opened for the n-th time that one is opened there."""

  def __init__(self):
    self.folder, self.number, self.opened, self.gone = "", 0, 0, ""
    sys.addaudithook(self._open)

  def _open(self, event, arguments):
    if event != "open" or not self.folder or not str(arguments[0]).startswith(self.folder):
      return
    self.opened += 1
    if self.opened == self.number and os.path.isfile(arguments[0]):
      self.gone = str(arguments[0])
      os.unlink(self.gone)

  def arm(self, folder, number):
    self.folder, self.number, self.opened, self.gone = str(folder), number, 0, ""


@pytest.fixture(scope="module")
def hook():
  """Python can add such a hook and not remove it, so there is one, which does nothing unless it is armed."""
  return Vanishing()


@pytest.fixture
def vanishing(hook):
  yield hook
  hook.arm("", 0)


def at_every_moment(vanishing, tmp_path, work):
  """Does the work for every third of the first 50 files that it opens. Yields the one that vanishes and the error."""
  nano.write_dataset(tmp_path / "original", num_train=8, num_val=3)
  for number in range(1, 51, 3):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    shutil.copytree(tmp_path / "original", tmp_path / "data")
    vanishing.arm(tmp_path / "data", number)
    try:
      work(tmp_path / "data")
      error = None
    except InputError as caught:
      error = str(caught)
    if vanishing.opened < number:
      return
    yield vanishing.gone, error


def test_inspect_names_a_file_that_vanishes(vanishing, tmp_path):
  named = []

  def inspect(folder):
    dataset = Dataset(path=str(folder), kind="folder", num_classes=255)
    findings = audit_dataset(dataset, ("train", "val"), frozenset(), "", 0, ())
    advice = advise(findings)
    train_line(findings, advice)
    draw_samples(findings)
    named.append(str(as_facts(findings)))

  found = list(at_every_moment(vanishing, tmp_path, inspect))
  assert len(found) >= 8 and not any(error for _, error in found)
  assert sum(f"{gone}: not found" in text for (gone, _), text in zip(found, named, strict=False)) >= 7


def test_infer_names_a_file_that_vanishes_or_passes_it_over(vanishing, tmp_path, model):
  predictor = Predictor(model)

  def infer(folder, bad):
    found = queries.list_queries(folder / "val", folder / "train/images", folder / "train/labels", bad=bad)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    batch.run(predictor, found, tmp_path / "out", bad=bad, kinds=["label", "coco"])

  for gone, error in at_every_moment(vanishing, tmp_path / "stop", lambda folder: infer(folder, None)):
    assert error is not None and gone in error and "\n" not in error
  for gone, error in at_every_moment(vanishing, tmp_path / "skip", lambda folder: infer(folder, BadFiles())):
    if "train" in gone:  # the prompt of every image, which several threads may have read at the same time
      assert error is None or (error.startswith("none of 3 images could be segmented") and gone in error)
    else:
      assert error is None and gone in (tmp_path / "out/bad_files.txt").read_text()


def test_train_names_a_file_that_vanishes_or_passes_it_over(vanishing, tmp_path):
  """Opens the data of a run and makes its first pairs, as `train` does before and between the steps."""

  def make_pairs(folder, share):
    config = nano.get_config()
    config.data.path, config.data.bad_share = str(folder), share
    inputs = open_inputs(config, nano.NANO, tmp_path / "run")
    for index in range(4):
      inputs.training(index, np.random.default_rng(index))
    for index in range(3):
      inputs.evaluation(index)

  for gone, error in at_every_moment(vanishing, tmp_path / "stop", lambda folder: make_pairs(folder, 0.0)):
    assert error is not None and gone in error and "\n" not in error
  for gone, error in at_every_moment(vanishing, tmp_path / "skip", lambda folder: make_pairs(folder, 0.9)):
    assert error is None, gone


def test_the_scan_of_classes_passes_over_a_label_that_vanishes_before_it_is_read(tmp_path):
  """It first looks at the size and time of each label, to know whether its cache is still right."""
  nano.write_dataset(tmp_path / "data", num_train=4, num_val=1)
  source = open_dataset(Dataset("folder", str(tmp_path / "data"), 3), "train")
  (tmp_path / "data/train/labels/001.png").unlink()
  with pytest.raises(InputError, match=r"001\.png: not found"):
    scan_classes(source)
  unread = []
  table = scan_classes(source, tmp_path / "cache.npz", unread.append)
  assert np.array_equal(table.any(axis=1), [True, False, True, True]) and len(unread) == 1


@pytest.mark.parametrize("at", ["the first image", "the last image"])
def test_infer_says_that_somebody_deleted_its_folder(tmp_path, model, monkeypatch, at):
  """Otherwise it would continue for hours, and leave some results that look like all."""
  nano.write_dataset(tmp_path / "data", num_train=1, num_val=12)
  found = queries.list_queries(tmp_path / "data/val", tmp_path / "data/train/images", tmp_path / "data/train/labels")
  name = found[0 if at == "the first image" else -1].name
  write = outputs.write_prediction

  def write_and_delete(directory, query, *rest):
    write(directory, query, *rest)
    if query == name:
      (tmp_path / "out").rename(tmp_path / "away")  # at once, while other threads write

  monkeypatch.setattr(outputs, "write_prediction", write_and_delete)
  with pytest.raises(InputError) as caught:
    batch.run(Predictor(model), found, tmp_path / "out", kinds=["label"])
  assert str(tmp_path / "out") in str(caught.value) and "\n" not in str(caught.value)
