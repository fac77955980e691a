"""Runs a benchmark in parts, so that several processes can share it and a stopped one can resume.

In: a benchmark. Out: a folder of results. A part is the work that one process does at once: its share of a fold, or a
video. A finished part leaves OUT/parts/NAME.json with integer counts that add up exactly, and perhaps a picture.
Finished parts are not run again. A process that finds all parts finished at its end writes OUT/results.json,
OUT/results.md and OUT/examples.png; the files are the same, whichever process writes them.

What benchmarks share is here too: pictures of examples, and tables that compare results with published ones. Only
published figures whose source was checked are listed; other cells stay blank.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from seggpt_jax.data import ledger
from seggpt_jax.files import expand, writing
from seggpt_jax.inference import outputs, pictures, tiling
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.palette import IGNORE, display_palette
from seggpt_jax.written import check_outputs, open_record

_MAX_STRIPS = 8  # pictures of parts in examples.png
_PAPER = "SegGPT, arXiv 2304.03284"
_TRANSFORMERS = "the documentation of transformers, model SegGPT"
_HEIGHT, _WIDTH, _GAP, _TITLE = 144, 192, 4, 14


class Finished(NamedTuple):
  """The result of a part."""

  values: dict[str, Any]  # JSON values
  strip: UInt8[np.ndarray, "h w 3"] | None  # a picture, of the same width for all parts; None if the part has none


@runtime_checkable
class Benchmark(Protocol):
  """A benchmark that can be run in parts."""

  name: str  # name on the command line
  settings: Mapping[str, Any]  # everything that the numbers depend on, as JSON values

  def parts(self, shard: Shard) -> list[str]:
    """Returns the names of a shard's parts."""
    ...

  def run(self, predictor: Predictor, part: str, outdir: Path) -> Finished:
    """Runs a part.

    Args:
      predictor: the network.
      part: name of the part.
      outdir: folder of the results.

    Raises:
      InputError: a file of the dataset cannot be read, or a result cannot be written.
    """
    ...

  def results(self, finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Computes the numbers of the benchmark.

    Args:
      finished: the values of all parts, by name.

    Returns:
      JSON values, and under the key `table` a `Table`.
    """
    ...


def run(
  benchmark: Benchmark, load: Callable[[], Predictor], outdir: Path, shard: Shard | None = None
) -> dict[str, Any] | None:
  """Runs the unfinished parts of a shard, then writes the results if all parts of all shards are finished.

  Args:
    benchmark: the benchmark.
    load: returns the network; called only if a part is unfinished.
    outdir: folder of the results, created if missing.
    shard: the parts of this process; all parts by default.

  Returns:
    The content of results.json; None if parts of other processes are unfinished.

  Raises:
    InputError: a finished part has other settings, a file of the dataset cannot be read, or a result cannot be written.
  """
  outdir, shard = Path(expand(outdir)), shard or Shard()
  folder = outdir / "parts"
  # Reports a folder that cannot be created before the work, not after it.
  check_outputs([outdir / "results.md", outdir / "results.json", outdir / "examples.png"])
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    open_record(outdir)
  unfinished = [name for name in benchmark.parts(shard) if _read_part(benchmark, folder, name) is None]
  predictor = load() if unfinished else None
  for name in unfinished:
    values, strip = benchmark.run(predictor, name, outdir)
    if strip is not None:
      pictures.write_png(folder / f"{name}.png", strip)
    # Written last, because this file marks the part as finished.
    ledger.write_note(folder / f"{name}.json", {"settings": dict(benchmark.settings), **values})
  # Shards take turns, so taking turns again restores the order of the list of videos.
  rounds = itertools.zip_longest(*(benchmark.parts(each) for each in shard.all()))
  return _finish(benchmark, outdir, [name for turn in rounds for name in turn if name is not None])


def _finish(benchmark: Benchmark, outdir: Path, names: Sequence[str]) -> dict[str, Any] | None:
  """Writes the results if all parts are finished."""
  finished = {name: _read_part(benchmark, outdir / "parts", name) for name in names}
  if None in finished.values():
    return None
  results = benchmark.results(finished)
  table = results.pop("table")
  results = {"benchmark": benchmark.name, "settings": dict(benchmark.settings), **results}
  strips = [path for name in names if (path := outdir / "parts" / f"{name}.png").exists()][:_MAX_STRIPS]
  if strips:
    pictures.write_png(outdir / "examples.png", np.concatenate([np.asarray(Image.open(path)) for path in strips]))
  outputs.write_text(outdir / "results.md", markdown(table))
  outputs.write_json(outdir / "results.json", results)
  return results


def _read_part(benchmark: Benchmark, folder: Path, name: str) -> dict[str, Any] | None:
  """Returns the values of a finished part, which must have the same settings; None if it is not finished."""
  path = folder / f"{name}.json"
  values = ledger.read_note(path)
  if values is not None:
    ledger.check_settings(path, values.pop("settings", {}), benchmark.settings, "choose another --outdir")
  return values


class Published(NamedTuple):
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
  """A table of scores."""

  title: str  # heading above the table
  columns: Sequence[str]  # their titles
  rows: Mapping[str, Sequence[float | None]]  # a value 0 to 1 for each column, by score; None leaves a cell blank
  published: Mapping[str, Published | None]  # published figure of each score
  notes: Sequence[str] = ()  # sentences below the table


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


def panel(
  image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"] | None = None, num_objects: int = 1
) -> UInt8[np.ndarray, "panel_h panel_w 3"]:
  """Returns an image, scaled to fit a panel and centered in it, with labels drawn over the image.

  Args:
    image: image of any size.
    labels: mask or label map of the same size; pixels with IGNORE are drawn as background.
    num_objects: largest label, background not counted.
  """
  height, width = image.shape[:2]
  scale = min(_HEIGHT / height, _WIDTH / width)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  image = tiling.resize_image(image, size)
  if labels is not None:
    labels = tiling.resize_labels(np.where(labels == IGNORE, 0, labels), size)
    image = pictures.overlay(image, labels, display_palette(1 + num_objects))
  top, left = (_HEIGHT - size[0]) // 2, (_WIDTH - size[1]) // 2
  framed = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
  framed[top : top + size[0], left : left + size[1]] = image
  return framed


def strip(
  rows: Sequence[Sequence[UInt8[np.ndarray, "panel_h panel_w 3"]]], titles: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns rows of panels, each row below its title.

  Args:
    rows: panels of each row, the same number in all rows.
    titles: title of each row.
  """
  height, width = _TITLE + _HEIGHT + _GAP, len(rows[0]) * (_WIDTH + _GAP)
  sheet = Image.new("RGB", (width, len(rows) * height), "white")
  pen = ImageDraw.Draw(sheet)
  for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
    # Pillow's built-in font has only Latin-1 letters, and titles contain names of folders.
    pen.text((2, line * height), title.encode("latin-1", "replace").decode("latin-1"), fill="black")
    for column, pixels in enumerate(row):
      sheet.paste(Image.fromarray(pixels), (column * (_WIDTH + _GAP), line * height + _TITLE))
  return np.asarray(sheet)
