"""Results of an inspection, as plain values, as words, and as a page with pictures.

In: IoUs, response rates and rows of pictures. Out: inspection.json and report.html.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seggpt_jax.evaluation.report import Row, Section, bars, page
from seggpt_jax.inference import outputs
from seggpt_jax.inference.scores import own_prompts_line
from seggpt_jax.metrics.inspection import Inspection, Thresholds

_IOU_BINS = 20
_BINS_PER_DECADE, _DECADES = 3, 6  # of response rates


@dataclasses.dataclass(frozen=True)
class Results:
  """The results of one network.

  Attributes:
    inspection: counts and rates.
    ious: IoU of each image with positive prompts, by name; NaN if truth and prediction have no foreground.
    response_rates: response rate of each image with negative prompts, by name.
    prompts: file names of each image's prompts, by name, positive and negative.
    rows: pictures of the worst images with positive and with negative prompts, the worst first.
    own_prompts: names of the images that are not scored, because they are their own prompts.
  """

  inspection: Inspection
  ious: Mapping[str, float]
  response_rates: Mapping[str, float]
  prompts: tuple[Mapping[str, list[str]], Mapping[str, list[str]]]
  rows: tuple[Sequence[Row], Sequence[Row]]
  own_prompts: tuple[str, ...] = ()

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


def positive_order(iou: float) -> float:
  """Returns a sort key that puts the worst images first and images without an IoU last."""
  return math.inf if math.isnan(iou) else iou


def positive_words(iou: float, thresholds: Thresholds) -> tuple[str, str]:
  """Returns the score in words and the mark of an image with positive prompts."""
  if math.isnan(iou):
    return "no foreground in truth and prediction", ""
  return f"IoU {iou:.3f}", "" if iou >= thresholds.catch_iou else "missed"


def negative_words(rate: float, thresholds: Thresholds) -> tuple[str, str]:
  """Returns the score in words and the mark of an image with negative prompts."""
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
  worst = sorted(results.ious.items(), key=lambda entry: (positive_order(entry[1]), entry[0]))
  return Section(
    "Catches",
    "Each image with prompts of a class that it shows: IoU of the foreground. Misses are red.",
    bars(_counts(good, _IOU_BINS, 1), _counts(bad, _IOU_BINS, 1), ticks, limits.catch_iou * _IOU_BINS),
    results.rows[0],
    [(name, *positive_words(iou, limits)) for name, iou in worst],
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
    [(name, *negative_words(rate, limits)) for name, rate in worst],
  )


def _counts(values: Sequence[float], bins: int, most: int) -> list[int]:
  return np.histogram(values, bins, (0, most))[0].tolist()


def _position(rate: float | int) -> float:
  """Returns the position of a response rate on the logarithmic axis, in bins; 0 for all rates near 0."""
  return _BINS_PER_DECADE * max(math.log10(rate) + _DECADES if rate > 0 else 0.0, 0.0)


def write(results: Results, outdir: str | os.PathLike, arguments: Mapping[str, Any], title: str = "Inspection") -> None:
  """Writes OUT/inspection.json and OUT/report.html.

  Args:
    results: results of `inspection.inspect`.
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
