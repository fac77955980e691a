"""Segments a folder of images: queries with their prompts in, files of results out.

In: queries from `queries.list_queries`. Out: label/NAME.png, color/NAME.png and concat/NAME.png for each query, or the
kinds of results that were asked for; metrics.json if there are labels. Reading, the network and writing run at the same
time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from seggpt_jax.compilation import compile_notice
from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.data.ledger import Ledger
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.errors import InputError, either
from seggpt_jax.files import HOUR, exclusive, expand, remove_leftovers, writing
from seggpt_jax.formats.images import is_image, read_image
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.inference import annotation_files, outputs, scores
from seggpt_jax.inference.annotation_files import AnnotationOptions
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import PreparedPrompt, read_label_map, tiles_of, without_ignored
from seggpt_jax.inference.queries import PromptFiles, Query, files_of
from seggpt_jax.inference.run_ledger import SETTINGS, RunFolder, Shard, what_is_read
from seggpt_jax.inference.scores import REPORT_FILES, never_found, own_prompts, skipped_files, write_report
from seggpt_jax.model import parameters
from seggpt_jax.written import check_outputs, is_own, open_record

_WRITERS = 4  # threads that write results
_BEHIND = 8  # images whose results may wait to be written
_BEHIND_PIXELS = 100_000_000  # of these images together; one always may
_CACHED_PROMPTS = 256  # prompts of one tile that stay in memory: 200 MB for the released weights


class Read(NamedTuple):
  """A query in memory."""

  query: Query  # its files
  image: np.ndarray  # uint8 `[H, W, 3]`
  truth: np.ndarray | None  # the true label map `[H, W]`; None if the query has no label file
  prompts: list[PreparedPrompt]  # prompts of the network's size
  # Prompts as the network sees them: at the scale of training those of cells, else the same.
  shown: list[PreparedPrompt]
  is_prompt: bool = False  # whether the image is one of its own prompts, by its pixels


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The outcome of a run."""

  done: int  # number of images that this process has segmented
  before: int  # number of images of this process that an earlier run had finished
  left: int  # number of images that other processes have not finished
  metrics: dict[str, Any] | None  # the content of metrics.json; None if no image has labels, or if images are left
  bad: BadFiles  # images of all processes that were skipped
  own_prompts: tuple[str, ...] = ()  # images with labels that are their own prompts, which are not scored


