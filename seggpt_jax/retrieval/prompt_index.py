"""Labeled images that can be searched for the prompts that suit a query.

In: image and label files, and the network whose encoder compares them. Out: a `PromptIndex`, which scores every prompt
for an image. Features of labeled images are computed once: they are kept in a file for each network and folder, and of
a file that changes, or is new, they are computed anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from tqdm import tqdm

from seggpt_jax.data.images import decode_image, list_images, read_bytes
from seggpt_jax.data.labels import IGNORE, LabelFormat, classes_in, read_labels
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError
from seggpt_jax.inference import tiling
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.retrieval.feature_cache import StoredFeatures, place_of, read_features, stamp_of, write_features
from seggpt_jax.retrieval.features import Encoder, Features, in_blocks, normalized, presence
from seggpt_jax.retrieval.ranking import most_relevant

# What did best on synthetic boards with the packaged weights (docs/inference.md); taps 1 to 3 and weights up to 0.1 are
# hardly apart, the last tap and larger weights are worse.
TAP, FOREGROUND_WEIGHT = 2, 0.1
_LEAST_SPREAD = 1e-6  # of images that are all the same


class Match(NamedTuple):
  """A prompt for a query.

  Attributes:
    files: of the prompt.
    score: the larger the better; 1 at most.
  """

  files: PromptFiles
  score: float


class Facts(NamedTuple):
  """What is known of N labeled images, beside their features.

  Attributes:
    digests: of the image files, by which copies are known.
    holds: which classes a label holds; column 0, the background's, stays False.
  """

  digests: list[str]
  holds: Bool[np.ndarray, "n classes"]


def list_prompts(prompt_img_dir: str | os.PathLike, prompt_label_dir: str | os.PathLike) -> list[PromptFiles]:
  """The labeled images of two folders, by name.

  Raises:
    InputError: a folder is missing or empty, or an image has no label.
  """
  images, labels = list_images(prompt_img_dir), list_images(prompt_label_dir)
  for name, path in images.items():
    if name not in labels:
      raise InputError(f"{path}: found no label for it, expected {Path(prompt_label_dir) / name}.*")
  return [PromptFiles(Path(path), Path(labels[name])) for name, path in images.items()]


def digest(data: bytes) -> str:
  """By which files of the same content are known."""
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_facts(files: Sequence[PromptFiles], labels: LabelFormat) -> Facts:
  """What is known of labeled images without a network.

  Raises:
    InputError: a file cannot be read.
  """

  def read(prompt: PromptFiles) -> tuple[str, np.ndarray]:
    return digest(read_bytes(prompt.image)), holds_in(read_labels(prompt.labels, labels))

  coming = (future.result() for _, future in read_ahead(read, files))
  found = list(tqdm(coming, "read", len(files), unit="image"))
  return Facts([name for name, _ in found], np.stack([held for _, held in found]))


def holds_in(label: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "classes"]:
  """Which classes a label map holds; the background's place stays False."""
  held = np.zeros(IGNORE, bool)
  held[list(classes_in(label))] = True
  return held


