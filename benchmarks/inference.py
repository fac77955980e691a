"""Measures images per second, from files to files, against transformers' SegGPT and simpler programs.

  python -m benchmarks.inference --num_queries=64 --num_prompts=2 --split=2

All use the same packaged weights, boards and tiles. Each tile of a query is one ensemble of all tiles of all prompts:
- many: `batch.run` on all queries, like `seggpt infer`,
- single: `Predictor.predict` on one query after the other,
- canvases: the network on whole canvases (`SegGPT.__call__`, jitted), one tile after the other,
- transformers: the same in eager PyTorch, `feature_ensemble=True`.
All read PNG files and write label maps as PNG files; `batch.run` also reads the prompts. They take turns on shares of
the queries, so that a machine that is slower for a while slows all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from PIL import Image
from transformers import SegGptForImageSegmentation

from benchmarks import report
from seggpt_jax import canvas, palette
from seggpt_jax.compilation import jit
from seggpt_jax.data.sources import Sample
from seggpt_jax.inference import batch, tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.model import parameters, torch_files, weights
from seggpt_jax.synthetic.boards import BoardSource

_NUM_QUERIES = flags.DEFINE_integer("num_queries", 64, "Number of images to segment.", 1)
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 2, "Number of prompts per image.", 1)
_SPLIT = flags.DEFINE_integer("split", 2, "Number of tiles along each side.", 1)
_SIZE = flags.DEFINE_integer("size", 192, "Side of the images in pixels.", 8)
_TURNS = flags.DEFINE_integer("turns", 4, "Number of turns of each program.", 1)

_Program = Callable[[list[Path], Path], None]  # writes label maps of images, by their names, to a folder


def one_by_one(segment: Callable[[np.ndarray], np.ndarray]) -> _Program:
  """Returns a program that reads, segments and writes one image after the other."""

  def program(paths: list[Path], folder: Path) -> None:
    folder.mkdir()
    for path in paths:
      labels = segment(np.asarray(Image.open(path).convert("RGB")))
      Image.fromarray(labels.astype(np.uint8)).save(folder / path.name)

  return program


def tiles_of(image: np.ndarray, prompts, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the query's tiles, and images and colored masks of all tiles of the prompts, 0..255."""
  split = _SPLIT.value
  size = split * side, split * side
  images = np.concatenate([tiling.cut(tiling.resize_image(pixels, size), split) for pixels, _ in prompts])
  labels = np.concatenate([tiling.cut(tiling.resize_labels(labels, size), split) for _, labels in prompts])
  return tiling.cut(tiling.resize_image(image, size), split), images, palette.fixed_palette(2)[labels]


def decode_tiles(tiles: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
  """Joins tiles of predicted colors, resizes them and returns the labels."""
  colors = tiling.resize_colors(tiling.join(np.stack(tiles)), size)
  distance = np.linalg.norm(colors[:, :, None].astype(np.float32) - palette.fixed_palette(2), axis=-1)
  return np.argmin(distance, axis=-1)


def on_canvases(model, prompts) -> _Program:
  """Returns a program that runs the jitted network on whole canvases, one tile at a time."""
  config, (graph, params) = model.config, parameters.split(model)
  side = config.canvas_size[1]

  @jit
  def run(params, images, targets):
    images, targets = (canvas.normalize(x, config.image_mean, config.image_std) for x in (images, targets))
    mask = jnp.broadcast_to(canvas.lower_half_mask(config.grid), (len(images), *config.grid))
    predicted = parameters.merge(graph, params)(images, targets, mask, prompts_per_query=len(images))
    return jnp.round(canvas.unnormalize(predicted[0, side:], config.image_mean, config.image_std)).astype(jnp.uint8)

  def segment(query):
    tiles, images, targets = tiles_of(query, prompts, side)
    targets = np.concatenate([targets, np.zeros_like(targets)], axis=1)
    stacked = (np.concatenate([images, np.broadcast_to(tile, images.shape)], axis=1) for tile in tiles)
    return decode_tiles([np.asarray(run(params, images, targets)) for images in stacked], query.shape[:2])

  return one_by_one(segment)


def in_torch(model, prompts) -> _Program:
  """Returns a program that runs transformers' network with the same weights, one tile at a time."""
  config, side = model.config, model.config.canvas_size[1]
  with tempfile.TemporaryDirectory() as folder:
    params = {name: np.array(value) for name, value in parameters.split(model)[1].items()}
    torch_files.write(Path(folder) / "hf", params, config, "hf")
    theirs = SegGptForImageSegmentation.from_pretrained(Path(folder) / "hf").eval()
  mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (config.image_mean, config.image_std))

  def normalized(pixels):
    return (torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255 - mean) / std

  @torch.no_grad()
  def predict(tile, images, targets):
    query = normalized(np.broadcast_to(tile, images.shape))
    predicted = theirs(
      pixel_values=query,
      prompt_pixel_values=normalized(images),
      prompt_masks=normalized(targets),
      feature_ensemble=True,
      embedding_type="semantic",  # the default is "instance"
    ).pred_masks[0, :, side:]
    return torch.round((predicted * std[0] + mean[0]).clip(0, 1) * 255).byte().permute(1, 2, 0).numpy()

  def segment(query):
    tiles, images, targets = tiles_of(query, prompts, side)
    return decode_tiles([predict(tile, images, targets) for tile in tiles], query.shape[:2])

  return one_by_one(segment)


