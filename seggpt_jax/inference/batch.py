"""The work behind infer.py: a folder of images, a folder of prompts, a folder of results.

In: paths. Out: for each query label/NAME.png, color/NAME.png and concat/NAME.png, and metrics.json where the queries
have labels. Files belong together by their name without ending.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Integer
from tqdm import tqdm

from seggpt_jax.data.images import list_images, read_image
from seggpt_jax.data.labels import IGNORE, LABEL_MODES, LabelFormat, LabelMode, Value, read_labels
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError, naming
from seggpt_jax.inference import outputs, tiling
from seggpt_jax.inference.predictor import Prediction, Predictor, Prompt
from seggpt_jax.metrics import iou
from seggpt_jax.model.seggpt import SegType
from seggpt_jax.model.weights import find_items, find_weights

_BLOCK = 2**18  # pixels counted at a time
_THREADS = 4  # that read, and as many that write
_AHEAD = 8  # images that are read before they are needed, and as many that are written behind
BAD_FILES = "bad_files.txt"
_CACHED_PROMPTS = 256  # of the tile's size: 200 MB for the released weights


@dataclasses.dataclass(frozen=True)
class PromptFiles:
  """A prompt on disk."""

  image: Path
  labels: Path


@dataclasses.dataclass(frozen=True)
class Query:
  """An image to segment: its files, and its prompts, best first."""

  name: str
  image: Path
  truth: Path | None
  prompts: tuple[PromptFiles, ...]


class Read(NamedTuple):
  """A query as it is in memory: the image, its true label map if it has one, and its prompts in the tiles' size."""

  query: Query
  image: np.ndarray
  truth: np.ndarray | None
  prompts: list[Prompt]


def list_queries(
  dataset_dir: str | os.PathLike,
  prompt_img_dir: str | os.PathLike | None = None,
  prompt_label_dir: str | os.PathLike | None = None,
  mapping: str | os.PathLike | None = None,
  top_k: int = 1,
  bad: dict[str, str] | None = None,
  *,
  mapped_only: bool = False,
) -> list[Query]:
  """Finds all files of a run and checks that they are there, before anything is read or computed.

  Args:
    dataset_dir: a folder with images/ and perhaps labels/, or a folder of images.
    prompt_img_dir: images of the prompts; None for queries without prompts, which a learnt prompt serves.
    prompt_label_dir: their label maps.
    mapping: JSON file {query file: [prompt files, best first]}; without it the first prompts by name serve every query.
    top_k: the most prompts that a query gets.
    bad: where given, queries whose prompts are missing are left out, and told here by name with the reason.
    mapped_only: whether the mapping says which images are queries; without it, it has to know all of them.

  Returns:
    One for each image of the dataset, or of the mapping, by name.

  Raises:
    InputError: a folder or file is missing, or the mapping does not fit the files; names it.
  """
  images, truths = _dataset(Path(dataset_dir))
  if prompt_img_dir is None or prompt_label_dir is None:
    return [Query(stem, path, truths.get(stem), ()) for stem, path in images.items()]
  prompts = {"image": _list(prompt_img_dir), "label": _list(prompt_label_dir)}
  folders = {"image": prompt_img_dir, "label": prompt_label_dir}
  chosen = None if mapping is None else read_mapping(mapping)
  if mapped_only and chosen is not None:
    unknown = [stem for stem in chosen if stem not in images]
    if unknown or not chosen:
      found = f"key {unknown[0]!r}" if unknown else "no keys"
      raise InputError(f"{mapping}: found {found}, expected names of images in {dataset_dir}")
    images = {stem: path for stem, path in images.items() if stem in chosen}

  def find(stem: str, said_by: str) -> PromptFiles:
    for kind, files in prompts.items():
      if stem not in files:
        raise InputError(f"{said_by}: found no prompt {kind} for it, expected {Path(folders[kind]) / stem}.*")
    return PromptFiles(prompts["image"][stem], prompts["label"][stem])

  def prompts_of(stem: str, path: Path) -> tuple[PromptFiles, ...]:
    if chosen is None:
      return tuple(find(name, str(file)) for name, file in list(prompts["image"].items())[:top_k])
    if stem not in chosen:
      raise InputError(f"{mapping}: found no key {path.name!r}, expected one for every image of {dataset_dir}")
    return tuple(find(Path(file).stem, f"{mapping}: {path.name}: {file}") for file in chosen[stem][:top_k])

  queries = []
  for stem, path in images.items():
    try:
      queries.append(Query(stem, path, truths.get(stem), prompts_of(stem, path)))
    except InputError as error:
      if bad is None:
        raise
      bad[stem] = str(error)
  if not queries:
    raise InputError(
      f"{dataset_dir}: none of {len(images)} images has its prompts, the first: {next(iter(bad.values()))}"
    )
  return queries


