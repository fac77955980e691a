"""The inspection: its rates, and the page that shows the worst images."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import inspection_report
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles, Query, list_queries
from tests.commands import seggpt
from tests.xla_flags import QUICK

NAMES = ("a", "b", "c <b>&", "d", "empty")


def write(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def sample(generator, color, num=1, size=(60, 80)):
  """Returns a gray image with discs of a color, and their mask of 0 and 255."""
  rows, cols = np.mgrid[: size[0], : size[1]]
  mask = np.zeros(size, bool)
  for _ in range(num):
    mask |= (rows - generator.integers(10, 50)) ** 2 + (cols - generator.integers(10, 70)) ** 2 < 90
  image = generator.integers(90, 110, (*size, 3), np.uint8)
  image[mask] = color
  return image, (mask * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Queries with red discs, of which the last has none; two prompts with red discs and one with blue discs."""
  root, generator = tmp_path_factory.mktemp("inspection"), np.random.default_rng(0)
  for name in NAMES:
    image, mask = sample(generator, (220, 30, 30), 0 if name == "empty" else 2)
    write(root / "data" / "images" / f"{name}.png", image)
    write(root / "data" / "labels" / f"{name}.png", mask)
  for name, color in (("red1", (220, 30, 30)), ("red2", (220, 30, 30)), ("blue", (30, 30, 220))):
    image, mask = sample(generator, color)
    write(root / "prompts" / "images" / f"{name}.png", image)
    write(root / "prompts" / "labels" / f"{name}.png", mask)
  for name, prompts in (("positive", ["red1.png", "red2.png"]), ("negative", ["blue.png"])):
    (root / f"{name}.json").write_text(json.dumps({f"{query}.png": prompts for query in NAMES}))
  return root


def queries(folders, mapping, top_k=2):
  prompts = folders / "prompts"
  return list_queries(
    folders / "data", prompts / "images", prompts / "labels", folders / f"{mapping}.json", top_k, mapped_only=True
  )


@pytest.fixture(scope="module")
def predictor():
  return Predictor.from_checkpoint("drawn")


@pytest.fixture(scope="module")
def results(folders, predictor):
  """The results of the packaged network."""
  both = (queries(folders, name) for name in ("positive", "negative"))
  return inspection_report.inspect(predictor, *both, num_rows=3, labels=LabelFormat("binary", 127))


def read(path):
  return np.asarray(Image.open(path))


