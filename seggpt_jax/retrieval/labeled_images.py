"""Labeled images that can be prompts: where they are and which classes they show, without a network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from tqdm import tqdm

from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import read_bytes
from seggpt_jax.formats.labels import IGNORE, LabelFormat, classes_in, read_labels
from seggpt_jax.inference.queries import PromptFiles, list_pair


class Facts(NamedTuple):
  """Contents of N labeled images."""

  digests: list[str]  # digest of each image file, which is the same for copies
  holds: Bool[np.ndarray, "n classes"]  # whether each label holds each class; column 0, the background, is always False


def list_prompts(prompt_img_dir: str | os.PathLike, prompt_label_dir: str | os.PathLike) -> list[PromptFiles]:
  """Returns the labeled images of two folders, by name, also those in folders below.

  Raises:
    InputError: a folder is missing or empty, or an image has no label.
  """
  images, labels = list_pair(prompt_img_dir, prompt_label_dir)
  for name, path in images.items():
    if name not in labels:
      raise InputError(f"{path}: found no label for it, expected {Path(prompt_label_dir) / name}.*")
  return [PromptFiles(path, labels[name], name) for name, path in images.items()]


def read_facts(files: Sequence[PromptFiles], labels: LabelFormat) -> Facts:
  """Reads the contents of labeled images.

  Raises:
    InputError: a file cannot be read.
  """

  def read(prompt: PromptFiles) -> tuple[str, np.ndarray]:
    return digest(read_bytes(prompt.image)), held_classes(read_labels(prompt.labels, labels))

  results = (future.result() for _, future in read_ahead(read, files))
  found = list(tqdm(results, "read", len(files), unit="image", delay=1))
  return Facts([name for name, _ in found], np.stack([held for _, held in found]))


def digest(data: bytes) -> str:
  """Returns a hash that identifies the content of a file."""
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def held_classes(label: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "classes"]:
  """Returns whether a label map holds each class; False for the background."""
  held = np.zeros(IGNORE, bool)
  held[list(classes_in(label))] = True
  return held


def foreground_shares(label: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> Float[np.ndarray, "rows cols"]:
  """Returns the share of each patch's area that holds a class, 0 to 1; ignored pixels hold none."""
  foreground = ((label > 0) & (label != IGNORE)).astype(np.float32)
  rows, cols = grid
  # Averages areas instead of picking pixels, so that a region smaller than a patch still counts.
  return np.asarray(Image.fromarray(foreground).resize((cols, rows), Image.Resampling.BOX))
