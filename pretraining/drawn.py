"""Draws tasks of our own families once, so that training only reads them.

  python -m pretraining.drawn runs/drawn.npz --tasks=3000

Out: a file with a prompt and a query for each task. `DrawnTasks` asks for one of the task's classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pretraining.sets import Example
from pretraining.tasks import all_families, choose_family, draw_task
from seggpt_jax.files import write_whole


def draw(path: Path, count: int, size: int, seed: int, assets: str = "") -> None:
  """Draws tasks and writes them to an uncompressed npz file.

  Args:
    path: the file to write.
    count: number of tasks.
    size: side of the pictures in pixels.
    seed: of the random streams.
    assets: folder of photographs and cut-outs; "" draws everything.
  """
  families = all_families(assets)
  images, labels = np.zeros((count, 2, size, size, 3), np.uint8), np.zeros((count, 2, size, size), np.uint8)
  for index in tqdm(range(count), "tasks"):
    generator = np.random.default_rng([seed, index])
    difficulty = generator.random() ** 0.5
    family = families[choose_family(generator, families, difficulty)]
    task = draw_task(family, generator, size, difficulty, num_classes=4)
    images[index], labels[index] = (task[0], task[2]), (task[1], task[3])
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, lambda file: np.savez(file, images=images, labels=labels))


class DrawnTasks:
  """Tasks of a file that `draw` wrote, as examples."""

  def __init__(self, path: Path):
    with np.load(path) as file:
      self._images, self._labels = file["images"], file["labels"]

  def draw(self, generator: np.random.Generator, size: int) -> Example:
    """Draws an example with one prompt; see `sets.Corpus.draw`."""
    while True:
      index = int(generator.integers(len(self._images)))
      labels = self._labels[index]
      # A prompt that is a square of cells may lack a class.
      kinds = [kind for kind in np.unique(labels) if kind and (labels[0] == kind).sum() >= 5]
      if kinds:
        break
    masks = (labels == generator.choice(kinds)).astype(np.float32)
    images = self._images[index]
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