def _list(directory: str | os.PathLike) -> dict[str, Path]:
  return {name: Path(path) for name, path in list_images(directory).items()}


def _dataset(directory: Path) -> tuple[dict[str, Path], dict[str, Path]]:
  if not (directory / "images").is_dir():
    return _list(directory), {}
  labels = directory / "labels"
  return _list(directory / "images"), _list(labels) if labels.is_dir() else {}


def label_format(
  model_path: str | os.PathLike,
  labels: LabelMode | None = None,
  threshold: int | None = None,
  table: tuple[Value, ...] | None = None,
  ignore: tuple[Value, ...] | None = None,
) -> LabelFormat:
  """How label files are read: as asked for, else as the run that the weights come from read them, else as indices.

  Args:
    model_path: weights or a training run, also one of an adapter.
    labels: what was asked for, if anything.
    threshold: likewise.
    table: likewise.
    ignore: likewise.

  Raises:
    InputError: no weights there, values that do not fit the mode, or a run whose config.json cannot be read.
  """
  found = find_items(Path(model_path), ("params", "adapter")) or find_weights(model_path)
  configs = (folder / "config.json" for folder in (Path(model_path), *found.absolute().parents[:2]))
  trained = next((_trained_format(path) for path in configs if path.is_file()), LabelFormat())
  mode = labels or trained.mode
  if mode != "binary" and threshold is not None:
    raise InputError(f"--threshold: found with {mode} labels, expected only with --labels=binary")
  same = mode == trained.mode
  if table is None:
    table = trained.table if same else ()
  if ignore is None:
    ignore = trained.ignore if same else ()
  return LabelFormat(mode, trained.threshold if threshold is None else threshold, table, ignore)


def _trained_format(path: Path) -> LabelFormat:
  """How the run of this config.json reads labels.

  Raises:
    InputError: it is none of train.py; names it.
  """
  try:
    stored = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON ({error}), expected the run's configuration") from error
  data = stored.get("data", {}) if isinstance(stored, dict) else None
  if not isinstance(data, dict):
    raise InputError(f"{path}: found no object with an object `data` in it, expected the run's configuration")
  mode, threshold = data.get("labels", "index"), data.get("threshold", 0)
  if mode not in LABEL_MODES:
    raise InputError(f"{path}: data.labels: found {mode!r}, expected one of {', '.join(LABEL_MODES)}")
  if not (isinstance(threshold, int) and 0 <= threshold <= 255):
    raise InputError(f"{path}: data.threshold: found {threshold!r}, expected 0..255")
  values: dict[str, tuple[Value, ...]] = {}
  for key in ("table", "ignore"):
    stored = data.get(key, [])
    # JSON has no tuples: colours are lists.
    entries = stored if isinstance(stored, list) else [None]
    if not all(isinstance(part, int) for entry in entries for part in (entry if isinstance(entry, list) else [entry])):
      raise InputError(f"{path}: data.{key}: found {stored!r}, expected a list of values or colours")
    values[key] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in stored)
  with naming(f"{path}: data"):
    return LabelFormat(mode, threshold, **values)


