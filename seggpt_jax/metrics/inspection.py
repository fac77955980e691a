"""Scores of an inspection line: how many defects it catches, and how many good parts it leaves alone.

In: one number for each image. With a positive prompt, of a class that the query has, it is the IoU. With a negative
prompt, of a class that the query lacks, it is the response rate. Out: catch rate, yield rate, and PES, their weighted
mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Integer

from seggpt_jax.errors import InputError
from seggpt_jax.palette import IGNORE


@dataclass(frozen=True)
class Thresholds:
  """Limits for a catch and for a correct yield, and the weight of each in PES, all 0..1.

  Attributes:
    catch_iou: the least IoU of a catch.
    yield_response: the response rate below which a yield is correct; the default is 250 pixels at 1024 x 1024.
    catch_weight: weight of the catch rate in PES; the yield rate has the rest.

  Raises:
    InputError: a value is not in 0..1.
  """

  catch_iou: float | int = 0.3
  yield_response: float | int = 0.000239
  catch_weight: float | int = 0.5

  def __post_init__(self):
    for key in fields(self):
      _check_share(key.name, getattr(self, key.name))


@dataclass(frozen=True)
class Inspection:
  """Counts of a set of images, and the rates that follow from them."""

  thresholds: Thresholds = field(default_factory=Thresholds)  # the limits that were applied
  caught: int = 0  # images whose IoU is a catch
  positives: int = 0  # images with an IoU
  undefined: int = 0  # images without an IoU, as truth and prediction have no foreground; no rate counts them
  iou_sum: float = 0.0  # sum of all IoUs
  correct_yields: int = 0  # images whose response rate is a correct yield
  negatives: int = 0  # images with a response rate

  @property
  def mean_iou(self) -> float:
    """Mean IoU over images, all of equal weight; NaN if none has an IoU."""
    return _ratio(self.iou_sum, self.positives)

  @property
  def catch_rate(self) -> float:
    """Share of images that are caught, 0..1; NaN if none has an IoU."""
    return _ratio(self.caught, self.positives)

  @property
  def yield_rate(self) -> float:
    """Share of images that are correct yields, 0..1; NaN if none has a response rate."""
    return _ratio(self.correct_yields, self.negatives)

  @property
  def pes(self) -> float:
    """Weighted mean of catch rate and yield rate, 0..1; NaN if a rate of positive weight is NaN."""
    weight = self.thresholds.catch_weight
    # Rates of weight 0 are skipped, because 0 * NaN is NaN.
    weighted = [(weight, self.catch_rate), (1 - weight, self.yield_rate)]
    return float(sum(share * rate for share, rate in weighted if share > 0))


def judge(
  ious: Iterable[float] = (), response_rates: Iterable[float] = (), thresholds: Thresholds | None = None
) -> Inspection:
  """Counts catches and correct yields.

  Args:
    ious: `foreground_iou` of every image with a positive prompt. NaN stands for an image without foreground in truth
      and prediction, which is neither caught nor missed. Give images without defects a negative prompt: here, one
      predicted pixel would make them a miss with IoU 0.
    response_rates: `response_rate` of every image with a negative prompt.
    thresholds: limits to apply; by default `Thresholds()`.

  Raises:
    InputError: there are no images, or a number is outside 0..1.
  """
  thresholds = thresholds or Thresholds()
  ious = [float(iou) for iou in ious]
  rates = [_check_share("response rate", float(rate)) for rate in response_rates]
  if not ious and not rates:
    raise InputError("inspection: found no images, expected IoUs or response rates of at least one")
  defined = [_check_share("IoU", iou) for iou in ious if not math.isnan(iou)]
  return Inspection(
    thresholds,
    caught=sum(iou >= thresholds.catch_iou for iou in defined),
    positives=len(defined),
    undefined=len(ious) - len(defined),
    iou_sum=math.fsum(defined),
    correct_yields=sum(rate < thresholds.yield_response for rate in rates),
    negatives=len(rates),
  )


def foreground_iou(predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"]) -> float:
  """Computes the IoU of one image's foreground, which is all classes but 0, without distinction.

  Pixels that are `palette.IGNORE` or negative in truth or prediction are not counted.

  Args:
    predicted: class indices.
    truth: class indices, same shape.

  Returns:
    The IoU, 0..1; NaN if neither truth nor prediction has foreground.
  """
  known = (predicted >= 0) & (predicted != IGNORE) & (truth >= 0) & (truth != IGNORE)
  ours, theirs = ((labels >= 1) & known for labels in (predicted, truth))
  return _ratio(int(np.sum(ours & theirs)), int(np.sum(ours | theirs)))


def response_rate(predicted: Integer[np.ndarray, "h w"]) -> float:
  """Returns the share of an image's pixels that are predicted as foreground, which is all classes but 0.

  Args:
    predicted: class indices.

  Raises:
    ValueError: the image has no pixels.
  """
  if not predicted.size:
    raise ValueError(f"predicted: found shape {predicted.shape}, expected at least one pixel")
  return int(np.sum((predicted >= 1) & (predicted != IGNORE))) / predicted.size


def _ratio(part: float | int, whole: int) -> float:
  return part / whole if whole else math.nan


def _check_share(name: str, value: float | int) -> float | int:
  if not 0 <= value <= 1:  # also refuses NaN
    raise InputError(f"{name}: found {value}, expected 0 to 1")
  return value
