"""Judges a network as an inspection line would: defects that are caught, and good parts that are left alone.

In: images with labels, prompts of classes that an image shows (positive) and of classes that it does not show
(negative). Out: catch rate, yield rate and PES, the result of every image, and pictures of the worst ones, as
inspection.json and report.html. Every class but 0 counts as foreground; predicting one class for another is no mistake
here. The page contains its pictures and needs neither scripts nor a network; all texts are escaped.
"""

from __future__ import annotations

import base64
import bisect
import dataclasses
import functools
import html
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.inference import batch, outputs, pictures, tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.inference.scores import own_prompts_line
from seggpt_jax.metrics.inspection import Inspection, Thresholds, foreground_iou, judge, response_rate
from seggpt_jax.palette import display_palette

_PALETTE = display_palette(256)
# Tinted pictures need the higher quality and a strong tint: otherwise the color of a single pixel is almost lost.
_QUALITY, _QUALITY_TINTED = 80, 90
_OPACITY = 0.8

_PAGE = Template(Path(__file__).with_suffix(".html").read_text("utf-8"))


class Row(NamedTuple):
  """The pictures of one image."""

  name: str  # name of the image
  score: str  # its score in words
  mark: str  # mistake in words, such as "missed"; empty if there is no mistake
  pictures: Sequence[tuple[str, bytes]]  # titles, each with a JPEG from `thumbnail`


def thumbnail(
  image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"] | None = None, side: int = 256
) -> bytes:
  """Returns a small picture as JPEG, tinted where there are labels.

  Every region stays visible in at least one pixel, however small it is: defects are easily lost when pictures shrink.

  Args:
    image: image of any size; small ones are not enlarged.
    labels: class indices to draw over the image; pixels with IGNORE are drawn as background.
    side: maximum of the result's height and width, in pixels.
  """
  height, width = image.shape[:2]
  scale = min(side / max(height, width), 1.0)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  small = tiling.resize_image(image, size)
  if labels is not None:
    shown = np.zeros(size, np.int32)
    for index in np.unique(labels[(labels > 0) & (labels != IGNORE)]):
      mask = Image.fromarray((labels == index).astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)
      shown[np.asarray(mask) > 0] = index
    small = pictures.overlay(small, shown, _PALETTE, _OPACITY)
  file = io.BytesIO()
  # Colors at full resolution: at half, which is the default, the tint of a single pixel would be lost.
  Image.fromarray(small).save(file, "jpeg", quality=_QUALITY if labels is None else _QUALITY_TINTED, subsampling=0)
  return file.getvalue()


def bars(good: Sequence[float], bad: Sequence[float], bins: np.ndarray, limit: float | int) -> bytes:
  """Returns a histogram as a PNG file, with the counts of bad images in red on top of the counts of good ones.

  Args:
    good: values of good images.
    bad: values of bad images.
    bins: edges of the bins, on a logarithmic axis if the first is above 0; smaller values count as the first.
    limit: value at which a dashed line is drawn.
  """
  from matplotlib.figure import Figure

  figure, values = (
    Figure(figsize=(5.2, 1.5), layout="constrained"),
    [np.clip(each, bins[0], None) for each in (good, bad)],
  )
  axis = figure.subplots()
  counts, _, parts = axis.hist(values, bins, stacked=True, rwidth=0.9, color=["#4a86c5", "#d0455a"])
  axis.bar_label(parts[1], [f"{count:.0f}" if count else "" for count in counts[1]], color="#666")
  axis.axvline(max(limit, bins[0]), color="#222", linestyle="--", linewidth=1)
  axis.set(xscale="log" if bins[0] > 0 else "linear", yticks=[])
  axis.spines[["left", "top", "right"]].set_visible(False)
  axis.margins(y=0.2)
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=100)
  return file.getvalue()


