"""The reports of a finished run: pixel counts of each image in, metrics.json, summary.txt and bad_files.txt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data.bad_files import LIST_FILE, BadFiles
from seggpt_jax.inference import outputs, scores
from seggpt_jax.inference.annotation_files import COCO_FILE
from seggpt_jax.inference.queries import Query
from seggpt_jax.inference.run_ledger import as_text

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
  total, own = scores.Scores(), own_prompts(queries, entries)
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
  """Returns lines that score apart the images that training or calibration has used; see `trained.earlier_uses`.

  Args:
    uses: names of images, by what has used them.
    per_image: scores of each image, by name, from metrics.json.
  """
  lines = []
  for use, names in uses.items():
    parts = ([per_image[name]["miou"] for name in per_image if (name in names) == inside] for inside in (True, False))
    used, others = (scores.mean(part) for part in parts)
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
      lines += ["", *([title] if title else []), scores.report(of_run)]
  if metrics is not None:
    final = metrics.get("stitched", metrics)["per_image"]
    ranked = sorted(final.items(), key=lambda entry: (-1.0 if entry[1]["miou"] is None else entry[1]["miou"], entry[0]))
    lines += ["", "mIoU and IoU of each class, the worst image first"]
    lines += [f"{_percent(entry['miou'])} {' '.join(map(_percent, entry['iou']))}  {name}" for name, entry in ranked]
  return "\n".join(lines).strip() + "\n"


def _percent(score: float | None) -> str:
  return "     -" if score is None else f"{score:6.1%}"
