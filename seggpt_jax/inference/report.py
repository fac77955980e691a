"""The reports of a finished run: pixel counts of each image in, metrics.json, summary.txt and bad_files.txt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.inference import outputs, scores
from seggpt_jax.inference.progress import as_text
from seggpt_jax.inference.queries import Query

BAD_FILES = "bad_files.txt"
REPORT_FILES = ("metrics.json", "summary.txt", BAD_FILES)

_Entries = Mapping[str, Mapping[str, Any]]  # of the run's ledger, by name of the query


def bad_reasons(entries: _Entries) -> dict[str, str]:
  """Returns the reasons why images were skipped, by name."""
  return {name: entry["bad"] for name, entry in entries.items() if "bad" in entry}


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
  reasons = bad_reasons(entries)
  if reasons:
    text = "".join(f"{name}: {reason}\n" for name, reason in sorted(reasons.items()))
    outputs.write_text(outdir / BAD_FILES, text)
  metrics = _sum_scores(queries, entries, "counts")
  stitched = _sum_scores(queries, entries, "stitched")
  if metrics is not None:
    metrics |= {} if stitched is None else {"stitched": stitched}
    outputs.write_json(outdir / "metrics.json", metrics)
  outputs.write_text(outdir / "summary.txt", _summary(len(queries), reasons, metrics, settings))
  return metrics


def _sum_scores(queries: Sequence[Query], entries: _Entries, key: str) -> dict[str, Any] | None:
  total = scores.Scores()
  for query in queries:
    counts = entries.get(query.name, {}).get(key)
    if counts is not None:
      total.add(query.name, counts)
  return total.summary([query.name for query in queries if query.truth is None]) if total.per_image else None


def _summary(
  images: int, reasons: Mapping[str, str], metrics: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> str:
  """Returns the run as a page of text: settings, scores, and the scores of each image, the worst first."""
  lines = [f"{key}: {as_text(value)}" for key, value in settings.items()]
  lines += ["", f"{images} images" + (f", {len(reasons)} of them bad, see {BAD_FILES}" if reasons else "")]
  for title, of_run in (("", metrics), ("with stitched seams", (metrics or {}).get("stitched"))):
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