def read_mapping(path: str | os.PathLike) -> dict[str, list[str]]:
  """Which prompts serve which query.

  Args:
    path: JSON file {query file: [prompt files, best first]}.

  Returns:
    The prompt files of each query, under the query's name without ending.

  Raises:
    InputError: the file is missing, no JSON, or of another form.
  """
  try:
    mapping = json.loads(Path(path).read_text())
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected a JSON file {{query file: [prompt files, best first]}}") from error
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON: {error}") from error
  if not isinstance(mapping, dict):
    raise InputError(f"{path}: found {type(mapping).__name__}, expected an object {{query file: [prompt files]}}")
  for key, files in mapping.items():
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
      raise InputError(f"{path}: {key}: found {json.dumps(files)}, expected a list of prompt file names")
  return {Path(key).stem: files for key, files in mapping.items()}


def run(
  predictor: Predictor,
  queries: Sequence[Query],
  outdir: str | os.PathLike,
  *,
  split: int | Sequence[int] = 1,
  seg_type: SegType = "semantic",
  labels: LabelFormat | None = None,
  bad: dict[str, str] | None = None,
) -> dict[str, Any] | None:
  """Segments every query and writes the results.

  Args:
    predictor: the network.
    queries: as of `list_queries`.
    outdir: folder of the results; is made where it is missing. Files of the same names are replaced.
    split: see `Predictor.predict`.
    seg_type: likewise.
    labels: how label files are read, those of prompts and queries alike; as class indices by default. Ignored pixels
      are background in a prompt, and are not scored.
    bad: where given, queries whose files cannot be read are passed over and told here by name with the reason; what it
      holds at the end is listed in bad_files.txt.

  Returns:
    What metrics.json holds; None when no query has labels.

  Raises:
    InputError: a file cannot be read or written, a label map has another size than its image, or every query is bad.
  """
  outdir = Path(outdir)
  # What an earlier run said is no longer true of what this one writes.
  for name in ("metrics.json", BAD_FILES):
    outputs.remove(outdir / name)
  scores, done, written = Scores(), 0, collections.deque[Future]()
  found = segment(predictor, queries, split=split, seg_type=seg_type, labels=labels, bad=bad)
  with ThreadPoolExecutor(_THREADS) as writers:
    for item, prediction in tqdm(found, desc="infer", unit="image", total=len(queries)):
      done += 1
      written.append(writers.submit(_write, outdir, item, prediction))
      if item.truth is not None:
        scores.add(item.query.name, prediction.labels, item.truth)
      while len(written) > _AHEAD or (written and written[0].done()):
        written.popleft().result()
    for future in written:
      future.result()
  if bad and not done:
    raise InputError(f"none of {len(queries)} images could be segmented, the first: {next(iter(bad.values()))}")
  if bad:
    outputs.write_text(outdir / BAD_FILES, "".join(f"{name}: {reason}\n" for name, reason in sorted(bad.items())))
  if not scores.per_image:
    return None
  metrics = scores.summary(unscored=[query.name for query in queries if query.truth is None])
  outputs.write_json(outdir / "metrics.json", metrics)
  return metrics


def segment(
  predictor: Predictor,
  queries: Sequence[Query],
  *,
  split: int | Sequence[int] = 1,
  seg_type: SegType = "semantic",
  labels: LabelFormat | None = None,
  bad: dict[str, str] | None = None,
) -> Iterator[tuple[Read, Prediction]]:
  """Reads and segments queries; files are read while the network works.

  Args:
    predictor: the network.
    queries: as of `list_queries`.
    split: see `Predictor.predict`.
    seg_type: likewise.
    labels: see `run`.
    bad: likewise.

  Yields:
    What was read of each query, with its prediction, in their order.

  Raises:
    InputError: a file cannot be read, or a label map has another size than its image.
  """
  labels = labels or LabelFormat()
  most_tiles = split if isinstance(split, int) else max(split)
  size = (most_tiles * predictor.tile_size[0], most_tiles * predictor.tile_size[1])
  most_prompts = max(len(query.prompts) for query in queries)
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
        if bad is None:
          raise
        bad[query.name] = str(error)
        continue
      on_the_way.append(item)
      yield item.image, item.prompts

  with ThreadPoolExecutor(_THREADS) as readers:
    for prediction in predictor.predict_many(pairs(readers), split=split, seg_type=seg_type):
      yield on_the_way.popleft(), prediction


