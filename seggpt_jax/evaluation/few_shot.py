"""Evaluates few-shot segmentation on the benchmarks of `few_shot_data`: network and dataset in, mIoU out.

The protocol is the one of HSNet's published test code (arXiv 2104.01538), which Matcher, PATNet and INSID3 kept:
- A fixed number of episodes for each fold, such as 1000.
- Each episode asks for one class; everything else is background.
- Pixels of intersection and union are summed over all episodes of a class. Ignored pixels are not counted.
- mIoU is the mean over the fold's classes. FB-IoU is the mean of foreground and background IoU, each from pixels summed
  over all classes.
- Papers report the mean over folds.

There are three differences. Episodes whose query is one of their prompts, as some datasets hold an image twice, are not
scored; the table says how many they are. Predictions are scored at the query's own size; HSNet shrinks truth and
prediction to 400 x 400 pixels (others to 417, 473 or 518), which is easier. The listings can differ, see the readers.

Episodes are drawn as there too: NumPy's legacy generator with one seed for each fold, one draw for each prompt, and a
new draw if the prompt is the query. Hence a query can have the same prompt twice. If the listing is in the published
order, the episodes are the published ones.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from tqdm import tqdm

from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import EncodedSource
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import parts
from seggpt_jax.evaluation.parts import Finished
from seggpt_jax.formats.images import decode_image
from seggpt_jax.formats.labels import IGNORE
from seggpt_jax.inference import tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import Prompt
from seggpt_jax.inference.run_ledger import Shard


class Episode(NamedTuple):
  """A query and its prompts, as indices into the dataset, and the class that is asked for."""

  class_index: int
  query: int
  prompts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Samples:
  """The samples of a benchmark. One sample can be asked for several classes."""

  source: EncodedSource
  own_class: bool = False  # whether each label file is the mask of one class, instead of class indices
  stretched: bool = False  # whether images may be stored at another size than their labels, which they then get

  def __len__(self) -> int:
    return len(self.source)

  def name(self, sample: int) -> str:
    return self.source.name(sample)

  def read(self, sample: int, class_index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Reads an image and its mask of a class: 1 where the class is, IGNORE where the label is ignored.

    Raises:
      InputError: a file is missing, cannot be read, or has another size than its image; names the file.
    """
    if self.stretched:
      image, label = decode_image(*self.source.encoded_image(sample)), self.source.label(sample)
      image = image if image.shape[:2] == label.shape else tiling.resize_image(image, label.shape)
    else:
      read = self.source[sample]
      image, label = read["image"], read["label"]
    mask = (label == (1 if self.own_class else class_index)).astype(np.uint8)
    mask[label == IGNORE] = IGNORE
    return image, mask


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotData:
  """A benchmark with its classes, folds and the plan of its episodes.

  If there are `queries`, (sample, class) pairs of each fold in order, they come in turn. Otherwise queries are drawn at
  random, and their classes in turn or at random.
  """

  samples: Samples
  class_names: Mapping[int, str]
  folds: Mapping[int, Sequence[int]]  # classes of each fold
  pools: Mapping[int, Sequence[int]]  # samples that show each class, in order, from which prompts are drawn
  num_episodes: Mapping[int, int]  # of each fold
  queries: Mapping[int, Sequence[tuple[int, int]]] | None = None
  classes_in_turn: bool = False
  notes: tuple[str, ...] = ()  # sentences to print below the results
  comparable: bool = True  # whether published results use the same classes

  def episodes(self, fold: int, shots: int, seed: int = 0, count: int | None = None) -> list[Episode]:
    """Returns the episodes of a fold, the same ones for the same files and arguments.

    Args:
      fold: a key of `folds`.
      shots: number of prompts per query.
      seed: seed of the draws.
      count: number of episodes to keep, evenly spread. By default all are kept.

    Raises:
      InputError: there is no such fold, or one of its classes has too few images.
    """
    if fold not in self.folds:
      raise InputError(f"--fold: found {fold}, expected some of {', '.join(map(str, self.folds))}")
    classes, total = self.folds[fold], self.num_episodes[fold]
    for index in classes:
      if (found := len(set(self.pools.get(index, ())))) <= shots:
        raise InputError(
          f"class {self.class_names[index]}: found {found} images of it, expected at least {shots + 1} for --shots "
          f"{shots}: a query and its prompts"
        )
    queries = None if self.queries is None else self.queries[fold]
    drawn = draw_episodes(self.pools, total, shots, seed, queries or classes, in_turn=self.classes_in_turn)
    if count is None or count >= total:
      return drawn
    return [drawn[index * total // count] for index in range(count)]


def draw_episodes(
  pools: Mapping[int, Sequence[int]],
  count: int,
  shots: int,
  seed: int,
  asked: Sequence[int] | Sequence[tuple[int, int]],
  *,
  in_turn: bool = False,
) -> list[Episode]:
  """Draws the episodes of a fold.

  Args:
    pools: the samples that show each class, in order.
    count: number of episodes.
    shots: number of prompts per episode.
    seed: seed of the draws.
    asked: (sample, class) pairs, which are the queries in turn, starting over at the end; or the classes of the fold,
      of which queries are drawn.
    in_turn: whether classes come in turn; otherwise they are drawn too.
  """
  generator = np.random.RandomState(seed)

  def draw(items: Sequence) -> int:
    # `replace=False` makes no difference for a single draw, but it takes other numbers from the generator, and the
    # published episodes are drawn with it.
    return items[int(generator.choice(len(items), 1, replace=False)[0])]

  episodes = []
  for index in range(count):
    if isinstance(asked[0], tuple):
      query, class_index = asked[index % len(asked)]
    else:
      class_index = asked[index % len(asked)] if in_turn else draw(asked)
      query = draw(pools[class_index])
    prompts: list[int] = []
    while len(prompts) < shots:
      if (prompt := draw(pools[class_index])) != query:
        prompts.append(prompt)
    episodes.append(Episode(class_index, query, tuple(prompts)))
  return episodes


def digest(episodes: Sequence[Episode], names: Sequence[str]) -> str:
  """Returns a short hash of the episodes, which tells runs with other episodes apart.

  Args:
    episodes: episodes of a fold.
    names: names of all samples of the dataset.
  """
  listing = [(each.class_index, *(names[sample] for sample in (each.query, *each.prompts))) for each in episodes]
  return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


_AHEAD = 16  # episodes that are read before they are needed
_EXAMPLES = 4  # pictures of each fold, drawn by the first process


class _Read(NamedTuple):
  """An episode with its images in memory."""

  episode: Episode
  image: np.ndarray
  truth: np.ndarray
  prompts: list[Prompt]
  is_prompt: bool  # whether the query is one of the prompts, by its pixels


class FewShot:
  """A few-shot benchmark, see `parts.Benchmark`. A part is a shard's share of a fold.

  Args:
    name: a name of `few_shot_data.BENCHMARKS`.
    data: the dataset.
    model: path of the weights, which is recorded in the settings.
    folds: folds to run; all folds of the dataset by default.
    shots: number of prompts per query, which are ensembled.
    seed: seed of the episodes; published results use 0.
    count: number of episodes per fold, evenly spread; all by default.
    split: number of tiles along each side, see `InferenceOptions`.

  Raises:
    InputError: there is no such fold, or one of its classes has too few images.
  """

  def __init__(
    self,
    name: str,
    data: FewShotData,
    *,
    model: str = "",
    folds: Sequence[int] | None = None,
    shots: int = 1,
    seed: int = 0,
    count: int | None = None,
    split: int = 1,
  ):
    self.name, self._data, self._shots, self._split = name, data, shots, split
    folds = list(data.folds) if folds is None else sorted(set(folds))
    self._episodes = {fold: data.episodes(fold, shots, seed, count) for fold in folds}
    self._notes = list(data.notes)
    if count is not None:
      self._notes.append("Only some of the episodes were run (--episodes).")
    if shots > 1 and parts.published(name, "mIoU", shots):
      self._notes.append("Published few-shot figures do not say how many prompts each query had.")
    names = [data.samples.name(index) for index in range(len(data.samples))]
    self.settings: dict[str, Any] = {
      "model": model,
      "folds": folds,
      "shots": shots,
      "seed": seed,
      "split": split,
      "episodes": [len(episodes) for episodes in self._episodes.values()],
      "listing": [digest(episodes, names) for episodes in self._episodes.values()],
    }

  def parts(self, shard: Shard) -> list[str]:
    return [f"fold-{fold}.{shard}" for fold in self._episodes]

  def run(self, predictor: Predictor, part: str, outdir: Path) -> Finished:
    fold, index, count = (int(word) for word in re.findall(r"\d+", part))
    episodes = self._episodes[fold][index - 1 :: count]
    counts, rows, titles, own = ClassCounts(), [], [], 0
    shown = {place * len(episodes) // _EXAMPLES for place in range(_EXAMPLES)} if index == 1 else set()
    bar = tqdm(self._answers(predictor, episodes), f"{self.name} fold {fold}", len(episodes), unit="episode")
    for place, (item, labels) in enumerate(bar):
      if item.is_prompt:
        own += 1
        continue
      asked = item.episode.class_index
      counts.add(asked, episode_counts(labels, item.truth))
      if place in shown:
        prompt = self._data.samples.read(item.episode.prompts[0], asked)
        rows.append([parts.panel(*prompt), *(parts.panel(item.image, shown) for shown in (None, item.truth, labels))])
        titles.append(f"fold {fold}, {self._data.class_names[asked]}: prompt, query, truth, prediction")
      bar.set_postfix(mIoU=f"{100 * counts.mean_iou():.1f}", refresh=False)
    values = {"fold": fold, "classes": counts.values(), "own_prompts": own}
    return Finished(values, parts.strip(rows, titles) if rows else None)

  def results(self, finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    counts = {fold: ClassCounts() for fold in self._episodes}
    for part in finished.values():
      counts[part["fold"]].add_values(part["classes"])
    own = sum(part.get("own_prompts", 0) for part in finished.values())
    if empty := [fold for fold, found in counts.items() if not found.values()]:
      raise InputError(
        f"{self.name}: fold {empty[0]}: every query is one of its own prompts; there is nothing to score"
      )
    folds = {fold: self._scores(fold_counts) for fold, fold_counts in counts.items()}
    means = {score: float(np.mean([scores[score] for scores in folds.values()])) for score in ("miou", "fb_iou")}
    table = self._table(folds, means, own)
    return {**means, "own_prompts": own, "folds": {str(fold): each for fold, each in folds.items()}, "table": table}

  def _scores(self, counts: ClassCounts) -> dict[str, Any]:
    values, names = counts.values(), self._data.class_names
    classes = {
      names[index]: {"iou": iou, "episodes": values[str(index)]["episodes"]} for index, iou in counts.ious().items()
    }
    return {"miou": counts.mean_iou(), "fb_iou": counts.fb_iou(), "classes": classes}

  def _table(self, folds: Mapping[int, Mapping[str, Any]], means: Mapping[str, float], own: int) -> parts.Table:
    # Published figures are means over all folds.
    all_folds = len(folds) == len(self._data.folds)
    columns = {"mean": means} if all_folds else {}
    if len(self._data.folds) > 1:
      columns = {**{f"fold {fold}": scores for fold, scores in folds.items()}, **columns}
    comparable = all_folds and self._data.comparable
    num_episodes = sum(map(len, self._episodes.values()))
    left_out = [f"{own} of them are not scored: their query is one of their prompts."] if own else []
    return parts.Table(
      title=f"{self.name}, {self._shots} prompt{'s' if self._shots > 1 else ''} for each query",
      columns=list(columns),
      rows={
        "mIoU": [scores["miou"] for scores in columns.values()],
        "FB-IoU": [scores["fb_iou"] for scores in columns.values()],
      },
      published={"mIoU": parts.published(self.name, "mIoU", self._shots) if comparable else None},
      notes=[f"In percent; {num_episodes} episodes, scored at the size of each query.", *left_out, *self._notes],
    )

  def _answers(self, predictor: Predictor, episodes: Sequence[Episode]) -> Iterator[tuple[_Read, np.ndarray]]:
    """Yields every episode with the predicted labels, in order."""

    options = InferenceOptions(self._split)

    def read(episode: Episode) -> _Read:
      image, truth = self._data.samples.read(episode.query, episode.class_index)
      prompts = [self._data.samples.read(prompt, episode.class_index) for prompt in episode.prompts]
      # Prepared here because prompts of the network's size take little memory while many episodes wait.
      prepared = [predictor.prepare_prompt(*prompt, options) for prompt in prompts]
      return _Read(episode, image, truth, prepared, any(np.array_equal(image, shown) for shown, _ in prompts))

    items, asked = itertools.tee(coming.result() for _, coming in read_ahead(read, episodes, ahead=_AHEAD))
    queries = ((item.image, item.prompts) for item in asked)
    for prediction in predictor.predict_many(queries, options):
      yield next(items), prediction.labels


class ClassCounts:
  """Pixels of intersection and union of each class, summed over episodes; counts of several processes can be added."""

  def __init__(self) -> None:
    self._sums: dict[int, np.ndarray] = {}
    self._episodes = collections.Counter[int]()

  def add(self, class_index: int, counts: Int64[np.ndarray, "2 2"], episodes: int = 1) -> None:
    """Adds the counts of one or several episodes, from `episode_counts`."""
    self._sums[class_index] = self._sums.get(class_index, 0) + counts
    self._episodes[class_index] += episodes

  def add_values(self, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds what `values` returned, possibly in another process."""
    for key, entry in values.items():
      self.add(int(key), np.array([entry["intersection"], entry["union"]], np.int64), entry["episodes"])

  def values(self) -> dict[str, dict[str, Any]]:
    """Returns plain values for each class: episodes, and intersection and union, each as [background, foreground]."""
    return {
      str(index): {"episodes": self._episodes[index], "intersection": sums[0].tolist(), "union": sums[1].tolist()}
      for index, sums in sorted(self._sums.items())
    }

  def ious(self) -> dict[int, float]:
    """Returns the foreground IoU of each class that has episodes."""
    return {index: _ratio(*sums[:, 1]) for index, sums in sorted(self._sums.items())}

  def mean_iou(self) -> float:
    """Returns the mean of `ious`."""
    return float(np.mean(list(self.ious().values())))

  def fb_iou(self) -> float:
    """Returns the mean of background IoU and foreground IoU, from pixels summed over all classes."""
    (background, foreground), (all_background, all_foreground) = np.sum(list(self._sums.values()), axis=0)
    return (_ratio(background, all_background) + _ratio(foreground, all_foreground)) / 2


def episode_counts(predicted: Integer[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "2 2"]:
  """Counts pixels in the intersection and the union (rows) of two masks, of background and of foreground (columns).

  Args:
    predicted: mask of 0 and 1.
    truth: mask of 0, 1 and IGNORE; ignored pixels are not counted.
  """
  known = truth != IGNORE
  ours, theirs = (predicted == 1) & known, truth == 1
  both, either, total = (int(np.count_nonzero(mask)) for mask in (ours & theirs, ours | theirs, known))
  return np.array([[total - either, both], [total - both, either]], np.int64)


def _ratio(intersection: np.int64, union: np.int64) -> float:
  # Published code counts 0 if neither truth nor prediction has any pixel.
  return float(intersection) / max(float(union), 1.0)
