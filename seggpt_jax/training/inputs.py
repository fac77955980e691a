"""Opens the data of a run: a configuration in, pairs for training and validation out, after a look at a few samples."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from seggpt_jax.data.augment import Augmentation
from seggpt_jax.data.datasets import Dataset, check_categories, open_dataset
from seggpt_jax.data.groups import group_names, has_foreground, scan_classes
from seggpt_jax.data.pairing import EvaluationPairing, Pairing, PairingOptions
from seggpt_jax.data.pipeline import (
  BadFilePolicy,
  EvaluationPairs,
  SourceEvaluationPairs,
  SourceTrainingPairs,
  TrainingPairs,
)
from seggpt_jax.data.scale import Scale, ZoomedSource, fewest_cells, measured_zoom, object_sides
from seggpt_jax.data.sources import CachedSource, Source, View, shared_images
from seggpt_jax.data.transforms import EvaluationPair, TrainingPair
from seggpt_jax.errors import InputError, naming
from seggpt_jax.formats.images import remote_or_local
from seggpt_jax.formats.labels import IGNORE, LabelFormat, classes_in
from seggpt_jax.formats.recognize import KINDS, recognize
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.config import plain

_AUGMENTATION = [field.name for field in dataclasses.fields(Augmentation)]
# Windows that an image may take where the zoom is measured: with the packaged weights and two cores, a second or two.
_MOST_WINDOWS = 36
_LOOKED_AT = 16  # samples
_SIDES, _OBJECT = (192, 768), 7.0  # of the squares that a trained head sees, and of objects in them, in pixels
_CONTOURS = 256  # pixels, up to which an image is not made smaller


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pairs of a run."""

  training: TrainingPairs  # training pairs
  evaluation: EvaluationPairs  # validation pairs
  sources: Mapping[str, Source]  # samples under "train" and "val"
  scale: Scale  # scale at which the network is shown images
  notes: tuple[str, ...] = ()  # lines on the data for the person who started the run
  class_names: tuple[str, ...] = ()  # names of classes 1, 2, ... that the dataset states; () if it states none


def open_inputs(config: ConfigDict, model_config: SegGPTConfig, workdir: str | os.PathLike) -> Inputs:
  """Opens the data and checks it before the first step.

  Args:
    config: configuration of the run.
    model_config: architecture, for the canvas.
    workdir: run directory; a table of the samples' classes is stored there if the pairing needs one.

  Raises:
    InputError: a file or label is wrong, or no label holds any foreground.
  """
  data, square = config.data, model_config.canvas_size[1]
  learned = config.adapter.kind == "prompt"
  matcher = bool(model_config.backbone) and not learned
  if matcher and data.num_classes > 8:
    raise InputError(
      f"config.data.num_classes: found {data.num_classes}, expected at most 8 for a network with a backbone; start "
      "from a SegGPT, such as model.init_from=drawn"
    )
  strengths = {name: data[name] for name in _AUGMENTATION}
  strengths |= {name: tuple(map(float, data[name])) for name in ("scale", "color")}
  strengths |= {name: float(data[name]) for name in ("foreground_crop", "blur")}
  training = TrainingPair(
    canvas_size=model_config.canvas_size,
    patch_size=model_config.patch_size,
    num_classes=data.num_classes,
    # A matcher reads each channel as one mask, and only answers the query's half.
    palette_mode="corners" if matcher else data.palette,
    mask_ratio=data.mask_ratio,
    lower_half_share=1.0 if matcher else data.lower_half_share,
    augmentation=Augmentation(**strengths),
    # A learned prompt takes the place of the drawn ones and knows every class.
    prompt_foreground=0.0 if learned else data.prompt_foreground,
    unanswerable="keep" if learned else data.unanswerable,
  )
  evaluation = EvaluationPair(model_config.canvas_size, model_config.patch_size, data.num_classes, corners=matcher)
  if not data.zoom and data.resize and data.resize < square:
    raise InputError(f"config.data.resize: found {data.resize}, expected 0 or at least the square {square}")
  splits, notes = open_splits(data)
  policy = "skip" if data.bad_share else "error"
  same_class = 0.0 if learned else data.same_class
  scale, windows, every_class = Scale(), 1, False
  if data.zoom:
    # The labels of class folders mean another thing in each, so that cells from several would contradict each other.
    every_class = not learned and data.source != "class_folders"
    scale = Scale(_zoom(data, splits, model_config, notes), 1 if learned else _grid(data, every_class))
    windows = scale.num_windows(_typical_shape(splits["val"], bool(data.bad_share)), square)
    training = dataclasses.replace(training, augmentation=dataclasses.replace(training.augmentation, resize=None))
  options = PairingOptions(1.0, same_class, data.negative, data.prompts * scale.cells, every_class)
  samples = {
    name: _known_samples(data, name, source, options.needs_classes, Path(workdir), notes)
    for name, source in splits.items()
  }
  with naming(f"{data.path}: {data.train_split}"):
    pairing = samples["train"].pairing(options)
  read = {name: ZoomedSource(source, scale) if scale.zoom else source for name, source in splits.items()}
  if data.cache_mb:
    read = {name: CachedSource(source, data.cache_mb * 2**20) for name, source in read.items()}
  training = dataclasses.replace(training, prompt_grid=scale.prompt_grid)
  pairs = SourceTrainingPairs(read["train"], pairing, training, policy)
  validated = dataclasses.replace(evaluation, prompt_grid=scale.prompt_grid, windows=windows)
  evaluation_pairs = _evaluation_pairs_of(read if data.zoom else splits, samples, options, validated, policy)
  if pairing.describe() != f"{len(splits['train'])} samples":
    notes.append(f"train: {pairing.describe()}")
  if not learned and data.unanswerable != "keep":
    notes.append(_describe_answerable(pairs))
  names = getattr(splits["train"], "categories", ())
  return Inputs(pairs, evaluation_pairs, splits, scale, tuple(notes), names)


