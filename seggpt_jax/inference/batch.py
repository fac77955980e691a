"""The work behind infer.py: images with their prompts from files, results to files.

In: queries as of `queries.list_queries`. Out: for each of them label/NAME.png, color/NAME.png and concat/NAME.png, or
what else is asked for, and metrics.json where they have labels. Reading, the network and writing go on side by side.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from seggpt_jax.data.images import read_image
from seggpt_jax.data.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError
from seggpt_jax.inference import outputs, scores, tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor, Prompt
from seggpt_jax.inference.progress import Progress
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.inference.shard import Shard

_THREADS = 4  # that read, and as many that write
_AHEAD = 8  # images that are read before they are needed, and as many that are written behind
_CACHED_PROMPTS = 256  # of the tile's size: 200 MB for the released weights
BAD_FILES = "bad_files.txt"
# What describes a run as a whole, and is only true at its end.
_AT_THE_END = ("metrics.json", "summary.txt", BAD_FILES)


class Read(NamedTuple):
  """A query as it is in memory: the image, its true label map if it has one, and its prompts in the tiles' size."""

  query: Query
  image: np.ndarray
  truth: np.ndarray | None
  prompts: list[Prompt]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a run has come to.

  Attributes:
    done: the number of images that this process has segmented now.
    before: the number that were done already.
    left: the number that other processes still have to do.
    metrics: what metrics.json holds; None where no image has labels, or some are left.
    bad: why which images were passed over.
  """

  done: int
  before: int
  left: int
  metrics: dict[str, Any] | None
  bad: dict[str, str]


def run(
  predictor: Predictor,
  queries: Sequence[Query],
  outdir: str | os.PathLike,
  *,
  approach: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
  kinds: Sequence[outputs.Kind] = outputs.DEFAULT_KINDS,
  bad: dict[str, str] | None = None,
  resume: bool = False,
  shard: Shard | None = None,
  settings: Mapping[str, Any] | None = None,
) -> Outcome:
  """Segments every query and writes the results.

  Args:
    predictor: the network.
    queries: as of `queries.list_queries`.
    outdir: folder of the results; is made where it is missing. Files of the same names are replaced.
    approach: how each image is shown to the network; whole by default.
    labels: how label files are read, those of prompts and queries alike; as class indices by default. Ignored pixels
      are background in a prompt, and are not scored.
    kinds: what is written of each image.
    bad: where given, queries whose files cannot be read are passed over and told here by name with the reason; it may
      hold some already. All are listed in bad_files.txt.
    resume: passes over images that an earlier run of the same settings has done; bad ones are tried again.
    shard: the part of the queries that this process takes. The process that ends last writes metrics.json.
    settings: of the run, plain values by the names of their flags; the heading of summary.txt.

  Raises:
    InputError: a file cannot be read or written, a label map has another size than its image, every query is bad, or
      what is to be resumed had other settings.
  """
  outdir, approach, labels = Path(outdir), approach or InferenceOptions(), labels or LabelFormat()
  shard, settings = shard or Shard(), dict(settings or {})
  outputs.check_kinds(kinds)
  with Progress(outdir, settings, resume, shard) as progress:
    # What an earlier run said is no longer true of what this one writes.
    for name in _AT_THE_END:
      outputs.remove(outdir / name)
    own = shard.of(queries)
    waiting = [query for query in own if "bad" in progress.done.get(query.name, {"bad": ""})]
    for name, reason in (bad or {}).items():
      progress.add(name, bad=reason)
    done = _segment_and_write(predictor, waiting, outdir, approach, labels, kinds, bad, progress)
    if bad and not done and len(waiting) == len(own):
      raise InputError(f"none of {len(waiting)} images could be segmented, the first: {next(iter(bad.values()))}")
    lines = progress.read_all()
  left = sum(query.name not in lines for query in queries)
  metrics = None if left else _conclude(outdir, queries, lines, settings)
  reasons = {name: line["bad"] for name, line in lines.items() if "bad" in line}
  return Outcome(done, len(own) - len(waiting), left, metrics, reasons)


def _segment_and_write(
  predictor: Predictor,
  queries: Sequence[Query],
  outdir: Path,
  approach: InferenceOptions,
  labels: LabelFormat,
  kinds: Sequence[outputs.Kind],
  bad: dict[str, str] | None,
  progress: Progress,
) -> int:
  """The number of images that were not bad."""
  done, written = 0, collections.deque[tuple[str, Future[dict[str, Any]]]]()

  def note(leave: int) -> None:
    """What is written counts as done, in the order of the queries."""
    while len(written) > leave or (written and written[0][1].done()):
      name, future = written.popleft()
      progress.add(name, **future.result())

  with ThreadPoolExecutor(_THREADS) as writers, tqdm(desc="infer", unit="image", total=len(queries)) as bar:

    def pass_over(name: str, reason: str) -> None:
      progress.add(name, bad=reason)
      bad[name] = reason
      bar.update()

    for item, prediction in segment(
      predictor, queries, approach, labels=labels, pass_over=None if bad is None else pass_over
    ):
      written.append((item.query.name, writers.submit(_write, outdir, item, prediction, kinds)))
      note(leave=_AHEAD)
      bar.update()
      done += 1
    note(leave=0)
  return done


def segment(
  predictor: Predictor,
  queries: Sequence[Query],
  approach: InferenceOptions | None = None,
  *,
  labels: LabelFormat | None = None,
  pass_over: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[Read, Prediction]]:
  """Reads and segments queries; files are read while the network works.

  Args:
    predictor: the network.
    queries: as of `queries.list_queries`.
    approach: how each image is shown to the network; whole by default.
    labels: see `run`.
    pass_over: where given, is told names of queries whose files cannot be read, with the reasons; they are left out.

  Yields:
    What was read of each query, with its prediction, in their order.

  Raises:
    InputError: a file cannot be read, or a label map has another size than its image.
  """
  approach, labels = approach or InferenceOptions(), labels or LabelFormat()
  most_tiles = max(approach.splits)
  size = (most_tiles * predictor.tile_size[0], most_tiles * predictor.tile_size[1])
  most_prompts = max((len(query.prompts) for query in queries), default=0)
  read_prompt = functools.lru_cache(max(_CACHED_PROMPTS // most_tiles**2, most_prompts, 1))(
    functools.partial(_read_prompt, labels=labels, size=size)
  )
  on_the_way = collections.deque[Read]()

  def read(query: Query) -> Read:
    image = read_image(query.image)
    truth = None if query.truth is None else _read_label_map(query.truth, image, labels)
    return Read(query, image, truth, [read_prompt(files) for files in query.prompts])

  def pairs(readers: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, Sequence[Prompt]]]:
    for query, coming in _ahead(readers, read, queries):
      try:
        item = coming.result()
      except InputError as error:
        if pass_over is None:
          raise
        pass_over(query.name, str(error))
        continue
      on_the_way.append(item)
      yield item.image, item.prompts

  with ThreadPoolExecutor(_THREADS) as readers:
    for prediction in predictor.predict_many(pairs(readers), approach):
      yield on_the_way.popleft(), prediction


def _write(outdir: Path, item: Read, prediction: Prediction, kinds: Sequence[outputs.Kind]) -> dict[str, Any]:
  """Writes the results of a query; what is counted of them, if it has a label map."""
  shown = None if item.truth is None else np.where(item.truth == IGNORE, np.uint8(0), item.truth)
  outputs.write_prediction(outdir, item.query.name, item.image, item.prompts, prediction, shown, kinds)
  if item.truth is None:
    return {}
  counts = {"counts": scores.count((prediction.unstitched or prediction).labels, item.truth)}
  if prediction.unstitched is not None:
    counts["stitched"] = scores.count(prediction.labels, item.truth)
  return counts


def _conclude(
  outdir: Path, queries: Sequence[Query], lines: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Writes what is known now that every image is done: scores, a summary, and what was bad."""
  reasons = {name: line["bad"] for name, line in lines.items() if "bad" in line}
  if reasons:
    text = "".join(f"{name}: {reason}\n" for name, reason in sorted(reasons.items()))
    outputs.write_text(outdir / BAD_FILES, text)
  unscored = [query.name for query in queries if query.truth is None]
  metrics = _scores(queries, lines, "counts", unscored)
  stitched = _scores(queries, lines, "stitched", unscored)
  if metrics is not None:
    metrics |= {} if stitched is None else {"stitched": stitched}
    outputs.write_json(outdir / "metrics.json", metrics)
  outputs.write_text(outdir / "summary.txt", _summary(len(queries), reasons, metrics, settings))
  return metrics


