"""Finds the labeled images that suit a query best as prompts.

In: image and label files, and the network whose encoder compares images. Out: a `PromptIndex`, which scores every
labeled image for a query. Features of labeled images are kept in a cache file for each network and folder. They are
computed again only for new and changed files.
"""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import write_whole
from seggpt_jax.formats.images import decode_image, file_stamp, read_bytes
from seggpt_jax.formats.labels import LabelFormat, check_size, read_labels
from seggpt_jax.inference import tiling
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.retrieval.features import Encoder, Features, in_blocks, normalized, presence
from seggpt_jax.retrieval.labeled_images import Facts, digest, foreground_shares, held_classes

# The best values on synthetic boards with the packaged weights (docs/retrieval.md). Taps 1 to 3 and weights up to 0.1
# differ little; the last tap and larger weights are worse.
TAP, FOREGROUND_WEIGHT = 2, 0.1
_MIN_SPREAD = 1e-6  # avoids a division by zero if all images are the same


class Match(NamedTuple):
  """A prompt that was found for a query."""

  files: PromptFiles  # image and label of the prompt
  score: float  # similarity to the query, at most 1; larger is better


class PromptIndex:
  """Labeled images with their features, made by `build`.

  The score of a prompt for a query is `(1 - w) * similarity + w * presence`, with w = `FOREGROUND_WEIGHT`. Similarity
  is the cosine of the images' features, scaled to 1 for the same image and 0 for the average pair of labeled images.
  Presence says how well the prompt's foreground is found in the query; it is a cosine of features less the labeled
  images' mean. Images without foreground are never found.

  Attributes:
    encoder: network that computes features.
    files: image and label files of the labeled images.
    facts: contents of the labeled images.
  """

  def __init__(
    self,
    encoder: Encoder,
    files: Sequence[PromptFiles],
    facts: Facts,
    images: Float[np.ndarray, "n d"],
    foregrounds: Float[np.ndarray, "n d"],
  ):
    self.encoder, self.files, self.facts = encoder, list(files), facts
    self._mean = images.mean(axis=0)
    self._images = _of_length_1(images)
    # The mean cosine of all pairs is the squared length of the mean, so no table of pairs is needed.
    self._spread = max(1.0 - float(np.sum(self._images.mean(axis=0) ** 2)), _MIN_SPREAD)
    # Features of an absent foreground mean nothing, but images without foreground are never found.
    self._foregrounds = jnp.asarray(in_blocks(_of_length_1(foregrounds - self._mean)))

  @classmethod
  def build(
    cls,
    model: SegGPT | Encoder,
    files: Sequence[PromptFiles],
    labels: LabelFormat | None = None,
    *,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
  ) -> PromptIndex:
    """Encodes labeled images, except those whose features are in the cache.

    Args:
      model: the network, whose second feature tap is compared, or else its only one; or an encoder.
      files: image and label files of the labeled images.
      labels: format of the label files; class indices by default.
      cache: folder in which features are kept; None to keep none.
      progress: whether a progress bar is shown.

    Raises:
      InputError: there are no files, a file cannot be read, or the cache is damaged.
    """
    if not files:
      raise InputError("prompts: found none, expected at least one image with its label")
    labels = labels or LabelFormat()
    encoder = model if isinstance(model, Encoder) else Encoder(model, min(TAP, len(model.config.feature_taps)))
    # One file for each network and folder, so that the features of one dataset are not rewritten with another's.
    folder = os.path.dirname(os.path.abspath(files[0].image))
    name = digest(f"{encoder.identity} {folder}".encode(errors="surrogatepass"))
    path = None if cache is None else Path(cache) / f"{name}.npz"
    kept = {} if path is None or not path.exists() else _read_features(path)
    keys = [_cache_key(prompt, labels) for prompt in files]
    known = {key: kept[key] for key in keys if key in kept}
    missing = {key: prompt for key, prompt in zip(keys, files, strict=True) if key not in kept}
    found = _encode(encoder, list(missing.values()), labels)
    bar = tqdm(found, "encode prompts", len(missing), unit="image", disable=not (missing and progress))
    try:
      for entry, key in zip(bar, missing, strict=True):
        known[key] = entry
    finally:
      # Also after an error or Ctrl-C, so that finished work is not repeated.
      if path is not None and missing and known:
        images = {_image_of(key) for key in keys}
        others = {key: each for key, each in kept.items() if _image_of(key) not in images}
        _write_features(path, {key: each for key, each in others.items() if os.path.exists(_image_of(key))} | known)
    entries = [known[key] for key in keys]
    facts = Facts([entry.digest for entry in entries], np.stack([entry.holds for entry in entries]))
    images, foregrounds = (np.stack([getattr(entry, key) for entry in entries]) for key in ("image", "foreground"))
    return cls(encoder, files, facts, images, foregrounds)

  def scores(self, features: Features) -> Float[np.ndarray, "b n"]:
    """Returns the score of every labeled image for each query of a batch."""
    cosines = np.stack([self._images @ image for image in np.asarray(normalized(features.image))])
    similarity = 1.0 - (1.0 - cosines) / self._spread
    found = np.asarray(presence(features.patches, self._foregrounds, self._mean))[:, : len(self.files)]
    return (1.0 - FOREGROUND_WEIGHT) * similarity + FOREGROUND_WEIGHT * found

  def score_many(self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Iterator[Float[np.ndarray, "n"]]:
    """Scores any number of queries, a batch at a time.

    Args:
      images: queries of any size; a generator can read them from files.

    Yields:
      The scores of all labeled images for each query.
    """
    resized = (tiling.resize_image(image, self.encoder.size) for image in images)
    while batch := list(itertools.islice(resized, self.encoder.batch_size)):
      yield from self.scores(self.encoder(np.stack(batch)))

  def nearest(self, image: UInt8[np.ndarray, "h w 3"], top_k: int = 1) -> list[Match]:
    """Returns the prompts that suit an image best, best first."""
    (scores,) = self.score_many([image])
    chosen = best_of(scores, self.facts.holds.any(axis=1), top_k)
    return [Match(self.files[index], float(scores[index])) for index in chosen]


def best_of(scores: Float[np.ndarray, "n"], candidates: Bool[np.ndarray, "n"], top_k: int) -> list[int]:
  """Returns the indices of the candidates with the highest scores, best first; the first of several equal ones."""
  allowed = np.flatnonzero(candidates)
  return allowed[np.argsort(-scores[allowed], kind="stable")[:top_k]].tolist()


def _of_length_1(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  """Returns `features.normalized` of vectors in NumPy, as JAX would compile it for every number of labeled images."""
  return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _encode(encoder: Encoder, files: Sequence[PromptFiles], labels: LabelFormat) -> Iterator[_StoredFeatures]:
  """Reads and encodes labeled images."""

  def read(prompt: PromptFiles) -> tuple[np.ndarray, np.ndarray, str, np.ndarray]:
    data = read_bytes(prompt.image)
    image, label = decode_image(data, str(prompt.image)), read_labels(prompt.labels, labels)
    check_size(label, image.shape[:2], str(prompt.labels))
    shares = foreground_shares(label, encoder.grid)
    return tiling.resize_image(image, encoder.size), shares, digest(data), held_classes(label)

  coming = (future.result() for _, future in read_ahead(read, files, ahead=2 * encoder.batch_size))
  while batch := list(itertools.islice(coming, encoder.batch_size)):
    images, shares, digests, holds = zip(*batch, strict=True)
    found = encoder(np.stack(images), np.stack(shares))
    yield from map(_StoredFeatures, digests, holds, np.asarray(found.image), np.asarray(found.foreground))


class _StoredFeatures(NamedTuple):
  """The cached entry of a labeled image."""

  digest: str
  holds: np.ndarray
  image: np.ndarray
  foreground: np.ndarray


def _cache_key(prompt: PromptFiles, labels: LabelFormat) -> str:
  """Returns the key of a labeled image's entry, which differs if the image, the label or the label format changes."""
  image, label = (os.path.abspath(path) for path in (prompt.image, prompt.labels))
  return "\n".join((image, label, file_stamp(image), file_stamp(label), repr(labels)))


def _image_of(key: str) -> str:
  """Returns the image that a key stands for."""
  return key.partition("\n")[0]


def _write_features(path: Path, kept: dict[str, _StoredFeatures]) -> None:
  """Writes entries by their keys."""
  columns = {key: np.array([getattr(entry, key) for entry in kept.values()]) for key in _StoredFeatures._fields}
  write_whole(path, lambda file: np.savez(file, place=np.array(list(kept)), **columns), replace=True)


def _read_features(path: Path) -> dict[str, _StoredFeatures]:
  """Reads the entries that `write_features` wrote, by their keys."""
  try:
    with np.load(io.BytesIO(read_bytes(path))) as file:
      columns = [file[key] for key in _StoredFeatures._fields]
      rows = zip(*(column if column.ndim > 1 else column.tolist() for column in columns), strict=True)
      return {place: _StoredFeatures(*row) for place, row in zip(file["place"].tolist(), rows, strict=True)}
  except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
    raise InputError(
      f"{path}: cannot be read as features, damaged ({one_line(error)[:100]}): delete it to compute them again"
    ) from error
