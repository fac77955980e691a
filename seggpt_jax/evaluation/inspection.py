"""Judges a network as an inspection line would: defects that are caught, and good parts that are left alone.

In: images with labels, prompts of classes that an image shows (positive) and of classes that it does not show
(negative). Out: catch rate, yield rate and PES, the result of every image, and pictures of the worst ones. Every class
but 0 counts as foreground; predicting one class for another is no mistake here.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.inspection_results import (
  Results,
  negative_words,
  positive_order,
  positive_words,
  write,
)
from seggpt_jax.evaluation.report import Row, thumbnail
from seggpt_jax.files import writing
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.inference import batch, outputs
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles, Query, files_of, list_queries
from seggpt_jax.metrics.inspection import Thresholds, foreground_iou, judge, response_rate
from seggpt_jax.written import check_outputs


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
  thresholds: Thresholds | None = None,
  num_rows: int = 50,
  options: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
  arguments: Mapping[str, Any] | None = None,
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
    thresholds: see `inspect`.
    num_rows: see `inspect`.
    options: see `inspect`.
    labels: see `inspect`.
    arguments: plain values to record in inspection.json.

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
  results = inspect(
    predictor, positives, negatives, thresholds=thresholds, num_rows=num_rows, options=options, labels=labels
  )
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
  positive, negative = _Worst(num_rows, show), _Worst(num_rows, show)
  ious: dict[str, float] = {}
  own: dict[str, None] = {}
  for item, prediction in _predictions(predictor, positives, "positive prompts", options, labels):
    if item.is_prompt:
      own[item.query.name] = None
      continue
    iou = ious[item.query.name] = foreground_iou(prediction.labels, item.truth)
    positive.add(positive_order(iou), item, prediction, *positive_words(iou, thresholds))
  rates: dict[str, float] = {}
  for item, prediction in _predictions(predictor, negatives, "negative prompts", options, labels):
    if item.is_prompt:
      own[item.query.name] = None
      continue
    rate = rates[item.query.name] = response_rate(prediction.labels)
    negative.add(-rate, item, prediction, *negative_words(rate, thresholds))
  return Results(
    judge(ious.values(), rates.values(), thresholds),
    ious,
    rates,
    (_prompt_names(positives), _prompt_names(negatives)),
    (positive.rows(), negative.rows()),
    tuple(own),
  )


def _predictions(
  predictor: Predictor, queries: Sequence[Query], title: str, options: InferenceOptions | None, labels: LabelFormat
) -> tqdm:
  """Returns an iterator over pairs of `batch.Read` and `Prediction` that shows a progress bar."""
  found = batch.segment(predictor, queries, options, labels=labels) if queries else ()
  return tqdm(found, desc=title, unit="image", total=len(queries), disable=not queries)


class _Worst:
  """The report rows of the worst images; pictures of other images are dropped at once.

  Args:
    num_rows: maximum number of rows.
    show: function that makes the pictures of an image.
  """

  def __init__(self, num_rows: int, show: Callable[[batch.Read, Prediction], list[tuple[str, bytes]]]):
    self._num_rows, self._show = num_rows, show
    self._kept: list[tuple[float, str, Row]] = []  # the worst first

  def add(self, order: float, item: batch.Read, prediction: Prediction, score: str, mark: str) -> None:
    """Keeps an image if it is among the worst; a lower order is worse."""
    place = (order, item.query.name)
    if len(self._kept) == self._num_rows and (not self._kept or place > self._kept[-1][:2]):
      return
    row = Row(item.query.name, score, mark, self._show(item, prediction))
    bisect.insort(self._kept, (*place, row), key=lambda entry: entry[:2])
    del self._kept[self._num_rows :]

  def rows(self) -> list[Row]:
    return [row for _, _, row in self._kept]


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
