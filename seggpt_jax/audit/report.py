"""The report of an audit: findings as facts for a JSON file, and those facts as text for the terminal."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from seggpt_jax.audit.file_advice import count_text, network
from seggpt_jax.audit.findings import Findings, Groups
from seggpt_jax.audit.survey import PROBLEMS, Survey
from seggpt_jax.files import expand
from seggpt_jax.palette import IGNORE

_SHOWN_VALUES = 32
_NAMED = 5


def as_facts(findings: Findings) -> dict[str, Any]:
  """Returns the findings as JSON values: numbers, names and shares 0..1; sizes are [width, height]."""
  dataset, guess = findings.dataset, findings.guess
  return {
    "path": dataset.path,
    "kind": dataset.kind,
    "max_images": findings.max_images,
    "labels": {
      "read_as": str(dataset.label_format),
      "mode": dataset.label_format.mode,
      "threshold": dataset.label_format.threshold,
      "table": list(dataset.label_format.table),
      "ignore": list(dataset.label_format.ignore),
      "num_classes": dataset.num_classes,
      "assumed": "labels" not in findings.given,
      "reason": guess.reason if guess else "",
    },
    "splits": {split: _split_facts(findings, survey) for split, survey in findings.surveys.items()},
    "groups": _group_facts(findings.groups) if findings.groups else None,
    "near_duplicates": [each._asdict() for each in findings.copies],
  }


def _split_facts(findings: Findings, survey: Survey) -> dict[str, Any]:
  values = survey.values.facts()  # most frequent first
  total = max(int(survey.pixels.sum()), 1)
  peaks = [image.peak for image in survey.images if image.peak is not None]
  return {
    "num_samples": survey.num_samples,
    "folders": [os.path.relpath(each, expand(findings.dataset.path)) for each in findings.files[survey.split].folders],
    "num_read": len(survey.samples),
    "num_usable": survey.num_usable,
    "image_formats": dict(Counter(image.kind for image in survey.images).most_common()),
    "label_formats": dict(survey.values.formats.most_common()),
    "sizes": _size_facts([image.size for image in survey.images]),
    "megabytes": round(sum(image.num_bytes for image in survey.images) / 1e6, 2),
    "turned_by_exif": len(survey.turned),
    "sixteen_bit_peaks": [min(peaks), int(np.median(peaks)), max(peaks)] if peaks else [],
    "problems": survey.problems,
    "copies": survey.copies(),
    "values": [
      {"value": value, "pixels": fact.share, "files": fact.files}
      for value, fact in itertools.islice(values.items(), _SHOWN_VALUES)
    ],
    "num_values": len(values),
    "classes": [
      _class_facts(findings, survey, c) for c in range(max(findings.dataset.num_classes, findings.num_found))
    ],
    "num_labels": survey.num_labels,
    "num_without_foreground": survey.num_empty,
    "ignored": float(survey.pixels[IGNORE] / total),
  }


def _size_facts(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
  if not sizes:
    return {"different": 0}
  ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
  named = {"smallest": ordered[0], "median": ordered[len(ordered) // 2], "largest": ordered[-1]}
  return {"different": len(set(sizes))} | {name: [width, height] for name, (height, width) in named.items()}


def _class_facts(findings: Findings, survey: Survey, class_index: int) -> dict[str, Any]:
  regions = survey.regions.get(class_index)
  return {
    "class": class_index,
    "name": findings.class_label(class_index).partition(" ")[2] or ("background" if not class_index else ""),
    "pixels": float(survey.pixels[class_index] / max(survey.pixels.sum(), 1)),
    "samples": float(survey.holding[class_index] / max(survey.num_labels, 1)),
    "num_regions": regions.num_regions if regions else 0,
    "median_region": regions.median if regions else None,
    "smallest_region": regions.smallest if regions else None,
  }


def _group_facts(groups: Groups) -> dict[str, Any]:
  return {
    "spec": groups.spec,
    "splits": {
      split: {
        "num_groups": len(sizes),
        "smallest": min(sizes.values(), default=0),
        "largest": max(sizes.values(), default=0),
        "most_common": sizes.most_common(_NAMED),
      }
      for split, sizes in groups.sizes.items()
    },
    "in_several_splits": groups.shared,
    "problems": groups.problems,
  }


# --------------------------------------------------------------------------------------------------------------- text


def as_text(facts: dict[str, Any]) -> str:
  """Returns facts with advice and the training command as text for the terminal."""
  lines = [f"{facts['path']}  ({facts['kind']})"]
  if facts["max_images"]:
    lines.append(f"at most {facts['max_images']} images of each split were read, evenly spread")
  for split, each in facts["splits"].items():
    lines += ["", *_split_lines(split, each)]
  lines += ["", *_label_lines(facts)]
  for split, each in facts["splits"].items():
    if each["num_labels"]:
      lines += ["", *_class_lines(split, each)]
  lines += ["", "Regions are connected; sizes are shares of the image, with the side where the network sees all of it."]
  if facts["groups"]:
    lines += ["", *_group_lines(facts["groups"])]
  lines += ["", *_copy_lines(facts), "", *_advice_lines(facts)]
  return "\n".join(lines)


def _split_lines(split: str, facts: dict[str, Any]) -> Iterator[str]:
  read = "" if facts["num_read"] == facts["num_samples"] else f", {facts['num_read']} of them read"
  yield f"{split_title(split).upper()}: {facts['num_samples']} images with labels{read}"
  if facts["folders"]:
    yield f"  folders    {', '.join(facts['folders'])}"
  if facts["image_formats"]:
    sizes = facts["sizes"]
    named = ", ".join(f"{name} {_size(sizes[name])}" for name in ("smallest", "median", "largest"))
    named += f" ({sizes['different']} different)"
    yield f"  images     {_counted(facts['image_formats'])}; {facts['megabytes']:g} MB"
    yield f"  sizes      {_size(sizes['median']) if sizes['different'] == 1 else named}"
  if facts["label_formats"]:
    yield f"  labels     {_counted(facts['label_formats'])}"
  if facts["turned_by_exif"]:
    yield f"  EXIF       {count_text(facts['turned_by_exif'], 'image')} rotated by a tag"
  if facts["sixteen_bit_peaks"]:
    low, median, high = facts["sixteen_bit_peaks"]
    yield f"  16 bits    largest values {low} to {high}, median {median}, of 65535"
  for kind, meaning in PROBLEMS.items():
    yield from _named(f"  {meaning}", facts["problems"][kind])
  yield from _named("  copies, pixel for pixel", [" = ".join(names) for names in facts["copies"]])
  if not any(facts["problems"].values()) and facts["num_samples"]:
    yield "  files      all have a partner of the same size and can be read"


def split_title(split: str) -> str:
  """Returns the name of a split as people read it: "." is all of a folder without parts."""
  return "all" if split == "." else split


def _size(size: list[int]) -> str:
  return f"{size[0]} x {size[1]}"


def _counted(counts: dict[str, int]) -> str:
  return ", ".join(f"{count} {name}" for name, count in counts.items())


def _named(title: str, problems: list[str]) -> Iterator[str]:
  if problems:
    yield f"{title}: {len(problems)}"
    yield from (f"    {problem}" for problem in problems[:_NAMED])
    if len(problems) > _NAMED:
      yield f"    and {len(problems) - _NAMED} more, see inspect.json"


def _label_lines(facts: dict[str, Any]) -> Iterator[str]:
  splits = {split: each for split, each in facts["splits"].items() if each["values"]}
  if splits:
    columns = "".join(f"{split + ' pixels':>16}{'files':>8}" for split in splits)
    yield f"{'STORED VALUES':<18}{columns}"
    by_split = {
      split: {str(row["value"]).replace(" ", ""): row for row in each["values"]} for split, each in splits.items()
    }
    for value in dict.fromkeys(value for rows in by_split.values() for value in rows):
      cells = [by_split[split].get(value, {"pixels": 0.0, "files": 0}) for split in splits]
      yield f"  {value:<16}" + "".join(f"{percent(cell['pixels']):>16}{cell['files']:>8}" for cell in cells)
    more = max(each["num_values"] for each in splits.values()) - _SHOWN_VALUES
    if more > 0:
      yield f"  and {more} more values"
    yield ""
  labels = facts["labels"]
  assumed = f"guessed: {labels['reason']}" if labels["reason"] else "as the dataset stores them"
  how = assumed if labels["assumed"] else "set by flags"
  yield f"LABELS READ AS {labels['read_as']}, {labels['num_classes']} classes ({how})"


def _class_lines(split: str, facts: dict[str, Any]) -> Iterator[str]:
  title = f"{split_title(split).upper()} CLASSES"
  yield f"{title:<22}{'pixels':>9}{'samples':>9}{'regions':>9}{'median size':>26}{'smallest':>26}"
  for row in facts["classes"]:
    name = f"{row['class']} {row['name']}".strip()[:19]
    line = f"  {name:<20}{percent(row['pixels']):>9}{percent(row['samples']):>9}"
    if row["num_regions"]:
      line += f"{row['num_regions']:>9}{_area(row['median_region']):>26}{_area(row['smallest_region']):>26}"
    yield line
  if facts["ignored"]:
    yield f"  {'ignored':<20}{percent(facts['ignored']):>9}"
  yield f"  without foreground: {facts['num_without_foreground']} of {facts['num_labels']} samples"


def percent(share: float) -> str:
  """Formats a share 0..1 as a percentage, small ones with three decimals."""
  return "0" if not share else f"{share:.1%}" if share >= 0.01 else f"{share:.3%}" if share >= 1e-5 else "< 0.001%"


def _area(share: float) -> str:
  """Formats the area of a region: its share of the image, and its side where the network sees a whole image."""
  square = network().square
  return f"{percent(share)} ({square * math.sqrt(share):.3g} of {square} px)"


def _group_lines(groups: dict[str, Any]) -> Iterator[str]:
  yield f"GROUPS by {groups['spec']}"
  for split, each in groups["splits"].items():
    largest = ", ".join(f"{name or '(none)'} {count}" for name, count in each["most_common"])
    sizes = f"{each['smallest']} to {each['largest']} samples each"
    yield f"  {split:<10} {each['num_groups']} groups, {sizes}; largest: {largest}"
  yield from _named("  in more than one split", groups["in_several_splits"])
  yield from _named("  problems", groups["problems"])
  if not groups["in_several_splits"] and not groups["problems"]:
    yield "  none is in more than one split"


def _copy_lines(facts: dict[str, Any]) -> Iterator[str]:
  yield "NEAR-DUPLICATES (difference 0: identical; rotated and mirrored copies are not searched)"
  for copies in facts["near_duplicates"]:
    where = f"{copies['second']} in {copies['first']}"
    yield f"  {copies['num_copied']} of {copies['num_compared']} images of {where}"
    pairs = copies["pairs"][:_NAMED]
    yield from (f"    {second} is {first}, difference {difference:.4f}" for first, second, difference in pairs)


def _advice_lines(facts: dict[str, Any]) -> Iterator[str]:
  yield "ADVICE" if facts["advice"] else "No problems found."
  yield from (f"  {number}. {text}" for number, text in enumerate(facts["advice"], 1))
  yield from ("", "TO SEGMENT, without training:", f"  {facts['segment']}") if facts.get("segment") else ()
  yield from ("", f"TO TRAIN{'' if facts['ready'] else ', once the problems are fixed'}:", f"  {facts['train']}")
