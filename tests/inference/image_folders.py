"""Folders of queries and prompts as users have them, and functions that run the command on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from seggpt_jax.inference import queries
from tests.commands import seggpt

SIZES = {"a": (31, 45), "b": (64, 20), "c": (33, 33)}  # height and width of the queries


def write(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def make_folders(directory: Path) -> Path:
  """Writes three queries, the last one without a label, and three prompts of three classes."""
  generator = np.random.default_rng(0)

  def picture(*size):
    return generator.integers(0, 256, (*size, 3), np.uint8)

  for name, size in SIZES.items():
    write(directory / "data" / "images" / f"{name}.png", picture(*size))
    if name != "c":
      write(directory / "data" / "labels" / f"{name}.png", generator.integers(0, 3, size, np.uint8))
  for name in ("p", "q", "r"):
    write(directory / "prompts" / "images" / f"{name}.png", picture(40, 50))
    write(directory / "prompts" / "labels" / f"{name}.png", generator.integers(0, 3, (40, 50), np.uint8))
  return directory


def find(folders, **options):
  prompts = folders / "prompts"
  return queries.list_queries(folders / "data", prompts / "images", prompts / "labels", **options)


def write_mapping(folders, mapping):
  path = folders / "mapping.json"
  path.write_text(mapping if isinstance(mapping, str) else json.dumps(mapping))
  return path


def infer(folders, *options):
  """Runs the command with flags and --outdir."""
  return seggpt("infer", "--outdir", folders / "out", *options, cwd=folders)


def command(folders, weights_directory, *options):
  """Runs the command on the dataset, with the folders of prompts."""
  prompts = folders / "prompts"
  return infer(
    folders,
    *("--model-path", weights_directory, "--dataset-dir", folders / "data"),
    *("--prompt-img-dir", prompts / "images", "--prompt-label-dir", prompts / "labels", *options),
  )