def run(
  predictor: Predictor,
  queries: Sequence[Query],
  outdir: str | os.PathLike,
  *,
  options: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
  kinds: Sequence[outputs.Kind] = outputs.DEFAULT_KINDS,
  annotation_options: AnnotationOptions | None = None,
  bad: BadFiles | None = None,
  resume: bool = False,
  shard: Shard | None = None,
  settings: Mapping[str, Any] | None = None,
  also_read: Sequence[str | os.PathLike] = (),
) -> Outcome:
  """Segments every query and writes the results. Says so before it overwrites the results of an earlier run.

  Args:
    predictor: the network.
    queries: queries from `queries.list_queries`.
    outdir: folder of the results, created if missing. Files of an earlier run are replaced, no others.
    options: tiles, overlap and mirrored copies; one tile for the whole image by default.
    labels: format of the label files; class indices by default. Ignored pixels are not scored.
    kinds: kinds of results to write for each image.
    annotation_options: names of classes and tolerance of polygons, for the kinds that are annotations.
    bad: if given, queries with unreadable files are skipped, added here and listed in bad_files.txt.
    resume: skips images that an earlier run with the same settings has finished. Bad images are tried again.
    shard: the share of the queries that this process takes. The process that ends last writes metrics.json.
    settings: settings of the run, JSON values by name of their flags; the heading of summary.txt.
    also_read: further files that the command reads and must not replace, such as the mapping.

  Raises:
    InputError: a file cannot be read or written, a result would replace a file that no earlier run wrote, a label map
      has another size than its image, every query is bad, or the run to resume had other settings, weights or files.
  """
  outdir, shard = Path(expand(outdir)), shard or Shard()
  settings = json.loads(json.dumps(dict(settings or {})))  # as a file returns them
  folder = RunFolder(outdir, settings, resume, shard)
  options, annotation_options = options or InferenceOptions(), annotation_options or AnnotationOptions()
  outputs.check_kinds(kinds)
  own, read = shard.select(queries), what_is_read(queries, _weights_of(predictor))
  kept = folder.kept_entries()
  finished = {name: entry for name, entry in kept.items() if "bad" not in entry}
  folder.check_same_read(finished, read)
  folders = (".", "stitch") if options.stitch_width else (".",)
  plan = [
    path for query in own if query.name not in finished for path in outputs.planned(outdir, query.name, kinds, folders)
  ]
  reports = [outdir / name for name in (*REPORT_FILES, *([] if kept else [SETTINGS]))]
  check_outputs([*plan, *reports], [*files_of(queries), *also_read], is_image=is_image)
  if notice := folder.overwrite_notice():
    print(notice)
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
  # The processes of a run with shards work in one folder, and may be on several hosts.
  least_age = HOUR if shard.count > 1 else 0.0
  with contextlib.ExitStack() as held:
    held.enter_context(exclusive(outdir, shared=shard.count > 1))
    with writing(outdir):
      open_record(outdir)
    if not kept:
      _remove_stale(folder, frozenset(plan))
    progress = held.enter_context(folder.open_ledger())
    remove_leftovers(outdir, "stitch", *outputs.KINDS, least_age=least_age)
    # Reports of an earlier run are no longer true once this one writes results.
    for name in REPORT_FILES:
      outputs.remove(outdir / name)
    unfinished = [query for query in own if "bad" in progress.finished.get(query.name, {"bad": ""})]
    for file in bad or ():
      progress.add(file.name, bad=file.reason)
    if unfinished:
      print(compile_notice("the network", predictor.config.depth, training=False))
    with tqdm(desc="infer", unit="image", total=len(unfinished)) as bar:
      skip = None if bad is None else functools.partial(_note_bad, bad, progress, bar)
      items = segment(predictor, unfinished, options, labels=labels, skip=skip)
      write = functools.partial(_write, outdir, kinds, annotation_options, options.least_area, read)
      done = _write_all(items, write, progress, bar)
    if bad and not done and len(unfinished) == len(own):
      raise InputError(f"none of {len(own)} images could be segmented, the first: {next(iter(bad)).reason}")
    entries = progress.read_all()
  left = sum(query.name not in entries for query in queries)
  if not left:
    annotation_files.finish(outdir, queries, entries, kinds, annotation_options)
    if never := never_found(entries):
      noun, it_is = ("class", "it is") if len(never) == 1 else ("classes", "they are")
      advice = "try other or more prompts (--prompts=similar, --top-k)"
      if not predictor.config.backbone:  # a network on ImageNet features finds less at that scale
        advice += f", or --split=objects if {it_is} small"
      if not predictor.needs_prompts:
        advice = "train for more steps, or label more images of such objects"
      logging.warning("%s %s: never found, although %s asked for; %s", noun, either(never, "and"), it_is, advice)
  metrics = None if left else write_report(outdir, queries, entries, settings)
  return Outcome(done, len(own) - len(unfinished), left, metrics, skipped_files(entries), own_prompts(queries, entries))


def _weights_of(predictor: Predictor) -> str:
  """Returns a content hash of everything that a predictor has learned."""
  learned = {} if predictor.learned is None else predictor.learned.params
  return parameters.fingerprint({**parameters.split(predictor.model)[1], **learned})


def _remove_stale(folder: RunFolder, plan: frozenset[Path]) -> None:
  """Removes results of an earlier run that this one will not replace, so that none stay among the new ones."""
  stale = [
    path
    for name in folder.earlier_names()
    for path in outputs.planned(folder.path, name, outputs.KINDS, (".", "stitch"))
    if path not in plan and is_own(path)
  ]
  if stale:
    print(f"{folder.path}: removing {len(stale)} files of the earlier run that this one does not write")
  for path in stale:
    outputs.remove(path)


def _note_bad(bad: BadFiles, progress: Ledger, bar: tqdm, name: str, reason: str) -> None:
  """Notes a query whose files cannot be read."""
  progress.add(name, bad=reason)
  bad.add(name, reason)
  bar.update()


def _write_all(
  items: Iterator[tuple[Read, Prediction]],
  write: Callable[[Read, Prediction], dict[str, Any]],
  progress: Ledger,
  bar: tqdm,
) -> int:
  """Writes results in threads and notes them with what `write` returns, in order. Returns their number."""
  done, written = 0, collections.deque[tuple[str, int, Future[dict[str, Any]]]]()

  def note_finished(behind: int) -> None:
    while len(written) > behind or (written and written[0][2].done()) or sum(w[1] for w in written) > _BEHIND_PIXELS:
      name, _, future = written.popleft()
      progress.add(name, **future.result())

  with ThreadPoolExecutor(_WRITERS) as writers:
    for item, prediction in items:
      written.append((item.query.name, prediction.labels.size, writers.submit(write, item, prediction)))
      del item, prediction  # which may be large, while the next one is read
      note_finished(behind=_BEHIND)
      bar.update()
      done += 1
    note_finished(behind=0)
  return done