class _SplitSamples(NamedTuple):
  """Facts about the samples of a split that decide their pairs."""

  count: int  # number of samples
  groups: list[str] | None  # group of each sample; None without groups
  classes: np.ndarray | None  # table that is True where a sample has a class; None if it is not needed
  groups_are_classes: bool  # True for class folders, whose labels mean another thing in each folder

  def pairing(self, options: PairingOptions) -> Pairing:
    """Returns the pairing of the samples with one another."""
    return Pairing(self.count, options, self.groups, self.classes, self.groups_are_classes)


def _known_samples(
  data: ConfigDict, name: str, source: Source, needs_classes: bool, workdir: Path, notes: list[str]
) -> _SplitSamples:
  """Finds groups and classes of the samples of a split.

  Args:
    data: config.data.
    name: "train" or "val".
    source: samples of the split.
    needs_classes: whether to read the classes in the labels.
    workdir: run directory, for the table of classes.
    notes: collects lines for the person who started the run.
  """
  spec = data.groups
  if data.source == "class_folders":
    if spec not in ("", "folder"):
      raise InputError(f"config.data.groups: found {spec!r}, expected folder: each of the class folders is a group")
    spec = "folder"
  with naming("config.data.groups"):
    groups = group_names(source, spec) if spec else None
  if data.source == "class_folders":
    return _SplitSamples(len(source), groups, None, True)
  unread: list[InputError] = []
  classes = None
  if needs_classes:
    skip = unread.append if data.bad_share else None
    # A new run has no folder yet, and must not get one before everything has been checked.
    cache = workdir / f"classes_{name}.npz" if (workdir / "checkpoints").is_dir() else None
    classes = scan_classes(source, cache, skip)
  if unread:
    notes.append(f"{name}: {len(unread)} labels cannot be read and are passed over, the first: {unread[0]}")
  return _SplitSamples(len(source), groups, classes, False)


def _evaluation_pairs_of(
  sources: Mapping[str, Source],
  samples: Mapping[str, _SplitSamples],
  options: PairingOptions,
  transform: EvaluationPair,
  bad_files: BadFilePolicy,
) -> SourceEvaluationPairs:
  """Returns the validation pairs, whose prompts are training samples that show the query's classes.

  Without `same_class` they are any other validation samples, as training pairs are any training samples.

  Args:
    sources: the samples of "train" and "val".
    samples: groups and classes of the samples of "train" and "val".
    options: choice of prompts in training.
    transform: makes a pair.
    bad_files: policy for files that cannot be read.
  """
  train, val = samples["train"], samples["val"]
  if not (options.same_class or options.every_class):
    pairing = val.pairing(dataclasses.replace(options, negative=0.0))
    return SourceEvaluationPairs(sources["val"], sources["val"], pairing, transform, bad_files)
  groups = None if train.groups is None else [*train.groups, *val.groups]
  if train.groups_are_classes:
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    classes = np.zeros((len(groups), 1 + len(names)), bool)
    classes[np.arange(len(groups)), 1 + index] = True
  else:
    classes = np.concatenate([train.classes, val.classes])
  pairing = EvaluationPairing(classes, train.count, groups, options.num_prompts, options.every_class)
  pool = View(sources["train"], sources["val"])
  return SourceEvaluationPairs(sources["val"], pool, pairing, transform, bad_files)