class Page(html.parser.HTMLParser):
  """A parser that checks that all elements are closed in order, and keeps texts and attributes."""

  def __init__(self, text):
    super().__init__()
    self.open, self.texts, self.attributes = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.attributes += [(tag, *attr) for attr in attrs]
    if tag not in ("meta", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


@pytest.mark.slow  # .ci/run runs it
def test_the_numbers_are_those_of_judging_by_hand(folders, predictor, results):
  images, labels = folders / "data" / "images", folders / "data" / "labels"

  def prompt(name):
    return read(folders / "prompts" / "images" / f"{name}.png"), read(
      folders / "prompts" / "labels" / f"{name}.png"
    ) > 0

  ious, rates = {}, {}
  for name in NAMES:
    image, truth = read(images / f"{name}.png"), read(labels / f"{name}.png") > 0
    found = predictor.predict(image, [prompt("red1"), prompt("red2")]).labels > 0
    either = (found | truth).sum()
    ious[name] = (found & truth).sum() / either if either else math.nan
    rates[name] = (predictor.predict(image, [prompt("blue")]).labels > 0).mean()
  # Rounding depends on the batch size, so that single pixels can differ.
  for name in NAMES:
    np.testing.assert_allclose(results.ious[name], ious[name], atol=0.01)
    np.testing.assert_allclose(results.response_rates[name], rates[name], atol=0.001)
  values = results.values()
  defined = [iou for iou in results.ious.values() if not math.isnan(iou)]
  caught = sum(iou >= 0.3 for iou in defined)
  correct = sum(rate < 0.000239 for rate in results.response_rates.values())
  assert (values["caught"], values["positives"], values["undefined"]) == (caught, len(defined), 5 - len(defined))
  assert (values["correct_yields"], values["negatives"]) == (correct, 5)
  np.testing.assert_allclose(values["mean_iou"], np.mean(defined))
  np.testing.assert_allclose(values["pes"], 0.5 * caught / len(defined) + 0.5 * correct / 5)
  assert values["thresholds"] == {"catch_iou": 0.3, "yield_response": 0.000239, "catch_weight": 0.5}
  assert values["per_image"]["positive"]["a"]["prompts"] == ["red1.png", "red2.png"]
  assert values["per_image"]["positive"]["a"]["caught"] == (results.ious["a"] >= 0.3)
  assert caught >= 1, "the packaged network finds red discs by red discs"


def test_the_page_is_whole_needs_no_network_and_escapes_names(results):
  text = inspection_report.report_page(results, "Inspection of <DATA>")
  page = Page(text)
  assert not re.search(r"https?:|<script|@import|url\(", text)
  assert {key for _, key, _ in page.attributes}.isdisjoint({"href", "srcset", "onclick", "onload"})
  assert all(re.match("data:image/(jpeg|png);base64,", value) for tag, key, value in page.attributes if key == "src")
  assert "c <b>&" not in text and "c <b>&" in page.texts
  assert "Inspection of <DATA>" in page.texts
  words = " ".join(page.texts)
  for name, value in results.summary().items():
    assert name in page.texts and value in page.texts
  assert words.count("Pictures of the 3 worst of 5 images; the other 2 are only in the table") == 2


def test_the_worst_come_first_and_what_went_wrong_is_marked(results):
  text = inspection_report.report_page(results)
  catches, yields = text.split("<h2>Yields</h2>")
  rows = re.findall(r'<div class="row"><p><b>(.*?)</b> IoU ([\d.]+) (.*?)</p>', catches)
  ious = sorted(iou for iou in results.ious.values() if not math.isnan(iou))
  assert [score for _, score, _ in rows] == [f"{iou:.3f}" for iou in ious[:3]]
  assert ["missed" in mark for _, _, mark in rows] == [iou < 0.3 for iou in ious[:3]]
  rates = sorted(results.response_rates.values(), reverse=True)
  rows = re.findall(r'<div class="row"><p><b>(.*?)</b> response rate ([\d.]+) (.*?)</p>', yields)
  assert [score for _, score, _ in rows] == [f"{rate:.6f}" for rate in rates[:3]]
  assert ["over-call" in mark for _, _, mark in rows] == [rate >= 0.000239 for rate in rates[:3]]
  titles = re.findall(r"<figcaption>(.*?)</figcaption>", yields)
  assert titles[:4] == ["query", "first prompt: blue.png", "truth", "prediction"]


def test_the_pictures_show_prediction_and_truth_over_the_query(folders, results):
  (row,) = (row for row in results.rows[0][:1])
  pictures = {title: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for title, data in row.pictures}
  image, truth = (read(folders / "data" / kind / f"{row.name}.png") for kind in ("images", "labels"))
  assert {picture.shape for picture in pictures.values()} == {image.shape}
  changed = np.abs(pictures["truth"].astype(int) - pictures["query"]).sum(axis=-1) > 60
  assert np.mean(changed == (truth > 0)) > 0.95


def test_the_smallest_defect_is_still_seen_in_a_small_picture():
  labels = np.zeros((1024, 2048), np.uint8)
  labels[500:502, 700:702] = 1
  image = np.full((1024, 2048, 3), 100, np.uint8)
  small = np.asarray(Image.open(io.BytesIO(inspection_report.thumbnail(image, labels, 128))).convert("RGB")).astype(int)
  assert small.shape == (64, 128, 3)
  assert np.abs(small[31, 43] - 100).max() > 25 and np.abs(small[:20] - 100).max() < 5


def test_bars_have_the_bad_in_red_on_top():
  pixels = np.asarray(Image.open(io.BytesIO(inspection_report.bars([0.9] * 3, [0.9, 0.1], np.linspace(0, 1, 3), 0.5))))[
    ..., :3
  ]
  good, bad = (np.argwhere((pixels == color).all(axis=-1)) for color in ((0x4A, 0x86, 0xC5), (0xD0, 0x45, 0x5A)))
  left = bad[bad[:, 1] < pixels.shape[1] // 2]
  right = bad[bad[:, 1] > pixels.shape[1] // 2]
  assert good[:, 1].min() > pixels.shape[1] // 2 and right[:, 0].max() <= good[:, 0].min()
  np.testing.assert_allclose([np.ptp(good[:, 0]), np.ptp(right[:, 0])], np.ptp(left[:, 0]) * np.array([3, 1]), rtol=0.1)


def test_images_without_foreground_are_in_no_rate_and_come_last():
  """Such an image has nothing to catch; its IoU is null in JSON, which has no NaN."""
  ious = {"x": math.nan, "y": 0.5}
  found = inspection_report.Results(
    inspection_report.judge(ious.values()), ious, {}, ({"x": [], "y": []}, {}), ([], [])
  )
  values = found.values()
  assert (values["positives"], values["undefined"], values["pes"]) == (1, 1, None)
  assert values["per_image"]["positive"]["x"] == {"iou": None, "caught": None, "prompts": []}
  json.dumps(values, allow_nan=False)
  text = inspection_report.report_page(found)
  assert text.index("<td>y</td>") < text.index("<td>x</td>") and "Yields" not in text


def test_images_that_are_their_own_prompts_are_named_and_not_scored(folders, predictor):
  image, label = (folders / "data" / kind / "a.png" for kind in ("images", "labels"))
  listed = [
    dataclasses.replace(query, prompts=(PromptFiles(image, label),)) for query in queries(folders, "positive")[:2]
  ]
  found = inspection_report.inspect(predictor, listed, labels=LabelFormat("binary", 127))
  assert list(found.ious) == ["b"] and found.values()["own_prompts"] == ["a"]
  assert "1 labeled image is its own prompt" in inspection_report.report_page(found)


def test_what_cannot_be_judged_is_named(folders, predictor, tmp_path):
  listed = queries(folders, "positive")
  listed[1] = Query(listed[1].name, listed[1].image, None, listed[1].prompts)
  with pytest.raises(InputError, match=r"b\.png: found no label file"):
    inspection_report.inspect(predictor, listed)
  for keys, words in (({"a.png": ["red1.png"], "lost.png": ["red1.png"]}, "key 'lost.png'"), ({}, "no keys")):
    (tmp_path / "some.json").write_text(json.dumps(keys))
    prompts = folders / "prompts"
    with pytest.raises(InputError, match=words):
      list_queries(folders / "data", prompts / "images", prompts / "labels", tmp_path / "some.json", mapped_only=True)


def test_the_command_writes_numbers_and_page(folders, weights_directory, tmp_path):
  prompts = folders / "prompts"
  arguments = [
    *("--model-path", weights_directory, "--dataset-dir", folders / "data", "--outdir", tmp_path / "out"),
    *("--labels", "binary"),
    *("--prompt-img-dir", prompts / "images", "--prompt-label-dir", prompts / "labels", "--split", "1,2"),
    *("--mapping", folders / "positive.json", "--negative_mapping", folders / "negative.json"),
  ]

  def command(*options):
    return seggpt("evaluate-inspection", *arguments, *options, env={"XLA_FLAGS": QUICK})

  done = command("--thresholds", "0.5,0.000239,0.5")
  assert done.returncode == 0, done.stderr
  stored = json.loads((tmp_path / "out" / "inspection.json").read_text())
  assert stored["arguments"]["split"] == ["1", "2"] and stored["thresholds"]["catch_iou"] == 0.5
  assert f"catch rate {stored['catch_rate']:.1%}" in done.stdout
  text = (tmp_path / "out" / "report.html").read_text()
  Page(text)
  assert len(re.findall('<div class="row">', text)) == 10  # of five images with prompts, and five with negative ones
  picture = re.search(r"jpeg;base64,([^\"]+)", text)[1]
  assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (80, 60)
  done = command("--thresholds", "30,0,1")
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "catch_iou: found 30" in done.stderr