def segment(
  predictor: Predictor,
  queries: Sequence[Query],
  options: InferenceOptions | None = None,
  *,
  labels: LabelFormat | None = None,
  skip: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[Read, Prediction]]:
  """Reads and segments queries. Files are read while the network works.

  Args:
    predictor: the network.
    queries: queries from `queries.list_queries`.
    options: tiles, overlap and mirrored copies; one tile for the whole image by default.
    labels: format of the label files; class indices by default.
    skip: if given, called with the name of each query whose files cannot be read, which is left out, and the reason.

  Yields:
    Each query in memory with its prediction, in order.

  Raises:
    InputError: a file cannot be read, or a label map has another size than its image.
  """
  options, labels = options or InferenceOptions(), labels or LabelFormat()
  read = _reader(predictor, queries, options, labels)
  waiting = collections.deque[Read]()

  def pairs() -> Iterator[tuple[np.ndarray, Sequence[PreparedPrompt]]]:
    for query, coming in read_ahead(read, queries):
      try:
        item = coming.result()
      except InputError as error:
        if skip is None:
          raise
        skip(query.name, str(error))
        continue
      waiting.append(item)
      yield item.image, item.prompts

  for prediction in predictor.predict_many(pairs(), options):
    yield waiting.popleft(), prediction


def _reader(
  predictor: Predictor, queries: Sequence[Query], options: InferenceOptions, labels: LabelFormat
) -> Callable[[Query], Read]:
  """Returns a function that reads a query. It keeps prompts in memory that serve many queries."""
  most_prompts = max((len(query.prompts) for query in queries), default=0)

  @functools.lru_cache(max(_CACHED_PROMPTS // options.scale.split**2, most_prompts, 1))
  def read_prompt(files: PromptFiles) -> tuple[PreparedPrompt, bytes]:
    image = read_image(files.image)
    shown = read_label_map(files.labels, image, labels)
    if not without_ignored(shown).any():
      shown = without_ignored(shown)  # a map without a class is a warning here
    prepared = predictor.prepare_prompt(image, shown, options, name=str(files.labels))
    return prepared, _digest(image)

  def read(query: Query) -> Read:
    image = read_image(query.image)
    truth = None if query.truth is None else read_label_map(query.truth, image, labels)
    found = [read_prompt(files) for files in query.prompts]
    prompts = shown = [prompt for prompt, _ in found]
    if options.zoom and prompts:
      made = zip(*tiles_of(prompts, options.scale, predictor.tile_size), strict=True)
      shown = [PreparedPrompt(*prompt) for prompt in made]
    return Read(query, image, truth, prompts, shown, bool(found) and _digest(image) in {each for _, each in found})

  return read


def _digest(image: np.ndarray) -> bytes:
  """Returns a hash of the pixels of an image, the same for all files that show them."""
  return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()


def _write(
  outdir: Path,
  kinds: Sequence[outputs.Kind],
  annotation_options: AnnotationOptions,
  least_area: int,
  read: Mapping[str, dict[str, str]],
  item: Read,
  prediction: Prediction,
) -> dict[str, Any]:
  """Writes the results of a query. Returns what the ledger keeps about annotations, and pixel counts with labels."""
  shown = None if item.truth is None else np.where(item.truth == IGNORE, np.uint8(0), item.truth)
  outputs.write_prediction(outdir, item.query.name, item.image, item.shown, prediction, shown, kinds)
  if "geotiff" in kinds:
    outputs.write_geotiff(outdir, item.query, prediction)
  noted = annotation_files.write(outdir, item.query, prediction, kinds, annotation_options, least_area)
  noted |= {"read": read[item.query.name], "asked": prediction.classes, "found": list(prediction.shares())}
  if item.is_prompt:
    noted["is_prompt"] = True
  if item.truth is None:
    return noted
  noted["counts"] = scores.count((prediction.unstitched or prediction).labels, item.truth)
  if prediction.unstitched is not None:
    noted["stitched"] = scores.count(prediction.labels, item.truth)
  return noted
