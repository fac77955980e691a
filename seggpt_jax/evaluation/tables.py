"""Tables that compare a benchmark's results with published ones: numbers in, Markdown out.

Only published figures whose source was checked are listed here; the other cells stay blank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

_PAPER = "SegGPT, arXiv 2304.03284"
_TRANSFORMERS = "the documentation of transformers, model SegGPT"


@dataclasses.dataclass(frozen=True)
class Published:
  """A published figure of the released weights in percent, and its source."""

  value: float
  source: str


# By benchmark, score and number of prompts. 0 means several prompts: the sources say few-shot, without a number.
_PUBLISHED = {
  ("coco20i", "mIoU", 1): Published(56.1, _TRANSFORMERS),
  ("coco20i", "mIoU", 0): Published(67.9, _PAPER),
  ("fss1000", "mIoU", 1): Published(85.6, _TRANSFORMERS),
  ("pascal5i", "mIoU", 0): Published(89.8, _PAPER),
  ("davis2017", "J mean", 1): Published(72.5, _PAPER),
}


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of scores.

  Attributes:
    title: heading above the table.
    columns: titles of the columns.
    rows: values of each score, 0 to 1, one for each column; None leaves a cell blank.
    published: published figure of each score, or None.
    notes: sentences below the table.
  """

  title: str
  columns: Sequence[str]
  rows: Mapping[str, Sequence[float | None]]
  published: Mapping[str, Published | None]
  notes: Sequence[str] = ()


def published(benchmark: str, score: str, prompts: int) -> Published | None:
  """Returns the published figure for a number of prompts, or None if there is no known source."""
  return _PUBLISHED.get((benchmark, score, prompts if prompts == 1 else 0))


def markdown(table: Table) -> str:
  """Returns the table in percent as Markdown, with the sources of the published figures below it."""
  lines = [f"# {table.title}", "", _row(["", *table.columns, "published"]), _row(["---"] * (len(table.columns) + 2))]
  sources = list(dict.fromkeys(entry.source for entry in table.published.values() if entry))
  for score, shares in table.rows.items():
    entry = table.published.get(score)
    figure = f"{entry.value:.1f} [{1 + sources.index(entry.source)}]" if entry else ""
    lines.append(_row([score, *("" if share is None else f"{100 * share:.1f}" for share in shares), figure]))
  notes = [f"[{index}] {source}, of the released weights." for index, source in enumerate(sources, 1)]
  return "\n".join([*lines, *(line for note in [*notes, *table.notes] for line in ("", note)), ""])


def _row(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cells) + " |"