def in_batches(predictor: Predictor, prompts: tuple[PromptFiles, ...]) -> _Program:
  """Returns the program that `seggpt infer` runs."""
  options = InferenceOptions(_SPLIT.value)

  def program(paths, folder):
    queries = [Query(path.stem, path, None, prompts) for path in paths]
    batch.run(predictor, queries, folder, options=options, kinds=["label"])

  return program


def write_images(samples: Sequence[Sample], folder: Path) -> list[Path]:
  """Writes the images of samples as PNG files and returns their paths."""
  paths = [folder / f"{index:04d}.png" for index in range(len(samples))]
  for path, sample in zip(paths, samples, strict=True):
    Image.fromarray(sample["image"]).save(path)
  return paths


def write_prompts(prompts: Sequence[tuple[np.ndarray, np.ndarray]], folder: Path) -> tuple[PromptFiles, ...]:
  """Writes images and label maps of prompts as PNG files."""
  files = tuple(PromptFiles(folder / f"p{n}.png", folder / f"p{n}_label.png") for n in range(len(prompts)))
  for paths, (image, label) in zip(files, prompts, strict=True):
    Image.fromarray(image).save(paths.image)
    Image.fromarray(label.astype(np.uint8)).save(paths.labels)
  return files


def main(_: list[str]) -> None:
  source = BoardSource(_NUM_QUERIES.value + _NUM_PROMPTS.value, 0, size=_SIZE.value, scale=3.0, labels="etched")
  samples = [source[index] for index in range(len(source))]
  prompts = [(sample["image"], sample["label"]) for sample in samples[: _NUM_PROMPTS.value]]
  model = weights.load_model("drawn")
  predictor = Predictor(model)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    paths = write_images(samples[_NUM_PROMPTS.value :], folder)
    programs: dict[str, _Program] = {
      "many": in_batches(predictor, write_prompts(prompts, folder)),
      "single": one_by_one(lambda image: predictor.predict(image, prompts, split=_SPLIT.value).labels),
      "canvases": on_canvases(model, prompts),
      "transformers": in_torch(model, prompts),
    }
    for key, program in programs.items():
      program(paths[:2], folder / f"{key}_warm")  # compiles
    seconds, labels = dict.fromkeys(programs, 0.0), {key: {} for key in programs}
    for turn, share in enumerate(np.array_split(np.arange(len(paths)), _TURNS.value)):
      for key, program in programs.items():
        out = folder / f"{key}_{turn}"
        start = time.perf_counter()
        program([paths[index] for index in share], out)
        seconds[key] += time.perf_counter() - start
        found = out / "label" if key == "many" else out
        labels[key] |= {path.name: np.asarray(Image.open(path)) for path in sorted(found.glob("*.png"))}
  rates = {key: len(paths) / spent for key, spent in seconds.items()}
  differ = {}
  for key in programs:
    differ[key] = float(np.mean([np.mean(labels["many"][path.name] != labels[key][path.name]) for path in paths]))
    faster = f"many is {rates['many'] / rates[key]:4.2f} x"
    print(f"{key:<13}{rates[key]:7.2f} images/s   {faster}   labels differ in {differ[key]:.4%} of pixels")
  results = {"machine": report.machine(["jax", "torch", "transformers"]), "images_per_second": rates, "differ": differ}
  arguments = {flag.name: flag.value for flag in (_NUM_QUERIES, _NUM_PROMPTS, _SPLIT, _SIZE)}
  print(f"written: {report.write('inference', {'arguments': arguments, **results})}")


if __name__ == "__main__":
  app.run(main)
