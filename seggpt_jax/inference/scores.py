"""Scores and reports of a run: IoU, Dice and boundary F of each class, and the IoU of each image.

In: predicted and true class indices of one image after another, or the counts that an earlier run stored. Out:
metrics.json, summary.txt and bad_files.txt, and the short table that is printed. Scores of a class come from counts
summed over all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from seggpt_jax.data.bad_files import LIST_FILE, BadFiles
from seggpt_jax.inference import outputs
from seggpt_jax.inference.annotation_files import COCO_FILE
from seggpt_jax.inference.queries import Query
from seggpt_jax.inference.run_ledger import as_text
from seggpt_jax.metrics import iou
from seggpt_jax.metrics.boundary import boundary_counts, boundary_scores
from seggpt_jax.palette import IGNORE

Counts = dict[str, list[list[int]]]  # counts of one image as JSON values


def count(predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"]) -> Counts:
  """Counts the pixels of one image, except ignored pixels.

  Returns:
    `confusion`, a list of [true class, predicted class, pixels], and `boundary`, a list of [class, matched predicted,
    predicted, matched true, true] pixels of contours. Entries with only zeros are left out.
  """
  truth = np.where(truth == IGNORE, -1, truth.astype(np.int32))
  n = 1 + max(1, int(predicted.max()), int(truth.max()))
  known = truth >= 0
  confusion = np.bincount(n * truth[known] + predicted[known], minlength=n * n).reshape(n, n)
  # A palette has no more classes than that.
  boundary = boundary_counts(predicted, truth, min(n, IGNORE))
  rows, cols = np.nonzero(confusion)
  return {
    "confusion": np.stack([rows, cols, confusion[rows, cols]], axis=1).tolist(),
    "boundary": [[index, *row.tolist()] for index, row in enumerate(boundary) if row.any()],
  }


class Scores:
  """The summed counts of a run's images, and the IoU of each image.

  Attributes:
    per_image: IoU of each class, by name of the image.
  """

  def __init__(self):
    self._confusion, self._boundary = np.zeros((2, 2), np.int64), np.zeros((2, 4), np.int64)
    self.per_image: dict[str, list[float | None]] = {}

  def add(self, name: str, counts: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Adds the counts of an image.

    Args:
      name: name of the image.
      counts: counts from `count`. A class beyond those seen so far enlarges the table.
    """
    classes = [index for entry in counts["confusion"] for index in entry[:2]] + [row[0] for row in counts["boundary"]]
    n = max([len(self._confusion), *(1 + index for index in classes)])
    confusion = np.zeros((n, n), np.int64)
    for truth, predicted, pixels in counts["confusion"]:
      confusion[truth, predicted] += pixels
    self._confusion = iou.total_confusion([self._confusion, confusion])
    self._boundary = np.pad(self._boundary, ((0, n - len(self._boundary)), (0, 0)))
    for index, *pixels in counts["boundary"]:
      self._boundary[index] += pixels
    self.per_image[name] = _plain(iou.iou_from_confusion(confusion))

  def summary(self, unscored: Sequence[str] = ()) -> dict[str, Any]:
    """Computes all scores as JSON values. The score of a class that neither truth nor prediction has is None.

    Returns:
      `images` (their number), `unscored` (names), `miou`, `dice` and `boundary_f` (means over classes of the summed
      counts), the same as `foreground_...` (without class 0), `classes` (scores and pixel counts of each class), and
      `per_image` (IoU of each class and their mean, by name).
    """
    table = {
      "iou": _plain(iou.iou_from_confusion(self._confusion)),
      "dice": _plain(iou.dice_from_confusion(self._confusion)),
      "boundary_f": _plain(boundary_scores(self._boundary).f),
    }
    n = len(self._confusion)
    means = {("miou" if key == "iou" else key): mean(values) for key, values in table.items()}
    means |= {f"foreground_{'miou' if key == 'iou' else key}": mean(values[1:]) for key, values in table.items()}
    # Images that were counted before the table was enlarged have no later classes.
    per_image = {name: scores + [None] * (n - len(scores)) for name, scores in self.per_image.items()}
    return {
      "images": len(per_image),
      "unscored": list(unscored),
      **means,
      "classes": [
        {
          "class": index,
          **{key: values[index] for key, values in table.items()},
          "intersection_pixels": int(self._confusion[index, index]),
          "truth_pixels": int(self._confusion[index].sum()),
          "predicted_pixels": int(self._confusion[:, index].sum()),
        }
        for index in range(n)
      ],
      "per_image": {name: {"miou": mean(scores), "iou": scores} for name, scores in per_image.items()},
    }


def report(metrics: Mapping[str, Any]) -> str:
  """Formats the scores of a run as a short table."""

  def row(title: str, *scores: float | None) -> str:
    return f"  {title:<12}" + "".join(f"{'-' if score is None else f'{score:.1%}':>12}" for score in scores)

  lines = [f"{metrics['images']} labeled images", f"  {'':<12}{'IoU':>12}{'Dice':>12}{'boundary F':>12}"]
  for entry in metrics["classes"]:
    if entry["iou"] is not None:
      lines.append(row(f"class {entry['class']}", *(entry[key] for key in ("iou", "dice", "boundary_f"))))
  lines.append(row("mean", *(metrics[key] for key in ("miou", "dice", "boundary_f"))))
  lines.append(row("foreground", *(metrics[f"foreground_{key}"] for key in ("miou", "dice", "boundary_f"))))
  if metrics["unscored"]:
    lines.append(f"  {len(metrics['unscored'])} images without labels")
  return "\n".join(lines)