def _describe_answerable(pairs: SourceTrainingPairs, count: int = 32) -> str:
  """Returns the line that says how much of what training asks for the prompts show, from a few drawn pairs."""
  drawn = dataclasses.replace(pairs, transform=dataclasses.replace(pairs.transform, unanswerable="keep"))
  answerable, pixels = 0, np.zeros(2, np.int64)
  for draw in range(count):
    index = draw * len(pairs.source) // count
    labels = drawn(index, np.random.default_rng(draw))["labels"]
    half = labels.shape[1] // 2
    shown, query = set(classes_in(np.ascontiguousarray(labels[:, :half]).reshape(-1, half))), labels[0, half:]
    foreground = (query > 0) & (query != IGNORE)
    known = foreground & np.isin(query, list(shown))
    answerable += bool(shown) and known.sum() == foreground.sum()
    pixels += known.sum(), foreground.sum()
  share = f" and {pixels[0] / pixels[1]:.0%} of the foreground" if pixels[1] else ""
  rule = pairs.transform.unanswerable
  rest = "asked for all the same" if rule == "keep" else "ignored" if rule == "ignore" else "background"
  return (
    f"pairs: of {count} drawn at random, {answerable / count:.0%} have prompts that show every class of the query"
    f"{share}; the rest is {rest} (data.unanswerable)"
  )


def open_splits(data: ConfigDict) -> tuple[dict[str, Source], list[str]]:
  """Returns the samples under "train" and "val", and lines on them for the person who started the run.

  Raises:
    InputError: a file or label is wrong, or no label holds any foreground.
  """
  notes: list[str] = []
  splits = {name: _open(data, name, notes) for name in ("train", "val")}
  check_categories(list(splits.values()))
  if shared := shared_images(splits["val"], splits["train"]):
    notes.append(
      f"{data.val_split}: {len(shared)} of {len(splits['val'])} images are training images, such as {shared[0]}: "
      "validation scores are too good"
    )
  return splits, notes


def head_side(source: Source, data: ConfigDict) -> int:
  """Returns the side in pixels of the squares that a head is trained on, within `_SIDES`; a multiple of 32.

  They are as large as a typical image, or smaller if objects of the smallest class are still `_OBJECT` pixels large:
  a head that sees more of an image in the same time is better. They are never smaller than the image or
  `_CONTOURS`, whichever is less, as contours decide there: brain slices have an IoU of 0.884 at 256, 0.862 at 192.
  """
  height, width = _typical_shape(source, bool(data.bad_share))
  smallest = min(object_sides(source, _skip(data)).values())
  typical, (least, most) = (height * width) ** 0.5, _SIDES
  least = max(least, min(math.ceil(typical / 32) * 32, _CONTOURS))
  return min(max(round(typical * min(1.0, _OBJECT / smallest) / 32) * 32, least), most)


