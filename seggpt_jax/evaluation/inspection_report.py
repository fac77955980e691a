"""Judges a network as an inspection line would: defects that are caught, and good parts that are left alone.

In: images with labels, prompts of classes that an image shows (positive) and of classes that it does not show
(negative). Out: catch rate, yield rate and PES, the result of every image, and pictures of the worst ones, as
inspection.json and report.html. Every class but 0 counts as foreground; predicting one class for another is no mistake
here.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.picture_page import Row, Section, bars, page, thumbnail
from seggpt_jax.files import writing
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.inference import batch, outputs
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles, Query, files_of, list_queries
from seggpt_jax.inference.scores import own_prompts_line
from seggpt_jax.metrics.inspection import Inspection, Thresholds, foreground_iou, judge, response_rate
from seggpt_jax.written import check_outputs

_IOU_BINS = 20
_BINS_PER_DECADE, _DECADES = 3, 6  # of response rates


@dataclasses.dataclass(frozen=True)
class Results:
  """The results of one network; pairs are for positive and for negative prompts."""

  inspection: Inspection  # counts and rates
  ious: Mapping[str, float]  # of each image with positive prompts, by name; NaN without foreground in both
  response_rates: Mapping[str, float]  # of each image with negative prompts, by name
  prompts: tuple[Mapping[str, list[str]], Mapping[str, list[str]]]  # file names of each image's prompts, by name
  rows: tuple[Sequence[Row], Sequence[Row]]  # pictures of the worst images, the worst first
  own_prompts: tuple[str, ...] = ()  # images that are not scored, because they are their own prompts

  def values(self) -> dict[str, Any]:
    """Returns plain values for JSON, with None where a rate or an IoU is not defined."""
    found, limits = self.inspection, self.inspection.thresholds
    rates = {name: _plain(getattr(found, name)) for name in ("mean_iou", "catch_rate", "yield_rate", "pes")}
    counts = {
      name: getattr(found, name) for name in ("caught", "positives", "undefined", "correct_yields", "negatives")
    }
    positive = {
      name: {
        "iou": _plain(iou),
        "caught": None if math.isnan(iou) else iou >= limits.catch_iou,
        "prompts": self.prompts[0][name],
      }
      for name, iou in self.ious.items()
    }
    negative = {
      name: {"response_rate": rate, "correct_yield": rate < limits.yield_response, "prompts": self.prompts[1][name]}
      for name, rate in self.response_rates.items()
    }
    per_image = {"positive": positive, "negative": negative}
    about = {"thresholds": dataclasses.asdict(limits), "own_prompts": list(self.own_prompts)}
    return {**rates, **counts, **about, "per_image": per_image}

  def summary(self) -> dict[str, str]:
    """Returns the rates in words, by their names, and what was left out."""
    left_out = {"left out": own_prompts_line(self.own_prompts)} if self.own_prompts else {}
    return summary(self.inspection) | left_out


def run(
  model_path: str | os.PathLike,
  dataset_dir: str | os.PathLike,
  prompt_img_dir: str | os.PathLike,
  prompt_label_dir: str | os.PathLike,
  outdir: str | os.PathLike,
  *,
  mapping: str | os.PathLike | None = None,
  negative_mapping: str | os.PathLike | None = None,
  adapter: str | os.PathLike | None = None,
  top_k: int = 1,
  arguments: Mapping[str, Any] | None = None,
  **options: Any,
) -> None:
  """Inspects a dataset on disk, prints the rates, and writes inspection.json and report.html.

  Args:
    model_path: weights directory, training run or packaged name.
    dataset_dir: folder with images/ and labels/.
    prompt_img_dir: folder of the prompts' images.
    prompt_label_dir: folder of the prompts' label maps.
    outdir: folder for the results, which is created if it is missing.
    mapping: JSON file {image: [prompt files, best first]} of positive prompts; without it the first prompts by name
      serve every image.
    negative_mapping: the same of negative prompts; without it there is no yield rate.
    adapter: training run of a LoRA for the weights.
    top_k: maximum number of prompts per image.
    arguments: plain values to record in inspection.json.
    **options: thresholds, num_rows, options and labels of `inspect`.

  Raises:
    InputError: a file is missing or cannot be read or written, or the adapter is a learned prompt.
  """
  list_mapped = functools.partial(
    list_queries, dataset_dir, prompt_img_dir, prompt_label_dir, top_k=top_k, mapped_only=True, apart=(outdir,)
  )
  positives = list_mapped(mapping)
  negatives = [] if negative_mapping is None else list_mapped(negative_mapping)
  outdir = Path(outdir)
  reports = [outdir / name for name in ("inspection.json", "report.html")]
  check_outputs(reports, files_of([*positives, *negatives]))
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
  for path in reports:
    outputs.remove(path)
  predictor = Predictor.from_checkpoint(model_path, adapter=adapter)
  if predictor.learned is not None:
    raise InputError("--adapter: found a learned prompt, expected a LoRA: an inspection is prompted by images")
  results = inspect(predictor, positives, negatives, **options)
  write(results, outdir, arguments or {}, f"Inspection of {dataset_dir}")
  for name, words in results.summary().items():
    print(f"{name:<11}{words}")
  print(f"written: {outdir}/report.html, {outdir}/inspection.json")


def inspect(
  predictor: Predictor,
  positives: Sequence[Query],
  negatives: Sequence[Query] = (),
  *,
  thresholds: Thresholds | None = None,
  num_rows: int = 50,
  options: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
) -> Results:
  """Segments all images with positive prompts, then with negative prompts, and scores both.

  Images that are their own prompts, by their pixels, are not scored.

  Args:
    predictor: the network.
    positives: images with labels and positive prompts, from `list_queries`.
    negatives: images with negative prompts.
    thresholds: limits of a catch and of a correct yield; the defaults of `Thresholds` if None.
    num_rows: number of worst images, for positive and for negative prompts, whose pictures are kept.
    options: how each image is shown to the network; whole by default.
    labels: format of the label files; class indices by default. Ignored pixels are not scored.

  Raises:
    InputError: an image with positive prompts has no label, or a file cannot be read; names the file.
  """
  thresholds, labels = thresholds or Thresholds(), labels or LabelFormat()
  for query in positives:
    if query.truth is None:
      raise InputError(f"{query.image}: found no label file for it, expected one for every image with positive prompts")
  show = functools.partial(_pictures, prompt_picture=functools.lru_cache(_prompt_picture), labels=labels)
  kept = []
  own: dict[str, None] = {}
  kinds = (("positive", positives, _positive_words), ("negative", negatives, _negative_words))
  for kind, queries, words in kinds:
    worst: list[tuple[float, str, Row]] = []  # pictures of other images are dropped at once
    values: dict[str, float] = {}
    found = batch.segment(predictor, queries, options, labels=labels) if queries else ()
    for item, prediction in tqdm(found, desc=f"{kind} prompts", unit="image", total=len(queries), disable=not queries):
      if item.is_prompt:
        own[item.query.name] = None
        continue
      value = foreground_iou(prediction.labels, item.truth) if kind == "positive" else response_rate(prediction.labels)
      values[item.query.name] = value
      place = (_order(value) if kind == "positive" else -value, item.query.name)
      if num_rows and (len(worst) < num_rows or place <= worst[-1][:2]):
        row = Row(item.query.name, *words(value, thresholds), show(item, prediction))
        bisect.insort(worst, (*place, row), key=lambda entry: entry[:2])
        del worst[num_rows:]
    kept.append((values, [row for _, _, row in worst]))
  (ious, positive_rows), (rates, negative_rows) = kept
  return Results(
    judge(ious.values(), rates.values(), thresholds),
    ious,
    rates,
    (_prompt_names(positives), _prompt_names(negatives)),
    (positive_rows, negative_rows),
    tuple(own),
  )


def _pictures(
  item: batch.Read,
  prediction: Prediction,
  prompt_picture: Callable[[PromptFiles, LabelFormat], bytes],
  labels: LabelFormat,
) -> list[tuple[str, bytes]]:
  pictures = [("query", thumbnail(item.image))]
  if item.query.prompts:
    files = item.query.prompts[0]
    pictures.append((f"first prompt: {files.image.name}", prompt_picture(files, labels)))
  if item.truth is not None:
    pictures.append(("truth", thumbnail(item.image, np.where(item.truth == IGNORE, 0, item.truth))))
  return [*pictures, ("prediction", thumbnail(item.image, prediction.labels))]


def _prompt_picture(files: PromptFiles, labels: LabelFormat) -> bytes:
  # Read again from the file: the prompt that the network was given is a square of its tile size.
  label = read_labels(files.labels, labels)
  return thumbnail(read_image(files.image), np.where(label == IGNORE, 0, label))


def _prompt_names(queries: Sequence[Query]) -> dict[str, list[str]]:
  return {query.name: [files.written for files in query.prompts] for query in queries}


def _order(iou: float) -> float:
  """Returns a sort key that puts the worst images first and images without an IoU last."""
  return math.inf if math.isnan(iou) else iou


def _positive_words(iou: float, thresholds: Thresholds) -> tuple[str, str]:
  """Returns the score of an image with positive prompts in words, and its mark."""
  if math.isnan(iou):
    return "no foreground in truth and prediction", ""
  return f"IoU {iou:.3f}", "" if iou >= thresholds.catch_iou else "missed"


def _negative_words(rate: float, thresholds: Thresholds) -> tuple[str, str]:
  """Returns the score of an image with negative prompts in words, and its mark."""
  return f"response rate {rate:.6f}", "" if rate < thresholds.yield_response else "over-call"


def summary(inspection: Inspection) -> dict[str, str]:
  """Returns the rates in words, by their names."""

  def percent(rate: float) -> str:
    return "-" if math.isnan(rate) else f"{rate:.1%}"

  found, limits = inspection, inspection.thresholds
  undefined = f"; {found.undefined} without foreground in truth and prediction" if found.undefined else ""
  return {
    "mean IoU": "-" if math.isnan(found.mean_iou) else f"{found.mean_iou:.3f}",
    "catch rate": f"{percent(found.catch_rate)} ({found.caught} of {found.positives} images, IoU >= "
    f"{limits.catch_iou:g}{undefined})",
    "yield rate": f"{percent(found.yield_rate)} ({found.correct_yields} of {found.negatives} images, response rate < "
    f"{limits.yield_response:g})",
    "PES": f"{percent(found.pes)} ({limits.catch_weight:g} catch rate + {1 - limits.catch_weight:g} yield rate)",
  }


def report_page(results: Results, title: str = "Inspection") -> str:
  """Returns the page with charts, tables and pictures as HTML."""
  sections = []
  if results.ious:
    sections.append(_catches(results))
  if results.response_rates:
    sections.append(_yields(results))
  return page(title, results.summary(), sections)


def _catches(results: Results) -> Section:
  limits = results.inspection.thresholds
  defined = [iou for iou in results.ious.values() if not math.isnan(iou)]
  good, bad = ([iou for iou in defined if (iou >= limits.catch_iou) == caught] for caught in (True, False))
  ticks = {index: f"{index / _IOU_BINS:g}" for index in range(0, _IOU_BINS + 1, 4)}
  worst = sorted(results.ious.items(), key=lambda entry: (_order(entry[1]), entry[0]))
  return Section(
    "Catches",
    "Each image with prompts of a class that it shows: IoU of the foreground. Misses are red.",
    bars(_counts(good, _IOU_BINS, 1), _counts(bad, _IOU_BINS, 1), ticks, limits.catch_iou * _IOU_BINS),
    results.rows[0],
    [(name, *_positive_words(iou, limits)) for name, iou in worst],
  )


def _yields(results: Results) -> Section:
  limits, bins = results.inspection.thresholds, _BINS_PER_DECADE * _DECADES
  rates = results.response_rates.values()
  good, bad = ([_position(r) for r in rates if (r < limits.yield_response) == correct] for correct in (True, False))
  ticks: dict[float | int, str] = {_BINS_PER_DECADE * n: f"{10.0 ** (n - _DECADES):g}" for n in range(1, _DECADES + 1)}
  worst = sorted(results.response_rates.items(), key=lambda entry: (-entry[1], entry[0]))
  return Section(
    "Yields",
    "Each image with prompts of a class that it does not show: share of foreground pixels. Over-calls are red.",
    bars(_counts(good, bins, bins), _counts(bad, bins, bins), ticks | {0: "0"}, _position(limits.yield_response)),
    results.rows[1],
    [(name, *_negative_words(rate, limits)) for name, rate in worst],
  )


def _counts(values: Sequence[float], bins: int, most: int) -> list[int]:
  return np.histogram(values, bins, (0, most))[0].tolist()


def _position(rate: float | int) -> float:
  """Returns the position of a response rate on the logarithmic axis, in bins; 0 for all rates near 0."""
  return _BINS_PER_DECADE * max(math.log10(rate) + _DECADES if rate > 0 else 0.0, 0.0)


def write(results: Results, outdir: str | os.PathLike, arguments: Mapping[str, Any], title: str = "Inspection") -> None:
  """Writes OUT/inspection.json and OUT/report.html.

  Args:
    results: results of `inspect`.
    outdir: folder for the files, which is created if it is missing.
    arguments: plain values that say how the results were made.
    title: title of the page.

  Raises:
    InputError: the folder cannot be written to.
  """
  outputs.write_json(Path(outdir) / "inspection.json", {"arguments": dict(arguments), **results.values()})
  outputs.write_text(Path(outdir) / "report.html", report_page(results, title))


def _plain(value: float) -> float | None:
  return None if math.isnan(value) else value