def _plain(scores: Any) -> list[float | None]:
  return [None if math.isnan(score) else score for score in np.asarray(scores).tolist()]


def mean(scores: Sequence[float | None]) -> float | None:
  """Returns the mean of the scores that are there, or None."""
  present = [score for score in scores if score is not None]
  return sum(present) / len(present) if present else None


REPORT_FILES = ("metrics.json", "summary.txt", LIST_FILE, COCO_FILE, f"stitch/{COCO_FILE}")

_Entries = Mapping[str, Mapping[str, Any]]  # of the run's ledger, by name of the query


def skipped_files(entries: _Entries) -> BadFiles:
  """Returns the images that a run skipped, by name."""
  skipped = BadFiles()
  for name, entry in sorted(entries.items()):
    if "bad" in entry:
      skipped.add(name, entry["bad"])
  return skipped


def own_prompts(queries: Sequence[Query], entries: _Entries) -> tuple[str, ...]:
  """Returns the images with labels that are their own prompts, which scores leave out: the answer was shown."""
  found = ((query.name, entries.get(query.name, {})) for query in queries)
  return tuple(name for name, entry in found if entry.get("is_prompt") and "counts" in entry)


def never_found(entries: _Entries) -> list[int]:
  """Returns the classes that prompts of a run showed and that none of its predictions has."""
  asked, found = ({index for entry in entries.values() for index in entry.get(key, ())} for key in ("asked", "found"))
  return sorted(asked - found - {0})


def write_report(
  outdir: Path, queries: Sequence[Query], entries: _Entries, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Writes the scores, the summary and the list of bad files.

  Args:
    outdir: folder of the results.
    queries: all queries of the run.
    entries: entries of the run's ledger, by name of the query.
    settings: settings of the run, JSON values by name of their flags.

  Returns:
    The content of metrics.json; None, and no such file, if no image has labels.

  Raises:
    InputError: a file cannot be written.
  """
  skipped = skipped_files(entries)
  if skipped:
    skipped.write(outdir / LIST_FILE)
  metrics = _sum_scores(queries, entries, "counts")
  stitched = _sum_scores(queries, entries, "stitched")
  if metrics is not None:
    metrics |= {} if stitched is None else {"stitched": stitched}
    outputs.write_json(outdir / "metrics.json", metrics)
  own = own_prompts(queries, entries)
  outputs.write_text(outdir / "summary.txt", _summary(len(queries), len(skipped), own, metrics, settings))
  return metrics


def _sum_scores(queries: Sequence[Query], entries: _Entries, key: str) -> dict[str, Any] | None:
  total, own = Scores(), own_prompts(queries, entries)
  for query in queries:
    counts = entries.get(query.name, {}).get(key)
    if counts is not None and query.name not in own:
      total.add(query.name, counts)
  if not total.per_image:
    return None
  return total.summary([query.name for query in queries if query.truth is None]) | {"own_prompts": list(own)}


def own_prompts_line(own: Sequence[str]) -> str:
  """Returns the line that says which images are not scored."""
  images = "image is its own prompt and is" if len(own) == 1 else "images are their own prompts and are"
  return f"{len(own)} labeled {images} left out of the scores: {', '.join(own[:3])}{', ...' if len(own) > 3 else ''}"


def uses_lines(uses: Mapping[str, set[str]], per_image: Mapping[str, Any]) -> list[str]:
  """Returns lines that score apart the images that training or calibration has used; see `trained.earlier_uses`."""
  lines = []
  for use, names in uses.items():
    parts = ([per_image[name]["miou"] for name in per_image if (name in names) == inside] for inside in (True, False))
    used, others = (mean(part) for part in parts)
    if used is not None:
      rest = "other images score lower" if others is None else f"that of the others {others:.1%}"
      count = len(names & per_image.keys())
      lines.append(f"{count} of {len(per_image)} scored images are {use}: their mean IoU is {used:.1%}, {rest}")
  return lines


def _summary(
  images: int, skipped: int, own: Sequence[str], metrics: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> str:
  """Returns the run as a page of text: settings, scores, and the scores of each image, the worst first."""
  lines = [f"{key}: {as_text(value)}" for key, value in settings.items()]
  lines += ["", f"{images} images" + (f", {skipped} of them bad, see {LIST_FILE}" if skipped else "")]
  lines += [own_prompts_line(own)] if own else []
  for title, of_run in (("", metrics), ("with the seams predicted again", (metrics or {}).get("stitched"))):
    if of_run is not None:
      lines += ["", *([title] if title else []), report(of_run)]
  if metrics is not None:
    final = metrics.get("stitched", metrics)["per_image"]
    ranked = sorted(final.items(), key=lambda entry: (-1.0 if entry[1]["miou"] is None else entry[1]["miou"], entry[0]))
    lines += ["", "mIoU and IoU of each class, the worst image first"]
    lines += [f"{_percent(entry['miou'])} {' '.join(map(_percent, entry['iou']))}  {name}" for name, entry in ranked]
  return "\n".join(lines).strip() + "\n"


def _percent(score: float | None) -> str:
  return "     -" if score is None else f"{score:6.1%}"