def _write(outdir: Path, item: Read, prediction: Prediction) -> None:
  shown = None if item.truth is None else np.where(item.truth == IGNORE, np.uint8(0), item.truth)
  outputs.write_prediction(outdir, item.query.name, item.image, item.prompts, prediction, shown)


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


class Scores:
  """The IoU of every image of a run, and the confusion counts of all of them."""

  def __init__(self):
    self.total = np.zeros((2, 2), np.int64)
    self.per_image: dict[str, list[float | None]] = {}

  def add(self, name: str, predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"]) -> None:
    """Counts one image, but for its ignored pixels; a class beyond those seen so far enlarges the table."""
    truth = np.where(truth == IGNORE, -1, truth.astype(np.int32))
    n = max(len(self.total), 1 + int(predicted.max()), 1 + int(truth.max()))
    confusion = confusion_counts(predicted, truth, n)
    self.total = np.pad(self.total, (0, n - len(self.total))) + confusion
    self.per_image[name] = _ious(confusion)

  def summary(self, unscored: Sequence[str] = ()) -> dict[str, Any]:
    """Everything as plain values; None is the IoU of a class that neither truth nor prediction has.

    Args:
      unscored: names of images without labels.

    Returns:
      `images` (their number), `unscored` (names), `miou` and `foreground_miou` (of the summed counts, the latter
      without class 0), `classes` (one entry for each: IoU and pixel counts), and `per_image`: IoU of each class and
      their mean, by name.
    """
    total, ious = self.total, _ious(self.total)
    # An image counted before the table was enlarged has none of the later classes.
    per_image = {name: scores + [None] * (len(ious) - len(scores)) for name, scores in self.per_image.items()}
    return {
      "images": len(per_image),
      "unscored": list(unscored),
      "miou": _mean(ious),
      "foreground_miou": _mean(ious[1:]),
      "classes": [
        {
          "class": index,
          "iou": ious[index],
          "intersection_pixels": int(total[index, index]),
          "truth_pixels": int(total[index].sum()),
          "predicted_pixels": int(total[:, index].sum()),
        }
        for index in range(len(ious))
      ],
      "per_image": {name: {"miou": _mean(scores), "iou": scores} for name, scores in per_image.items()},
    }


_count_block = jax.jit(iou.confusion_counts, static_argnames="num_classes")


def confusion_counts(
  predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], num_classes: int
) -> Int[np.ndarray, "n n"]:
  """`iou.confusion_counts` for one image of any size without compiling for that size; int64."""
  # -1 is no class, so what fills up the last block is not counted.
  blocks = (tiling.pixel_blocks(labels.reshape(-1).astype(np.int32), _BLOCK, fill=-1) for labels in (predicted, truth))
  counts = [_count_block(p, t, num_classes=num_classes) for p, t in zip(*blocks, strict=True)]
  return np.sum([np.asarray(table, np.int64) for table in counts], axis=0)


def report(metrics: dict[str, Any]) -> str:
  """The numbers of a run as a short table."""

  def percent(score: float | None) -> str:
    return "     -" if score is None else f"{score:6.1%}"

  lines = [f"IoU over {metrics['images']} labelled images"]
  present = [entry for entry in metrics["classes"] if entry["iou"] is not None]
  lines += [f"  class {entry['class']:<3} {percent(entry['iou'])}" for entry in present]
  lines += [f"  mean      {percent(metrics['miou'])}", f"  foreground{percent(metrics['foreground_miou'])}"]
  if metrics["unscored"]:
    lines.append(f"  {len(metrics['unscored'])} images without labels")
  return "\n".join(lines)


def _ious(confusion: np.ndarray) -> list[float | None]:
  return [None if math.isnan(score) else score for score in np.asarray(iou.iou_from_confusion(confusion)).tolist()]


def _mean(ious: Sequence[float | None]) -> float | None:
  present = [score for score in ious if score is not None]
  return sum(present) / len(present) if present else None