def _scores(
  queries: Sequence[Query], lines: Mapping[str, Mapping[str, Any]], key: str, unscored: Sequence[str]
) -> dict[str, Any] | None:
  total = scores.Scores()
  for query in queries:
    counts = lines.get(query.name, {}).get(key)
    if counts is not None:
      total.add(query.name, counts)
  return total.summary(unscored) if total.per_image else None


def _summary(
  images: int, reasons: Mapping[str, str], metrics: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> str:
  """The run as a page of text: its settings, its scores, and those of each image, the worst first."""
  lines = [f"{key}: {','.join(value) if isinstance(value, list) else value}" for key, value in settings.items()]
  lines += ["", f"{images} images" + (f", {len(reasons)} of them bad, see {BAD_FILES}" if reasons else "")]
  for title, of_run in (("", metrics), ("with the seams painted again", (metrics or {}).get("stitched"))):
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


def _ahead(
  pool: ThreadPoolExecutor, read: Callable[[Query], Read], queries: Sequence[Query]
) -> Iterator[tuple[Query, Future[Read]]]:
  """Each query with what is read of it, in their order, a few of them ahead."""
  coming: collections.deque[tuple[Query, Future[Read]]] = collections.deque()
  for query in queries:
    coming.append((query, pool.submit(read, query)))
    if len(coming) > _AHEAD:
      yield coming.popleft()
  yield from coming


def _read_prompt(files: PromptFiles, labels: LabelFormat, size: tuple[int, int]) -> Prompt:
  """A prompt as small as the network takes it: `predict` finds it of the right size already."""
  image = read_image(files.image)
  label = _read_label_map(files.labels, image, labels)
  label[label == IGNORE] = 0
  return tiling.resize_image(image, size), tiling.resize_labels(label, size)


def _read_label_map(path: Path, image: np.ndarray, labels: LabelFormat) -> np.ndarray:
  label = read_labels(path, labels)
  check_size(label, image.shape[:2], str(path))
  return label
