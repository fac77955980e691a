"""Judges a network as an inspection line would: defects that are caught, and good parts that are left alone.

  python -m seggpt_jax.evaluation.inspection --model-path weights/vit_large --dataset-dir boards \\
    --prompt-img-dir prompts/images --prompt-label-dir prompts/labels --mapping positive.json \\
    --negative-mapping negative.json --outdir OUT

In: images with labels, and prompts of what they show (positive) and of what they lack (negative). Out: a table,
OUT/inspection.json with all numbers, and OUT/report.html with pictures, the worst first. Every class but 0 counts as
foreground, whichever is predicted for which.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from seggpt_jax.cli import inference_flags as command_flags
from seggpt_jax.compilation import keep_programs
from seggpt_jax.data.images import read_image
from seggpt_jax.data.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.evaluation.inspection_results import (
  Results,
  negative_words,
  positive_order,
  positive_words,
  summary,
  write,
)
from seggpt_jax.evaluation.report import Row, thumbnail
from seggpt_jax.files import writing
from seggpt_jax.inference import batch, outputs
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles, Query, list_queries
from seggpt_jax.metrics.inspection import Thresholds, foreground_iou, judge, response_rate


def inspect(
  predictor: Predictor,
  positives: Sequence[Query],
  negatives: Sequence[Query] = (),
  *,
  thresholds: Thresholds | None = None,
  num_rows: int = 50,
  approach: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
) -> Results:
  """Runs a network on all images, with prompts of what they show and with prompts of what they lack.

  Args:
    predictor: the network.
    positives: images with labels and with prompts of what they show, as of `list_queries`.
    negatives: images with prompts of what they lack.
    thresholds: what is a catch and what a correct yield; by default those of `Thresholds`.
    num_rows: of how many images of both runs pictures are kept.
    approach: how each image is shown to the network; whole by default.
    labels: how label files are read; by default as class indices. Ignored pixels are not scored.

  Raises:
    InputError: an image has no labels to be judged by, or a file cannot be read; names it.
  """
  thresholds, labels = thresholds or Thresholds(), labels or LabelFormat()
  for query in positives:
    if query.truth is None:
      raise InputError(f"{query.image}: found no label file for it, expected one for every image with positive prompts")
  show = functools.partial(_pictures, prompt_picture=functools.lru_cache(_prompt_picture), labels=labels)
  positive, negative = _Worst(num_rows, show), _Worst(num_rows, show)
  ious: dict[str, float] = {}
  for item, prediction in _run(predictor, positives, "positive prompts", approach, labels):
    iou = ious[item.query.name] = foreground_iou(prediction.labels, item.truth)
    positive.add(positive_order(iou), item, prediction, *positive_words(iou, thresholds))
  rates: dict[str, float] = {}
  for item, prediction in _run(predictor, negatives, "negative prompts", approach, labels):
    rate = rates[item.query.name] = response_rate(prediction.labels)
    negative.add(-rate, item, prediction, *negative_words(rate, thresholds))
  return Results(
    judge(ious.values(), rates.values(), thresholds),
    ious,
    rates,
    (_prompt_names(positives), _prompt_names(negatives)),
    (positive.rows(), negative.rows()),
  )


def _run(
  predictor: Predictor, queries: Sequence[Query], title: str, approach: InferenceOptions | None, labels: LabelFormat
) -> tqdm:
  """Pairs of `batch.Read` and `Prediction`, with a bar."""
  found = batch.segment(predictor, queries, approach, labels=labels) if queries else ()
  return tqdm(found, desc=title, unit="image", total=len(queries), disable=not queries)


class _Worst:
  """The rows of the worst images, so that pictures of all others need not be kept.

  Args:
    num_rows: how many.
    show: makes the pictures of one.
  """

  def __init__(self, num_rows: int, show: Callable[[batch.Read, Prediction], list[tuple[str, bytes]]]):
    self._num_rows, self._show = num_rows, show
    self._kept: list[tuple[float, str, Row]] = []  # the worst first

  def add(self, order: float, item: batch.Read, prediction: Prediction, score: str, mark: str) -> None:
    """Keeps an image if it is among the worst; the lower the order, the worse it is."""
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
  """In its own size and shape: the one that the network is given is a square."""
  label = read_labels(files.labels, labels)
  return thumbnail(read_image(files.image), np.where(label == IGNORE, 0, label))


def _prompt_names(queries: Sequence[Query]) -> dict[str, list[str]]:
  return {query.name: [files.image.name for files in query.prompts] for query in queries}


def _command(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  thresholds = Thresholds(values["catch-iou"].value, values["yield-response"].value, values["catch-weight"].value)
  approach = command_flags.approach_from_flags()
  model, outdir = values["model-path"].value, Path(values.outdir)
  labels = command_flags.label_format_from_flags(values.adapter or model)
  positives, negatives = (_queries(values, name) for name in ("mapping", "negative-mapping"))
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
  for name in ("inspection.json", "report.html"):
    outputs.remove(outdir / name)
  predictor = Predictor.from_checkpoint(model, adapter=values.adapter)
  if predictor.learned is not None:
    raise InputError("--adapter: found a learned prompt, expected a LoRA: what is judged is prompted by images")
  results = inspect(
    predictor,
    positives,
    negatives,
    thresholds=thresholds,
    num_rows=values.rows,
    approach=approach,
    labels=labels,
  )
  names = ("model-path", "adapter", "dataset-dir", "mapping", "negative-mapping", "top-k", *command_flags.APPROACH)
  arguments = {name: values[name].value for name in names} | {"labels": str(labels)}
  write(results, outdir, arguments, f"Inspection of {values['dataset-dir'].value}")
  for name, words in summary(results.inspection).items():
    print(f"{name:<11}{words}")
  print(f"written: {outdir}/report.html, {outdir}/inspection.json")


def _queries(values: flags.FlagValues, mapping: str) -> list[Query]:
  """Those of one mapping; without one, all images are positive."""
  path, folders = values[mapping].value, [values[f"prompt-{kind}-dir"].value for kind in ("img", "label")]
  if path is None and mapping == "negative-mapping":
    return []
  return list_queries(values["dataset-dir"].value, *folders, path, values["top-k"].value, mapped_only=True)


def _define_flags() -> None:
  flags.DEFINE_string("model-path", None, "Weights of convert_torch_weights.py, or a run of train.py.", required=True)
  flags.DEFINE_string("adapter", None, "A run of train.py that learned a LoRA for the weights.")
  flags.DEFINE_string("dataset-dir", None, "A folder with images/ and labels/.", required=True)
  flags.DEFINE_string("prompt-img-dir", None, "Images of the prompts.", required=True)
  flags.DEFINE_string("prompt-label-dir", None, "Label maps of the prompts.", required=True)
  what = "JSON file {image: [prompt files, best first]} of prompts that show what the image"
  flags.DEFINE_string("mapping", None, f"{what} shows; without it the first prompts by name serve all images.")
  flags.DEFINE_string("negative-mapping", None, f"{what} lacks, for the yield rate.")
  flags.DEFINE_string("outdir", None, "Folder for inspection.json and report.html.", required=True)
  flags.DEFINE_integer("top-k", 1, "The most prompts that an image gets.", 1)
  flags.DEFINE_float("catch-iou", Thresholds.catch_iou, "The least IoU of a catch.")
  flags.DEFINE_float("yield-response", Thresholds.yield_response, "The response rate below which a yield is correct.")
  flags.DEFINE_float("catch-weight", Thresholds.catch_weight, "The catch rate's part in PES.")
  flags.DEFINE_integer("rows", 50, "Images with pictures in each part of the report, the worst ones.", 0)
  command_flags.define_approach_flags()
  command_flags.define_label_flags()
  command_flags.define_aliases()
  flags.adopt_module_key_flags(command_flags)  # for --help


if __name__ == "__main__":
  _define_flags()
  run_main(_command)
