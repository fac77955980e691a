"""Measures training pairs per second, from 1024-pixel images, decoded or as JPEG files, to canvases of 896 x 448.

  python -m benchmarks.pipeline

Each result is the median of several rounds, and the peer's rounds alternate with ours. The peer applies the steps of
the original fine-tuning tool one after another to whole images, with Pillow and NumPy, and colors and normalizes on the
host. The original loader was measured at 9.6 pairs per second and core. Our pipeline has the settings of
configs/base.py.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import app, flags
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks import report
from seggpt_jax import canvas, palette
from seggpt_jax.data import augment as augmentations
from seggpt_jax.data.pairing import Pairing, PairingOptions
from seggpt_jax.data.pipeline import DEVICE_KEYS, SourceTrainingPairs, training_batches
from seggpt_jax.data.sources import CachedSource, FileSource, Sample, Source
from seggpt_jax.data.transforms import TrainingPair
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import folder_layout

_SECONDS = flags.DEFINE_float("seconds", 2.0, "Length of a round in seconds.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of rounds per result.", 1)
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/pipeline.json.")

SIDE, CANVAS, PATCH = 1024, (896, 448), 16
BASE = augmentations.Augmentation(resize=SIDE, flips="both", color=(0.1, 0.1, 0.1), blur=0.5)
EVERYTHING = augmentations.Augmentation(SIDE, (0.5, 2.0), 0.5, "turns", (0.1, 0.1, 0.1), 0.5)


def photographs(count: int) -> list[Sample]:
  """Returns smooth noise with blobs as labels, whose JPEG and PNG files are as large as those of photographs."""
  samples: list[Sample] = []
  for seed in range(count):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (SIDE // 16, SIDE // 16, 3), np.uint8)
    fine = generator.integers(-12, 13, (SIDE, SIDE, 3))
    image = np.clip(cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) + fine, 0, 255).astype(np.uint8)
    label = (cv2.resize(coarse[..., 0], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) > 170).astype(np.uint8)
    samples.append({"image": image, "label": label, "name": str(seed)})
  return samples


def as_files(samples: list[Sample], directory: Path) -> FileSource:
  """Writes samples as JPEG images and PNG labels, and opens them."""
  for kind in ("images", "labels"):
    (directory / kind).mkdir()
  for sample in samples:
    Image.fromarray(sample["image"]).save(directory / "images" / f"{sample['name']}.jpg", quality=90)
    Image.fromarray(sample["label"]).save(directory / "labels" / f"{sample['name']}.png")
  return FileSource(folder_layout(directory), 2, LabelFormat())


def ours(
  source: Source, augmentation: augmentations.Augmentation = BASE, num_threads: int = 0, num_workers: int = 0
) -> Iterator[Any]:
  """Returns the batches of our training pipeline."""
  transform = TrainingPair(CANVAS, PATCH, 2, "black_background", 0.75, 0.0, augmentation)
  pairs = SourceTrainingPairs(source, Pairing(len(source), PairingOptions()), transform)
  return training_batches(pairs, batch_size=1, seed=0, num_threads=num_threads, num_workers=num_workers)


def peer(source: Source) -> Iterator[Any]:
  """Yields pairs made by the steps of the original tool in their order, each on the whole image."""
  generator, square = np.random.default_rng(0), CANVAS[1]

  def vary(sample: Sample, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image = Image.fromarray(sample["image"]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    label = Image.fromarray(sample["label"]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    target = np.zeros((SIDE, SIDE, 3), np.uint8)
    for index, color in enumerate(colors):
      target[np.asarray(label) == index] = color
    images = [image, Image.fromarray(target)]
    for way in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
      if generator.random() < 0.5:
        images = [picture.transpose(way) for picture in images]
    top, left = generator.integers(SIDE - square + 1, size=2).tolist()
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
      images[0] = enhance(images[0]).enhance(generator.uniform(0.9, 1.1))
    images[0] = images[0].filter(ImageFilter.GaussianBlur(generator.uniform(0, 0.5)))
    image, target = (picture.crop((left, top, left + square, top + square)) for picture in images)
    return tuple((np.asarray(p) / 255.0 - canvas.IMAGENET_MEAN) / canvas.IMAGENET_STD for p in (image, target))

  while True:
    colors = palette.sample_palette(generator, 2, "random")
    halves = [vary(source[int(i)], colors) for i in generator.choice(len(source), 2, replace=False)]
    images, targets = (np.concatenate(parts).astype(np.float32) for parts in zip(*halves, strict=True))
    yield {"images": images, "targets": targets, "patch_mask": canvas.random_patch_mask(generator, (56, 28), 0.75)}


def rate(batches: Iterator[Any], seconds: float) -> float:
  """Returns pairs per second."""
  started, count = time.perf_counter(), 0
  while time.perf_counter() - started < seconds:
    next(batches)
    count += 1
  return count / (time.perf_counter() - started)


def compare(pipelines: dict[str, Callable[[], Iterator[Any]]]) -> dict[str, float]:
  """Returns the median rate of each pipeline, with rounds in turn."""
  running = {name: make() for name, make in pipelines.items()}
  for batches in running.values():
    for _ in range(4):
      next(batches)
  rounds = [{name: rate(b, _SECONDS.value) for name, b in running.items()} for _ in range(_ROUNDS.value)]
  return {name: statistics.median(found[name] for found in rounds) for name in running}


def milliseconds(function: Callable[[], Any], repeats: int = 60) -> float:
  """Returns the median milliseconds of a call, whose work can differ each time."""
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    function()
    times.append(time.perf_counter() - started)
  return 1e3 * statistics.median(times)


def parts(samples: list[Sample], files: FileSource) -> dict[str, float]:
  """Returns the milliseconds that each step takes for both samples of a pair, with all transforms."""
  generator, square = np.random.default_rng(0), CANVAS[1]
  cycle = itertools.cycle(samples)

  def only(**values: Any) -> augmentations.Augmentation:
    return augmentations.Augmentation(resize=SIDE, **values)

  cut = augmentations.augment(samples[0], square, generator, only())
  color = only(color=(0.1, 0.1, 0.1))
  steps: dict[str, Callable[[], Any]] = {
    "decode a JPEG image and a PNG label": lambda: files[next(indices)],
    "crop": lambda: augmentations.random_crop(next(cycle), square, generator, only()),
    "crop at a random scale 0.5..2": lambda: augmentations.random_crop(
      next(cycle), square, generator, only(scale=(0.5, 2.0))
    ),
    "crop that holds foreground": lambda: augmentations.random_crop(
      next(cycle), square, generator, only(foreground_crop=1.0)
    ),
    "flips": lambda: augmentations.random_flip(cut, generator, only(flips="both")),
    "right-angle turns": lambda: augmentations.random_turn(cut, generator, only(flips="turns")),
    "brightness, contrast, saturation": lambda: augmentations.random_appearance(cut, generator, color),
    "blur": lambda: augmentations.random_appearance(cut, generator, only(blur=0.5)),
  }
  indices = itertools.cycle(range(len(samples)))
  found = {name: 2 * milliseconds(step) for name, step in steps.items()}
  stack = functools.partial(canvas.stack, cut["image"], cut["image"])
  mask = functools.partial(canvas.random_patch_mask, generator, (56, 28), 0.75)
  colors = functools.partial(palette.sample_palette, generator, 2)
  found["stack, patch mask, palette"] = milliseconds(lambda: (stack(), mask(), colors()))
  return found


def main(argv: list[str]) -> None:
  del argv
  cores = sorted(os.sched_getaffinity(0))
  samples = photographs(16)
  results: dict[str, Any] = {"machine": report.machine(["numpy", "opencv-python-headless", "pillow", "grain"])}
  with tempfile.TemporaryDirectory() as directory:
    files = as_files(samples, Path(directory))
    # Fills the cache before the first round; it is large enough for all samples.
    decoded = CachedSource(files, 2**30)
    for index in range(len(decoded)):
      decoded[index]

    os.sched_setaffinity(0, cores[:1])
    results["pairs_per_second_and_core"] = compare(
      {
        "decoded": lambda: ours(decoded),
        "decoded, every transform on": lambda: ours(decoded, EVERYTHING),
        "JPEG files": lambda: ours(files),
        "peer, decoded": lambda: peer(decoded),
        "peer, JPEG files": lambda: peer(files),
      }
    )
    results["milliseconds_per_pair"] = parts(samples, files)

    os.sched_setaffinity(0, cores)
    ways = {f"{n} threads": {"num_threads": n} for n in (1, 2, 4, 8) if n <= 4 * len(cores)}
    ways |= {f"{n} worker processes": {"num_threads": 1, "num_workers": n} for n in (1, 2, 4) if n <= 2 * len(cores)}
    results["pairs_per_second_on_all_cores"] = {
      kind: {name: compare({name: lambda o=options, s=source: ours(s, **o)})[name] for name, options in ways.items()}
      for kind, source in (("decoded", decoded), ("JPEG files", files))
    }
    batch = next(ours(decoded))
    results["bytes_per_pair"] = {
      "ours": sum(batch[key].nbytes for key in DEVICE_KEYS),
      "peer": sum(value.nbytes for value in next(peer(decoded)).values()),
    }
  show(results)
  if _KEEP.value:
    print(f"written: {report.write('pipeline', results)}")


def show(results: dict[str, Any]) -> None:
  """Prints the results as tables."""
  about = results["machine"]
  print(f"{about['processor']}, {about['cores']} cores\n\npairs per second on one core")
  rates = results["pairs_per_second_and_core"]
  for name, value in rates.items():
    against = rates["peer, JPEG files" if "JPEG" in name else "peer, decoded"]
    print(f"  {name:40s} {value:8.1f}   {value / against:5.1f} x the peer")
  print("\nmilliseconds per pair, and share of all steps with every transform")
  times = results["milliseconds_per_pair"]
  counted = {n: t for n, t in times.items() if n not in ("crop", "crop that holds foreground")}
  for name, value in times.items():
    share = f"{value / sum(counted.values()):6.1%}" if name in counted else ""
    print(f"  {name:40s} {value:8.2f}   {share}")
  print(f"\npairs per second on all {about['cores']} cores")
  for kind, found in results["pairs_per_second_on_all_cores"].items():
    print(f"  {kind}: " + ", ".join(f"{value:.0f} with {name}" for name, value in found.items()))
  sizes = results["bytes_per_pair"]
  print(f"\nbytes per pair to the device: {sizes['ours']:,}, the peer's {sizes['peer']:,}")


if __name__ == "__main__":
  app.run(main)