class _Kind(NamedTuple):
  """Describes how images with positive or with negative prompts are scored and shown."""

  title: str
  note: str
  score: Callable[[batch.Read, Prediction], float]
  words: str  # the score in words
  mistake: str
  limit: str  # field of `Thresholds` that tells right from wrong
  order: int  # 1 if the lowest score is the worst, -1 if the highest is
  bins: np.ndarray  # edges of the histogram

  def badness(self, value: float) -> float:
    """Returns a sort key that puts the worst images first and images without an IoU last."""
    return math.inf if math.isnan(value) else self.order * value

  def is_right(self, value: float, limits: Thresholds) -> bool:
    limit = getattr(limits, self.limit)
    return value >= limit if self.order > 0 else value < limit

  def described(self, value: float, limits: Thresholds) -> tuple[str, str]:
    """Returns the score of an image in words, and its mark."""
    if math.isnan(value):
      return "no foreground in truth and prediction", ""
    return self.words.format(value), "" if self.is_right(value, limits) else self.mistake


_POSITIVE = _Kind(
  "Catches",
  "Each image with prompts of a class that it shows: IoU of the foreground. Misses are red.",
  lambda item, prediction: foreground_iou(prediction.labels, item.truth),
  *("IoU {:.3f}", "missed", "catch_iou", 1, np.linspace(0, 1, 21)),
)
_NEGATIVE = _Kind(
  "Yields",
  "Each image with prompts of a class that it does not show: share of foreground pixels. Over-calls are red.",
  lambda item, prediction: response_rate(prediction.labels),
  *("response rate {:.6f}", "over-call", "yield_response", -1, np.logspace(-6, 0, 19)),
)


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
    names = ("mean_iou", "catch_rate", "yield_rate", "pes", "caught", "positives", "undefined", "correct_yields")
    positive = {
      name: {"iou": _plain(iou), "caught": None if math.isnan(iou) else iou >= limits.catch_iou}
      for name, iou in self.ious.items()
    }
    negative = {
      name: {"response_rate": rate, "correct_yield": rate < limits.yield_response}
      for name, rate in self.response_rates.items()
    }
    for scores, prompts in zip((positive, negative), self.prompts, strict=True):
      for name, score in scores.items():
        score["prompts"] = prompts[name]
    return {
      **{name: _plain(getattr(found, name)) for name in (*names, "negatives")},
      "thresholds": dataclasses.asdict(limits),
      "own_prompts": list(self.own_prompts),
      "per_image": {"positive": positive, "negative": negative},
    }

  def summary(self) -> dict[str, str]:
    """Returns the rates in words, by their names, and what was left out."""
    found, limits = self.inspection, self.inspection.thresholds
    catch, yields, pes = (
      "-" if math.isnan(rate) else f"{rate:.1%}" for rate in (found.catch_rate, found.yield_rate, found.pes)
    )
    undefined = f"; {found.undefined} without foreground in truth and prediction" if found.undefined else ""
    of_images = f"({found.correct_yields} of {found.negatives} images, response rate < {limits.yield_response:g})"
    words = {
      "mean IoU": "-" if math.isnan(found.mean_iou) else f"{found.mean_iou:.3f}",
      "catch rate": f"{catch} ({found.caught} of {found.positives} images, IoU >= {limits.catch_iou:g}{undefined})",
      "yield rate": f"{yields} {of_images}",
      "PES": f"{pes} ({limits.catch_weight:g} catch rate + {1 - limits.catch_weight:g} yield rate)",
    }
    return words | ({"left out": own_prompts_line(self.own_prompts)} if self.own_prompts else {})


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
  prompt_picture = functools.lru_cache(functools.partial(_prompt_picture, labels=labels))
  kept, own = [], dict[str, None]()
  for kind, queries in ((_POSITIVE, positives), (_NEGATIVE, negatives)):
    worst: list[tuple[float, str, Row]] = []  # pictures of other images are dropped at once
    values: dict[str, float] = {}
    found = batch.segment(predictor, queries, options, labels=labels) if queries else ()
    for item, prediction in tqdm(found, kind.title, len(queries), unit="image", disable=not queries):
      name = item.query.name
      if item.is_prompt:
        own[name] = None
        continue
      value = values[name] = kind.score(item, prediction)
      place = (kind.badness(value), name)
      if num_rows and (len(worst) < num_rows or place <= worst[-1][:2]):
        row = Row(name, *kind.described(value, thresholds), _pictures(item, prediction, prompt_picture))
        bisect.insort(worst, (*place, row), key=lambda entry: entry[:2])
        del worst[num_rows:]
    prompts = {query.name: [files.written for files in query.prompts] for query in queries}
    kept.append((values, prompts, [row for _, _, row in worst]))
  (ious, rates), prompts, rows = zip(*kept, strict=True)
  return Results(judge(ious.values(), rates.values(), thresholds), ious, rates, prompts, rows, tuple(own))


