"""The reports of a finished run: pixel counts of each image in, metrics.json, summary.txt and bad_files.txt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data.bad_files import LIST_FILE, BadFiles
from seggpt_jax.inference import outputs, scores
from seggpt_jax.inference.annotation_files import COCO_FILE
from seggpt_jax.inference.progress import as_text
from seggpt_jax.inference.queries import Query

REPORT_FILES = ("metrics.json", "summary.txt", LIST_FILE, COCO_FILE, f"stitch/{COCO_FILE}")

_Entries = Mapping[str, Mapping[str, Any]]  # of the run's ledger, by name of the query


def skipped_files(entries: _Entries) -> BadFiles:
  """Returns the images that a run skipped, by name."""
  skipped = BadFiles()
  for name, entry in sorted(entries.items()):
    if "bad" in entry:
      skipped.add(name, entry["bad"])
  return skipped


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
  outputs.write_text(outdir / "summary.txt", _summary(len(queries), len(skipped), metrics, settings))
  return metrics


def _sum_scores(queries: Sequence[Query], entries: _Entries, key: str) -> dict[str, Any] | None:
  total = scores.Scores()
  for query in queries:
    counts = entries.get(query.name, {}).get(key)
    if counts is not None:
      total.add(query.name, counts)
  return total.summary([query.name for query in queries if query.truth is None]) if total.per_image else None


def _summary(images: int, skipped: int, metrics: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> str:
  """Returns the run as a page of text: settings, scores, and the scores of each image, the worst first."""
  lines = [f"{key}: {as_text(value)}" for key, value in settings.items()]
  lines += ["", f"{images} images" + (f", {skipped} of them bad, see {LIST_FILE}" if skipped else "")]
  for title, of_run in (("", metrics), ("with the seams predicted again", (metrics or {}).get("stitched"))):
    if of_run is not None:
      lines += ["", *([title] if title else []), scores.report(of_run)]
  if metrics is not None:
    final = metrics.get("stitched", metrics)["per_image"]
    ranked = sorted(final.items(), key=lambda entry: (-1.0 if entry[1]["miou"] is None else entry[1]["miou"], entry[0]))
    lines += ["", "mIoU and IoU of each class, the worst image first"]
    lines += [f"{_percent(entry['miou'])} {' '.join(map(_percent, entry['iou']))}  {name}" for name, entry in ranked]
  return "\n".join(lines).strip() + "\n"


def _percent(score: float | None) -> str:
  return "     -" if score is None else f"{score:6.1%}"