def foreground_shares(label: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> Float[np.ndarray, "rows cols"]:
  """What share of each patch holds a class; ignored pixels hold none."""
  foreground = ((label > 0) & (label != IGNORE)).astype(np.float32)
  rows, cols = grid
  # Areas, not pixels of a smaller label map: what is smaller than a pixel there still counts.
  return np.asarray(Image.fromarray(foreground).resize((cols, rows), Image.Resampling.BOX))


class PromptIndex:
  """Labeled images and how they compare with others; see `build`.

  A prompt's score for a query is `(1 - w) * likeness + w * presence`. Likeness is the cosine of the two images'
  features, scaled: 1 for the same image, 0 for what two labeled images have on average. Presence is how well the
  prompt's foreground is found in the query, a cosine after subtraction of the labeled images' mean. Images without
  foreground are no prompts and are never found.

  Attributes:
    files: of the labeled images.
    facts: what they hold.
  """

  def __init__(
    self,
    encoder: Encoder,
    files: Sequence[PromptFiles],
    facts: Facts,
    images: Float[np.ndarray, "n d"],
    foregrounds: Float[np.ndarray, "n d"],
    foreground_weight: float | int = FOREGROUND_WEIGHT,
  ):
    self.encoder, self.files, self.facts = encoder, list(files), facts
    self._weight, self._mean = foreground_weight, images.mean(axis=0)
    self._images = np.asarray(normalized(images))
    # The mean cosine of all pairs is the square of the mean's length: no table of pairs.
    self._spread = max(1.0 - float(np.sum(self._images.mean(axis=0) ** 2)), _LEAST_SPREAD)
    # Those of images without foreground mean nothing, but these are never found.
    self._foregrounds = jnp.asarray(in_blocks(np.asarray(normalized(foregrounds - self._mean))))

  @classmethod
  def build(
    cls,
    model: SegGPT,
    files: Sequence[PromptFiles],
    labels: LabelFormat | None = None,
    *,
    cache: str | os.PathLike | None = None,
    tap: int = TAP,
    foreground_weight: float | int = FOREGROUND_WEIGHT,
  ) -> PromptIndex:
    """Encodes labeled images, but for those whose features are known.

    Args:
      model: the network.
      files: the labeled images.
      labels: how label files are read; as class indices by default.
      cache: folder in which features are kept; None keeps none.
      tap: of the network's feature taps, 1 for the first.
      foreground_weight: w of the score, 0..1.

    Raises:
      InputError: there are no files, one cannot be read, the network has no such tap, or the kept features are damaged.
    """
    if not files:
      raise InputError("prompts: found none, expected at least one image with its label")
    encoder, labels = Encoder(model, tap), labels or LabelFormat()
    # One file for each network and folder: another data set is neither read nor written with it.
    name = digest(f"{encoder.identity} {os.path.dirname(place_of(files[0]))}".encode())
    path = None if cache is None else Path(cache) / f"{name}.npz"
    kept = {} if path is None or not path.exists() else read_features(path)
    stamps = {place_of(prompt): stamp_of(prompt, labels) for prompt in files}
    known = {place: entry for place, entry in kept.items() if stamps.get(place) == entry.stamp}
    missing = [prompt for prompt in files if place_of(prompt) not in known]
    try:
      for prompt, entry in _encode(encoder, missing, labels, stamps):
        known[place_of(prompt)] = entry
    finally:
      # What was computed before an error or Ctrl-C need not be computed again.
      if path is not None and missing and known:
        others = {place: entry for place, entry in kept.items() if place not in stamps and os.path.exists(place)}
        write_features(path, others | known)
    entries = [known[place_of(prompt)] for prompt in files]
    facts = Facts([entry.digest for entry in entries], np.stack([entry.holds for entry in entries]))
    images, foregrounds = (np.stack([getattr(entry, key) for entry in entries]) for key in ("image", "foreground"))
    return cls(encoder, files, facts, images, foregrounds, foreground_weight)

  def likeness_to(self, index: int) -> Float[np.ndarray, "n"]:
    """Of every labeled image to one of them."""
    return self._likeness(self._images[index])

  def _likeness(self, image: Float[np.ndarray, "d"]) -> Float[np.ndarray, "n"]:
    """Of every labeled image to one with this feature, which is of length 1."""
    return 1.0 - (1.0 - self._images @ image) / self._spread

  def scores(self, features: Features) -> Float[np.ndarray, "b n"]:
    """Of every labeled image for a batch of queries."""
    likeness = np.stack([self._likeness(image) for image in np.asarray(normalized(features.image))])
    if self._weight == 0:
      return likeness
    found = np.asarray(presence(features.patches, self._foregrounds, self._mean))[:, : len(self.files)]
    return (1.0 - self._weight) * likeness + self._weight * found

  def score_many(self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Iterator[Float[np.ndarray, "n"]]:
    """`scores` of any number of queries, a batch at a time.

    Args:
      images: of any size; a generator may as well read them from files.

    Yields:
      The scores of all labeled images for each of them.
    """
    batch: list[np.ndarray] = []
    for image in images:
      batch.append(tiling.resize_image(image, self.encoder.size))
      if len(batch) == self.encoder.batch_size:
        yield from self.scores(self.encoder(np.stack(batch)))
        batch = []
    if batch:
      yield from self.scores(self.encoder(np.stack(batch)))

  def nearest(self, image: UInt8[np.ndarray, "h w 3"], top_k: int = 1, diversity: float | int = 0.0) -> list[Match]:
    """The prompts that suit an image.

    Args:
      image: the query, of any size.
      top_k: the most prompts.
      diversity: 0..1, see `prompt_choice.most_relevant`.

    Returns:
      Best first.
    """
    (scores,) = self.score_many([image])
    candidates = self.facts.holds.any(axis=1)
    chosen = most_relevant(scores, candidates, top_k, diversity, self.likeness_to)
    return [Match(self.files[index], float(scores[index])) for index in chosen]


def _encode(
  encoder: Encoder, files: Sequence[PromptFiles], labels: LabelFormat, stamps: dict[str, str]
) -> Iterator[tuple[PromptFiles, StoredFeatures]]:
  """Reads and encodes labeled images, with a bar."""

  def read(prompt: PromptFiles) -> tuple[np.ndarray, np.ndarray, str, np.ndarray]:
    data = read_bytes(prompt.image)
    image, label = decode_image(data, str(prompt.image)), read_labels(prompt.labels, labels)
    check_size(label, image.shape[:2], str(prompt.labels))
    shares = foreground_shares(label, encoder.grid)
    return tiling.resize_image(image, encoder.size), shares, digest(data), holds_in(label)

  bar = tqdm(total=len(files), desc="encode prompts", unit="image", disable=not files)
  coming = (future.result() for _, future in read_ahead(read, files, ahead=2 * encoder.batch_size))
  with bar:
    for start in range(0, len(files), encoder.batch_size):
      batch = files[start : start + encoder.batch_size]
      images, shares, digests, holds = zip(*(next(coming) for _ in batch), strict=True)
      found = encoder(np.stack(images), np.stack(shares))
      features = (np.asarray(found.image), np.asarray(found.foreground))
      for prompt, name, held, image, foreground in zip(batch, digests, holds, *features, strict=True):
        yield prompt, StoredFeatures(stamps[place_of(prompt)], name, held, image, foreground)
        bar.update()