def _pictures(
  item: batch.Read, prediction: Prediction, prompt_picture: Callable[[PromptFiles], bytes]
) -> list[tuple[str, bytes]]:
  pictures = [("query", thumbnail(item.image))]
  if item.query.prompts:
    files = item.query.prompts[0]
    pictures.append((f"first prompt: {files.image.name}", prompt_picture(files)))
  if item.truth is not None:
    pictures.append(("truth", thumbnail(item.image, item.truth)))
  return [*pictures, ("prediction", thumbnail(item.image, prediction.labels))]


def _prompt_picture(files: PromptFiles, labels: LabelFormat) -> bytes:
  # Read again from the file: the prompt that the network was given is a square of its tile size.
  return thumbnail(read_image(files.image), read_labels(files.labels, labels))


def report_page(results: Results, title: str = "Inspection") -> str:
  """Returns the page with charts, tables and pictures as HTML."""
  kinds = zip((_POSITIVE, _NEGATIVE), (results.ious, results.response_rates), results.rows, strict=True)
  limits, summary = results.inspection.thresholds, results.summary().items()
  return _PAGE.substitute(
    title=html.escape(title),
    summary="\n".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in summary),
    sections="\n".join(_section(kind, scores, rows, limits) for kind, scores, rows in kinds if scores),
  )


def _section(kind: _Kind, scores: Mapping[str, float], rows: Sequence[Row], limits: Thresholds) -> str:
  """Returns the part of the page about images with positive or with negative prompts, the worst first."""
  defined = [value for value in scores.values() if not math.isnan(value)]
  good, bad = ([value for value in defined if kind.is_right(value, limits) == right] for right in (True, False))
  chart = bars(good, bad, kind.bins, getattr(limits, kind.limit))
  table = []
  for name, value in sorted(scores.items(), key=lambda entry: (kind.badness(entry[1]), entry[0])):
    words, mark = kind.described(value, limits)
    table.append(f"<tr><td>{html.escape(name)}</td><td>{html.escape(words)}</td><td>{_mark(mark)}</td></tr>")
  left_out = len(scores) - len(rows)
  more = f"; the other {left_out} are only in the table." if left_out else "."
  return "\n".join(
    [
      f"<h2>{html.escape(kind.title)}</h2>",
      f"<p>{html.escape(kind.note)}</p>",
      _image("png", chart, kind.title),
      f"<details><summary>Table of all {len(scores)} images</summary>",
      "<table>{}</table></details>".format("\n".join(table)),
      f'<p class="note">Pictures of the {len(rows)} worst of {len(scores)} images{more}</p>',
      *map(_row, rows),
    ]
  )


def _row(row: Row) -> str:
  figures = "".join(
    f"<figure>{_image('jpeg', picture, title)}<figcaption>{html.escape(title)}</figcaption></figure>"
    for title, picture in row.pictures
  )
  words = f"<b>{html.escape(row.name)}</b> {html.escape(row.score)} {_mark(row.mark)}"
  return f'<div class="row"><p>{words}</p><div class="pictures">{figures}</div></div>'


def _image(kind: str, data: bytes, title: str) -> str:
  source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
  return f'<img loading="lazy" alt="{html.escape(title)}" src="{source}">'


def _mark(mark: str) -> str:
  return f'<span class="bad">{html.escape(mark)}</span>' if mark else ""


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


def _plain(value: float | int) -> float | int | None:
  return None if math.isnan(value) else value
