"""What an inspection line is judged by: defects that are caught, and good parts that are left alone.

In: for each image one number, the IoU under a positive prompt (of a class that the query has) or the response rate
under a negative prompt (of a class that the query lacks). Out: catch rate, yield rate, and PES, their weighted mean.
Results of several processes add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Bool, Integer

from seggpt_jax.errors import InputError
from seggpt_jax.palette import IGNORE


@dataclass(frozen=True)
class Thresholds:
  """When an image counts as caught or as left alone, and what each is worth. All are 0..1, else an InputError.

  Attributes:
    catch_iou: the least IoU of a catch.
    yield_response: the response rate below which a yield is correct; at 1024 x 1024 the default is 250 pixels.
    catch_weight: the catch rate's part in PES; the yield rate has the rest.
  """

  catch_iou: float | int = 0.3
  yield_response: float | int = 0.000239
  catch_weight: float | int = 0.5

  def __post_init__(self):
    for key in fields(self):
      _check_share(key.name, getattr(self, key.name))


@dataclass(frozen=True)
class Inspection:
  """The counts of a set of images, and the rates that follow. `Inspection(thresholds)` is that of no images.

  Attributes:
    thresholds: what was counted by.
    caught: images whose IoU is a catch.
    positives: images with an IoU.
    undefined: images without an IoU: no foreground in truth and prediction. They are in no rate.
    iou_sum: of the images with an IoU.
    correct_yields: images whose response rate is a correct yield.
    negatives: images with a response rate.
  """

  thresholds: Thresholds = field(default_factory=Thresholds)
  caught: int = 0
  positives: int = 0
  undefined: int = 0
  iou_sum: float = 0.0
  correct_yields: int = 0
  negatives: int = 0

  @property
  def mean_iou(self) -> float:
    """The mean over images, where every image weighs the same; NaN when none has an IoU."""
    return _ratio(self.iou_sum, self.positives)

  @property
  def catch_rate(self) -> float:
    """The share of images that are caught, 0..1; NaN when none has an IoU."""
    return _ratio(self.caught, self.positives)

  @property
  def yield_rate(self) -> float:
    """The share of images that are correct yields, 0..1; NaN when none has a response rate."""
    return _ratio(self.correct_yields, self.negatives)

  @property
  def pes(self) -> float:
    """catch_weight * catch rate + (1 - catch_weight) * yield rate, 0..1; NaN when a rate that weighs is NaN."""
    weight = self.thresholds.catch_weight
    # A rate of no weight may be missing: 0 * NaN would be NaN.
    weighted = [(weight, self.catch_rate), (1 - weight, self.yield_rate)]
    return float(sum(share * rate for share, rate in weighted if share > 0))

  def __add__(self, other: Inspection) -> Inspection:
    """The result of both sets of images; a ValueError when they were counted by different thresholds."""
    if self.thresholds != other.thresholds:
      raise ValueError(f"thresholds: found {other.thresholds} beside {self.thresholds}, expected the same")
    counts = [key.name for key in fields(self) if key.name != "thresholds"]
    return Inspection(self.thresholds, **{name: getattr(self, name) + getattr(other, name) for name in counts})


def judge(
  ious: Iterable[float] = (), response_rates: Iterable[float] = (), thresholds: Thresholds | None = None
) -> Inspection:
  """Counts catches and correct yields.

  Args:
    ious: of every image under a positive prompt, as of `foreground_iou`. NaN, an image without foreground in truth and
      prediction, is neither caught nor missed: there was nothing to catch. Images without defects belong under
      negative prompts: here a single predicted pixel makes one a miss, of IoU 0.
    response_rates: of every image under a negative prompt, as of `response_rate`.
    thresholds: the defaults of `Thresholds` if not given.

  Raises:
    InputError: no image at all (a process without images has `Inspection(thresholds)`), or a number outside 0..1.
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


def foreground_iou(
  predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], class_index: int | None = None
) -> float:
  """The IoU of one image's foreground, 0..1; NaN when neither truth nor prediction has any.

  Pixels that are `palette.IGNORE` or negative in either are not counted.

  Args:
    predicted: class indices.
    truth: class indices, same shape.
    class_index: the class that is foreground; by default all are but class 0, whichever is predicted for which.
  """
  known = (predicted >= 0) & (predicted != IGNORE) & (truth >= 0) & (truth != IGNORE)
  ours, theirs = (_foreground(labels, class_index) & known for labels in (predicted, truth))
  return _ratio(int(np.sum(ours & theirs)), int(np.sum(ours | theirs)))


def response_rate(predicted: Integer[np.ndarray, "h w"], class_index: int | None = None) -> float:
  """Predicted foreground pixels over the pixels of the image, 0..1; a ValueError for an image without pixels.

  Args:
    predicted: class indices.
    class_index: the class that is foreground, as in `foreground_iou`.
  """
  if not predicted.size:
    raise ValueError(f"predicted: found shape {predicted.shape}, expected at least one pixel")
  return int(np.sum(_foreground(predicted, class_index))) / predicted.size


def _foreground(labels: np.ndarray, class_index: int | None) -> Bool[np.ndarray, "h w"]:
  return (labels >= 1) & (labels != IGNORE) if class_index is None else labels == class_index


def _ratio(part: float | int, whole: int) -> float:
  return part / whole if whole else math.nan


def _check_share(name: str, value: float | int) -> float | int:
  if not 0 <= value <= 1:  # also refuses NaN
    raise InputError(f"{name}: found {value}, expected 0 to 1")
  return value
