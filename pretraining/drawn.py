"""Draws tasks of our own families once, so that training only reads them.

  python -m pretraining.drawn runs/drawn.npz --tasks=3000

Out: a file with three prompts and a query for each task. `DrawnTasks` asks for one of the task's classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pretraining.sets import Example
from pretraining.tasks import Tasks
from seggpt_jax.files import write_whole

_PROMPTS = 3


def draw(path: Path, count: int, size: int, seed: int, assets: str = "") -> None:
  """Draws tasks and writes them to an uncompressed npz file.

  Args:
    path: the file to write.
    count: number of tasks.
    size: side of the pictures in pixels.
    seed: of the random streams.
    assets: folder of photographs and cut-outs; "" draws everything.
  """
  tasks = Tasks(size, 4, num_prompts=_PROMPTS, assets=assets)
  images = np.zeros((count, _PROMPTS + 1, size, size, 3), np.uint8)
  labels = np.zeros((count, _PROMPTS + 1, size, size), np.uint8)
  for index in tqdm(range(count), "tasks"):
    prompts, query = tasks.draw(index, np.random.default_rng([seed, index]))
    for place, sample in enumerate([*prompts, query]):
      images[index, place], labels[index, place] = sample["image"], sample["label"]
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, lambda file: np.savez(file, images=images, labels=labels))


class DrawnTasks:
  """Tasks of a file that `draw` wrote, as examples."""

  def __init__(self, path: Path):
    with np.load(path) as file:
      self._images, self._labels = file["images"], file["labels"]

  def draw(self, generator: np.random.Generator, size: int, num_prompts: int) -> Example:
    """Draws an example; see `sets.Corpus.draw`."""
    while True:
      index = int(generator.integers(len(self._images)))
      places = [*generator.permutation(_PROMPTS)[:num_prompts].tolist(), _PROMPTS]
      labels = self._labels[index, places]
      # Prompts that are squares of cells may lack a class that others show.
      kinds = [kind for kind in np.unique(labels) if kind and all((part == kind).sum() >= 5 for part in labels[:-1])]
      if kinds:
        break
    masks = (labels == generator.choice(kinds)).astype(np.float32)
    images = self._images[index, places]
    turn, mirror = int(generator.integers(4)), bool(generator.integers(2))
    pairs = [
      (np.rot90(image[:, ::-1] if mirror else image, turn), np.rot90(mask[:, ::-1] if mirror else mask, turn))
      for image, mask in zip(images, masks, strict=True)
    ]
    images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR) for image, _ in pairs])
    masks = np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST) for _, mask in pairs])
    return Example(images, masks, np.ones(masks.shape, bool))


def main() -> None:
  """Parses flags and draws."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("output", type=Path)
  parser.add_argument("--tasks", type=int, default=3000)
  parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--assets", default="", help="folder of photographs and cut-outs")
  args = parser.parse_args()
  draw(args.output, args.tasks, args.size, args.seed, args.assets)


if __name__ == "__main__":
  main()
