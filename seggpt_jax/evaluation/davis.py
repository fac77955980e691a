"""Evaluates on DAVIS 2017, semi-supervised: a network and the videos of the validation set in, J and F out.

The dataset has JPEGImages/480p/VIDEO/00000.jpg, Annotations/480p/VIDEO/00000.png (object indices, 255 is ignored) and
ImageSets/2017/val.txt. The first frame with its annotation is the prompt. All objects are segmented at once, each with
its own color. Recent predictions can be additional prompts.

Scores follow the official toolkit: the first and the last frame are left out, ignored pixels are background, J and F
are means over objects of means over frames, and only the objects of the first frame count. Predictions are written in
the format that the toolkit reads, OUT/VIDEO/00000.png with the palette of the dataset, so that it can verify them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import parts
from seggpt_jax.evaluation.few_shot_data import find_root
from seggpt_jax.evaluation.parts import Finished
from seggpt_jax.files import write_whole
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_image, read_lines
from seggpt_jax.formats.labels import IGNORE, LabelFormat, check_size, read_labels
from seggpt_jax.formats.layouts import Item
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.inference.video import segment_frames
from seggpt_jax.metrics import boundary

_SCORES = {"J": "j", "F": "f"}
_STATISTICS = boundary.Statistics._fields
_EXAMPLES = 3  # pictures of each video
_NUM_VIDEOS = 30  # in the validation set


def _list_videos(directory: str | os.PathLike) -> dict[str, list[Item]]:
  """Returns the frames of each video, in the order of the list of videos; the folder may contain it as DAVIS/."""
  root = find_root(directory, ("", "DAVIS"), "JPEGImages")
  path = root / "ImageSets" / "2017" / "val.txt"
  names = read_lines(path)
  if not names:
    raise InputError(f"{path}: found nothing in it, expected the names of videos")
  videos = {}
  for name in names:
    images_dir, labels_dir = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
    frames, annotations = list_images(images_dir), list_images(labels_dir)
    for stem, path in frames.items():
      if stem not in annotations:
        raise InputError(f"{path}: found no annotation for it, expected {labels_dir / stem}.png")
    if len(frames) < 3:
      raise InputError(f"{images_dir}: found {len(frames)} frames, expected at least 3")
    videos[name] = [Item(stem, path, annotations[stem]) for stem, path in frames.items()]
  return videos


def _objects(frame: Item) -> UInt8[np.ndarray, "h w"]:
  """Reads the object indices of a frame; ignored pixels become background."""
  labels = read_labels(frame.label, LabelFormat(ignore=(IGNORE,)))
  return np.where(labels == IGNORE, np.uint8(0), labels)


class Davis:
  """The benchmark, see `parts.Benchmark`. A part is a video.

  Args:
    directory: folder with JPEGImages/, Annotations/ and ImageSets/, or a folder that contains it as DAVIS/.
    model: path of the weights, which is recorded in the settings.
    num_frames: number of recent predictions that are prompts in addition to the first frame.
    split: number of tiles along each side, see `InferenceOptions`.

  Raises:
    InputError: a folder, the list or a file of the dataset is missing.
  """

  name = "davis2017"

  def __init__(self, directory: str | os.PathLike, *, model: str = "", num_frames: int = 0, split: int = 1):
    self._videos = _list_videos(directory)
    self._num_frames, self._split = num_frames, split
    listing = "\n".join(f"{name} {len(frames)}" for name, frames in self._videos.items())
    self.settings: dict[str, Any] = {
      "model": model,
      "num_frames": num_frames,
      "split": split,
      "listing": hashlib.sha256(listing.encode()).hexdigest()[:16],
    }

  def parts(self, shard: Shard) -> list[str]:
    return list(self._videos)[shard.index - 1 :: shard.count]

  def run(self, predictor: Predictor, part: str, outdir: Path) -> Finished:
    frames, counts, shown = self._videos[part], [], []
    start, first = read_image(frames[0].image), _objects(frames[0])
    check_size(first, start.shape[:2], frames[0].label)
    num_objects = int(first.max())
    if not num_objects:
      raise InputError(f"{frames[0].label}: found no object, expected at least one to follow")
    _write_objects(outdir / part / f"{frames[0].name}.png", first)
    wanted = np.linspace(0, len(frames) - 1, _EXAMPLES + 1).round().astype(int)[1:]
    rest = (read_image(frame.image) for frame in frames[1:])
    options, prompts = InferenceOptions(self._split), [(start, first)]
    found = segment_frames(predictor, rest, prompts, options, num_frames=self._num_frames)
    bar = tqdm(found, part, len(frames) - 1, unit="frame")
    for index, prediction in enumerate(bar, 1):
      labels, truth = prediction.labels.astype(np.uint8), _objects(frames[index])
      check_size(truth, labels.shape, frames[index].label)
      _write_objects(outdir / part / f"{frames[index].name}.png", labels)
      counts.append(boundary.object_counts(labels, truth, num_objects))
      if index in wanted:
        image = read_image(frames[index].image)
        shown.append([parts.panel(image, objects, num_objects) for objects in (truth, labels)])
      bar.set_postfix(J=f"{100 * boundary.object_scores(np.stack(counts)).j.mean():.1f}", refresh=False)
    # The last frame is predicted, but not scored.
    return Finished({"counts": np.stack(counts[:-1]).tolist()}, _strip(part, start, first, shown))

  def results(self, finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    objects: dict[str, dict[str, dict[str, float]]] = {}
    for name in self._videos:
      scores = boundary.object_scores(np.array(finished[name]["counts"], np.int64))
      for place in range(scores.j.shape[1]):
        objects[f"{name}_{place + 1}"] = {
          title: boundary.statistics(getattr(scores, field)[:, place])._asdict() for title, field in _SCORES.items()
        }
    means = {
      f"{title} {statistic}": float(np.mean([scores[title][statistic] for scores in objects.values()]))
      for title in _SCORES
      for statistic in _STATISTICS
    }
    rows = {"J&F mean": (means["J mean"] + means["F mean"]) / 2, **means}
    return {"scores": rows, "objects": objects, "table": self._table(rows, len(objects))}

  def _table(self, rows: Mapping[str, float], num_objects: int) -> parts.Table:
    recent = f" and {self._num_frames} recent predictions" if self._num_frames else ""
    notes = [f"In percent; {num_objects} objects in {len(self._videos)} videos, without their first and last frames."]
    published = None
    # The published figure is of the whole validation set.
    if len(self._videos) == _NUM_VIDEOS:
      published = parts.published(self.name, "J mean", 1)
      notes.append("It is not known how many recent predictions the published J was measured with.")
    return parts.Table(
      title=f"{self.name}, the first frame{recent} as prompts",
      columns=["measured"],
      rows={score: [value] for score, value in rows.items()},
      published={"J mean": published},
      notes=notes,
    )


def _strip(name: str, start: np.ndarray, first: np.ndarray, shown: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Draws two rows of frames after the prompt: with their truth, then with the predictions."""
  prompt = parts.panel(start, first, int(first.max()))
  # All strips have the same width: a short video repeats its last frame.
  shown = [*shown, *[shown[-1]] * (_EXAMPLES - len(shown))]
  rows = [[prompt, *(pair[row] for pair in shown)] for row in range(2)]
  return parts.strip(rows, [f"{name}: first frame, truth", f"{name}: first frame, prediction"])


def _write_objects(path: Path, labels: UInt8[np.ndarray, "h w"]) -> None:
  """Writes object indices as a PNG with the palette of the dataset's annotations, which is the one of PASCAL VOC."""
  image = Image.fromarray(labels)
  image.putpalette(_voc_palette().tobytes())
  write_whole(path, lambda file: image.save(file, "png"))


def _voc_palette() -> UInt8[np.ndarray, "256 3"]:
  """Returns the palette of PASCAL VOC.

  Bits 0, 3 and 6 of an index are the highest bits of red, bits 1, 4 and 7 of green, bits 2 and 5 of blue.
  """
  bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, count=9, bitorder="little")
  return np.packbits(bits.reshape(256, 3, 3), axis=1)[:, 0]
