r"""Measures what the packaged networks find on real pictures from one prompt and from five, without any training.

  python -m benchmarks.real_pictures FOLDER... --output real_pictures.png

A FOLDER holds SET/{images,labels}: images, and label maps of class indices (0 is the rest, 255 unknown). Each set is
asked 24 fixed questions (`pretraining.judge.choose_episodes`): a query, and a prompt of the same set that shares a
class with it. All classes of the prompt are asked at once. The score is the IoU over all pixels of a class, averaged
over the classes; prompts of more than one picture are random ones that show the class.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from pretraining import judge
from seggpt_jax.inference import heads
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.palette import IGNORE

_FOREST_PIXELS = 2000  # of each class

Answer = Callable[[np.ndarray, Sequence[tuple[np.ndarray, np.ndarray]]], np.ndarray]


def copied(image: np.ndarray, prompts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
  """Answers with the first prompt's mask."""
  height, width = image.shape[:2]
  return cv2.resize(prompts[0][1], (width, height), interpolation=cv2.INTER_NEAREST)


def forest(image: np.ndarray, prompts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
  """Answers with a forest of 50 trees on the texture of the first prompt's pixels, as ilastik does."""
  (shown, labels), generator = heads.shrunk(*prompts[0]), np.random.default_rng(0)
  chosen = [np.flatnonzero(labels == index) for index in np.unique(labels) if index != IGNORE]
  places = np.concatenate([generator.choice(each, min(len(each), _FOREST_PIXELS), replace=False) for each in chosen])
  trees = RandomForestClassifier(50, min_samples_leaf=2, random_state=0)
  trees.fit(_texture(shown)[places], labels.reshape(-1)[places])
  small, _ = heads.shrunk(image, np.zeros(image.shape[:2], np.uint8))
  found = trees.predict(_texture(small)).reshape(small.shape[:2])
  return cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _texture(image: np.ndarray) -> np.ndarray:
  maps = [cv2.resize(each, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) for each in heads.texture(image)]
  return np.concatenate(maps, axis=-1).reshape(image.shape[0] * image.shape[1], -1)


def head_alone(image: np.ndarray, prompts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
  """Answers with the linear head that is fitted to the first prompt, without the network."""
  head = heads.fit(prompts[:1])
  logits = head.logits(heads.describe(image))
  found = np.where(logits.max(axis=-1) > 0, np.asarray(head.classes, np.uint8)[logits.argmax(axis=-1)], np.uint8(0))
  return cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def network(name: str, count: int, **options) -> Answer:
  """Returns an answer by a packaged network with the first `count` prompts."""
  predictor = functools.cache(lambda: Predictor.from_checkpoint(name))
  return lambda image, prompts: predictor().predict(image, prompts[:count], **options).labels


def methods() -> dict[str, Answer]:
  """Returns the columns of the table."""
  return {
    "copying the mask": copied,
    "forest on texture": forest,
    "head alone": head_alone,
    "drawn": network("drawn", 1, head="off"),
    "small without head": network("small", 1, head="off"),
    "small": network("small", 1),
    "small, 5 prompts": network("small", 5),
  }


def ask(items, episode: judge.Episode, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
  """Returns the true and the found labels of an episode; classes are numbered as they are asked."""

  def renumbered(label: np.ndarray) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[episode.classes] = np.arange(1, len(episode.classes) + 1)
    table[255] = 255
    return table[label]

  prompts = [(items[place][0], renumbered(items[place][1])) for place in episode.prompts]
  return renumbered(items[episode.query][1]), answer(items[episode.query][0], prompts)


def measure(
  folder: Path, answers: dict[str, Answer], count: int
) -> tuple[dict[str, dict[str, float]], list[np.ndarray]]:
  """Returns the score of each set by each answer, and a row of pictures for each set."""
  table, rows = {}, []
  for name, (items, episodes) in judge.load(folder, count, 5).items():
    scores, row = {}, []
    for column, answer in answers.items():
      common, union, start = {}, {}, time.perf_counter()
      for number, episode in enumerate(episodes):
        truth, found = ask(items, episode, answer)
        for place, c in enumerate(episode.classes, 1):
          a, b = (found == place) & (truth != 255), truth == place
          common[c] = common.get(c, 0) + int((a & b).sum())
          union[c] = union.get(c, 0) + int((a | b).sum())
        if number == 0:
          row.append(_overlay(items[episode.query][0], found))
      scores[column] = float(np.mean([common[c] / max(1, union[c]) for c in common]))
      print(f"{name}, {column}: {scores[column]:.3f} ({time.perf_counter() - start:.0f} s)", flush=True)
    truth, _ = ask(items, episodes[0], copied)
    first = items[episodes[0].prompts[0]]
    shown = np.isin(first[1], episodes[0].classes) * np.searchsorted(episodes[0].classes, first[1]) + np.isin(
      first[1], episodes[0].classes
    )
    row = [_overlay(first[0], shown), _overlay(items[episodes[0].query][0], truth), *row]
    rows.append(np.concatenate(row, axis=1))
    table[name] = scores
  return table, rows


def _overlay(image: np.ndarray, labels: np.ndarray, side: int = 160) -> np.ndarray:
  """Draws labels over an image, as a square."""
  from seggpt_jax import palette
  from seggpt_jax.inference import pictures

  drawn = pictures.overlay(image, np.where(labels == 255, 0, labels).astype(np.uint8), palette.display_palette(8), 0.6)
  return cv2.resize(drawn, (side, side), interpolation=cv2.INTER_AREA)


def main() -> None:
  """Parses flags, prints a table and writes a picture."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folders", nargs="+", type=Path)
  parser.add_argument("--output", type=Path, help="picture with a row for each set: prompt, truth, then the columns")
  parser.add_argument("--results", type=Path, help="JSON file for the scores")
  parser.add_argument("--columns", nargs="+", help="measure only these columns, by their names")
  parser.add_argument("--episodes", type=int, default=24, help="questions of each set")
  args = parser.parse_args()
  answers = {name: answer for name, answer in methods().items() if not args.columns or name in args.columns}
  table, rows = {}, []
  for folder in args.folders:
    found, pictures = measure(folder, answers, args.episodes)
    table |= found
    rows += pictures
  print("\n| set | " + " | ".join(answers) + " |\n|---" * 1 + "|---" * len(answers) + "|")
  for name, scores in table.items():
    print(f"| {name} | " + " | ".join(f"{scores[column]:.3f}" for column in answers) + " |")
  means = {column: float(np.mean([scores[column] for scores in table.values()])) for column in answers}
  print("| **mean** | " + " | ".join(f"**{means[column]:.3f}**" for column in answers) + " |")
  if args.output:
    Image.fromarray(np.concatenate(rows)).save(args.output)
  if args.results:
    args.results.write_text(json.dumps({"sets": table, "mean": means}, indent=2) + "\n")


if __name__ == "__main__":
  main()
