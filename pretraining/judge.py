"""Measures a network on real sets that never train it: fixed episodes, one class asked at a time.

In: folders `SET/{images,labels}` and a function that predicts. Out: mean IoU over classes for each set.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from PIL import Image

from seggpt_jax import canvas
from seggpt_jax.compilation import jit
from seggpt_jax.model import parameters

_MOST_CLASSES = 6


class Episode(NamedTuple):
  """A query with its prompts, by their places in a set, and the classes that are asked."""

  prompts: tuple[int, ...]
  query: int
  classes: list[int]


def load(folder: Path, count: int = 24, num_prompts: int = 1) -> dict:
  """Reads all sets of a folder and chooses their episodes, always the same ones.

  Args:
    folder: the folder of sets.
    count: episodes of each set.
    num_prompts: prompts of each query; the first one is the same for every number.
  """
  sets = {}
  for path in sorted(p for p in folder.iterdir() if (p / "images").is_dir()):
    images = {f.stem: f for f in (path / "images").iterdir()}
    labels = {f.stem: f for f in (path / "labels").iterdir()}
    names = sorted(images.keys() & labels.keys())
    items = [(np.asarray(Image.open(images[n]).convert("RGB")), np.asarray(Image.open(labels[n]))) for n in names]
    sets[path.name] = items, choose_episodes([label for _, label in items], count, num_prompts)
  return sets


def choose_episodes(labels: list[np.ndarray], count: int, num_prompts: int = 1) -> list[Episode]:
  """Chooses queries and prompts that share a class of the query."""
  chance, order, found = random.Random(0), list(range(len(labels))), []
  chance.shuffle(order)
  areas = [{int(c): int((label == c).sum()) for c in np.unique(label) if 0 < c < 255} for label in labels]
  for query in order * 3:
    if len(found) == count:
      break
    if not (area := areas[query]):
      continue
    asked = chance.choice(sorted(area)) if len(area) > 3 else max(area, key=area.__getitem__)
    prompts = [p for p in range(len(labels)) if p != query and areas[p].get(asked, 0) > 20]
    if prompts:
      first = chance.choice(prompts)
      classes = sorted(areas[first], key=areas[first].__getitem__, reverse=True)[:_MOST_CLASSES]
      if asked not in classes:
        classes[-1] = asked
      others = [p for p in prompts if p != first]
      more = random.Random(first * 1000 + query).sample(others, min(num_prompts - 1, len(others)))
      found.append(Episode((first, *more), query, sorted(classes)))
  return found


def make_predict(graph):
  """Returns a jitted function of (params, queries, prompts, masks) that gives probabilities."""

  @jit
  def predict(params, queries, prompts, masks):
    model = parameters.merge(graph, params)
    return jax.nn.sigmoid(model.logits(canvas.normalize(queries), canvas.normalize(prompts), masks))

  return predict


def _square(image: np.ndarray, size: int) -> np.ndarray:
  interpolation = cv2.INTER_AREA if max(image.shape[:2]) > size else cv2.INTER_LINEAR
  return cv2.resize(image, (size, size), interpolation=interpolation)


def evaluate(predict, sets: dict, size: int, batch: int = 8) -> tuple[float, dict[str, float]]:
  """Returns the mean over sets, and the mean IoU over classes of each set.

  Args:
    predict: function of queries [B, S, S, 3], prompts [B, K, S, S, 3] uint8 and masks [B, K, S, S, 1].
    sets: result of `load`.
    size: side of the pictures in pixels.
    batch: questions that are asked at once.
  """
  rows = {}
  for name, (items, episodes) in sets.items():
    questions = [(episode, c) for episode in episodes for c in episode.classes]
    most = max(len(episode.prompts) for episode in episodes)
    answers = []
    for start in range(0, len(questions), batch):
      part = questions[start : start + batch]
      part = part + [part[0]] * (batch - len(part))
      queries = np.stack([_square(items[e.query][0], size) for e, _ in part])
      shown = [(e.prompts * most)[:most] for e, _ in part]
      prompts = np.stack([np.stack([_square(items[p][0], size) for p in places]) for places in shown])
      masks = np.stack(
        [
          np.stack([_square((items[p][1] == c).astype(np.float32), size) for p in places])
          for places, (_, c) in zip(shown, part, strict=True)
        ]
      )
      answers += list(np.asarray(predict(queries, prompts, masks[..., None]))[..., 0])
    common, union, place = {}, {}, 0
    for episode in episodes:
      label = items[episode.query][1]
      each = [
        cv2.resize(answers[place + n], label.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for n in range(len(episode.classes))
      ]
      place += len(each)
      best, known = np.argmax(each, axis=0), label != 255
      found = np.max(each, axis=0) > 0.5
      for n, c in enumerate(episode.classes):
        a, b = found & (best == n) & known, (label == c) & known
        common[c] = common.get(c, 0) + int((a & b).sum())
        union[c] = union.get(c, 0) + int((a | b).sum())
    rows[name] = float(np.mean([common[c] / max(1, union[c]) for c in common]))
  return float(np.mean(list(rows.values()))), rows