def _grid(data: ConfigDict, every_class: bool) -> int:
  """Returns the cells along a side of a prompt."""
  count = data.num_classes - 1
  # Several prompts share the classes, but each has the same number of cells.
  grid = data.prompt_grid or fewest_cells(-(-count // data.prompts))
  if every_class and data.prompts * grid**2 < count:
    raise InputError(
      f"config.data.prompt_grid: found {data.prompts} prompts of {grid} x {grid} cells, expected at least "
      f"{count} cells, one for each class of data.num_classes={data.num_classes}"
    )
  return grid


def _zoom(data: ConfigDict, splits: Mapping[str, Source], model_config: SegGPTConfig, notes: list[str]) -> float:
  """Returns the zoom, measured if the configuration asks for it, and notes it."""
  square, shape = model_config.canvas_size[1], _typical_shape(splits["train"], bool(data.bad_share))
  zoom, measured = float(data.zoom), ""
  if zoom == -1:
    sides = object_sides(splits["train"], _skip(data))
    zoom = measured_zoom(sides, shape, square, model_config.patch_size, _MOST_WINDOWS)
    smallest = min(sides, key=lambda index: sides[index])
    measured = f", as objects of class {smallest} are {sides[smallest]:.0f} pixels large"
  notes.append(
    f"scale: {zoom} pixels of the network for one of an image{measured} (data.zoom); an image of "
    f"{shape[1]} x {shape[0]} pixels becomes {Scale(zoom).num_windows(shape, square)} tiles of {square}"
  )
  return zoom


def _typical_shape(source: Source, skip: bool) -> tuple[int, int]:
  """Returns the median height and width in pixels of a few samples."""
  shapes = _look_at(source, lambda index: source.label(index).shape, skip)
  height, width = np.median(shapes, axis=0).astype(int).tolist()
  return height, width


def _look_at(source: Source, read: Callable[[int], Any], skip: bool) -> list[Any]:
  """Returns what is read of a few samples, evenly spread, so that a mistake in all of them is reported at once."""
  found, errors = [], []
  for index in np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int)).tolist():
    try:
      found.append(read(index))
    except InputError as error:
      if not skip:
        raise
      errors.append(error)
  if not found:
    raise InputError(f"{errors[0]} (as are all {len(errors)} samples looked at, expected most of them to be good)")
  return found


def _open(data: ConfigDict, name: str, notes: list[str]) -> Source:
  """Opens one split, reads a few of its samples and makes sure that there is some foreground; adds to the notes."""
  with naming("config.data"):
    threshold = None if data.threshold < 0 else data.threshold
    label_format = LabelFormat(data.labels, threshold, plain(data.table), plain(data.ignore))
  if not data.path or not remote_or_local(data.path).is_dir():
    raise InputError(
      f"config.data.path: folder {data.path!r} not found, expected {KINDS[data.source]} in it; "
      "`seggpt boards DIRECTORY` writes an example"
    )
  # A command line passes crack,hole as one string.
  names = tuple(name for names in data.class_names for name in names.split(","))
  dataset = Dataset(data.source, data.path, data.num_classes, label_format, names)
  split = data[f"{name}_split"]
  left_out: list[str] | None = [] if data.bad_share else None
  try:
    source = open_dataset(dataset, split, data.num_train if name == "train" else -1, left_out)
  except InputError as error:
    raise InputError(f"{error}{_known_splits(data)}") from error
  notes += [f"{split}: {note}" for note in getattr(source, "notes", ())]
  if left_out:
    total = len(source) + len(left_out)
    notes.append(f"{split}: left out {len(left_out)} files that do not fit, the first: {left_out[0]}")
    if len(left_out) > data.bad_share * total:
      raise InputError(
        f"config.data.bad_share: found {len(left_out)} files of {split} that do not fit, of {total}, "
        f"expected at most {data.bad_share:.2%}; the first: {left_out[0]}"
      )
  if len(source) < 2:
    raise InputError(f"{data.path}: found {len(source)} images in {split}, expected at least 2 to make a pair")
  _look_at(source, lambda index: bool(source[index]), bool(data.bad_share))
  if name == "train" and not has_foreground(source, _skip(data)):
    raise InputError(
      f"{data.path}: found nothing but background in the {len(source)} labels of {split}, read as {label_format}, "
      "expected some foreground to learn from; `seggpt inspect` shows what the labels hold"
    )
  return source


def _known_splits(data: ConfigDict) -> str:
  """Returns a hint at the splits that the dataset has, if the configuration names another one."""
  try:
    form = recognize(data.path)
  except InputError:
    return ""
  asked = (data.train_split, data.val_split)
  if form.kind != data.source:
    return f"; this looks like data.source={form.kind}: `seggpt inspect {data.path}` prints the command"
  if form.splits and any(split not in form.splits for split in asked):
    return f"; found the splits {', '.join(form.splits)}: set data.train_split and data.val_split"
  return ""


def _skip(data: ConfigDict) -> Callable[[InputError], None] | None:
  """Returns a function that ignores unreadable labels if bad files are skipped; they count once they are drawn."""
  return (lambda error: None) if data.bad_share else None
