"""Opens the data of a run: a configuration in, pairs for training and validation out, after a look at a few samples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from seggpt_jax.data.augment import Augmentation
from seggpt_jax.data.cached import CachedSource
from seggpt_jax.data.class_index import has_foreground
from seggpt_jax.data.datasets import KINDS, Dataset, open_dataset
from seggpt_jax.data.images import remote_or_local
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.data.pairing import PairingOptions
from seggpt_jax.data.pipeline import EvaluationPairs, SourceTrainingPairs, TrainingPairs
from seggpt_jax.data.sources import Source
from seggpt_jax.data.transforms import EvaluationPair, TrainingPair
from seggpt_jax.errors import InputError, naming
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.synthetic.tasks import TaskEvaluationPairs, Tasks, TaskTrainingPairs
from seggpt_jax.training.pairs import describe_answerable, evaluation_pairs_of, known_samples, training_pairing

_AUGMENTATION = [field.name for field in dataclasses.fields(Augmentation)]


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pairs of a run.

  Attributes:
    training: training pairs.
    evaluation: validation pairs.
    sources: samples under "train" and "val"; empty for tasks, which have no files.
    notes: lines on the data for the person who started the run.
  """

  training: TrainingPairs
  evaluation: EvaluationPairs
  sources: Mapping[str, Source]
  notes: tuple[str, ...] = ()


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
  evaluation = EvaluationPair(model_config.canvas_size, model_config.patch_size, data.num_classes)
  strengths = {name: data[name] for name in _AUGMENTATION} | {"scale": tuple(map(float, data.scale))}
  training = TrainingPair(
    canvas_size=model_config.canvas_size,
    patch_size=model_config.patch_size,
    num_classes=data.num_classes,
    palette_mode=data.palette,
    mask_ratio=data.mask_ratio,
    lower_half_share=data.lower_half_share,
    augmentation=Augmentation(**strengths),
    # A learned prompt takes the place of the drawn ones and knows every class.
    prompt_foreground=0.0 if learned or data.source == "tasks" else data.prompt_foreground,
    unanswerable="keep" if learned or data.source == "tasks" else data.unanswerable,
  )
  if data.resize and data.resize < square:
    raise InputError(f"config.data.resize: found {data.resize}, expected 0 or at least the square {square}")
  if data.source == "tasks":
    size, prompts = data.resize or square, data.prompts
    return Inputs(
      TaskTrainingPairs(Tasks(size, data.num_classes, data.ramp * config.batch_size, prompts), training),
      TaskEvaluationPairs(Tasks(size, data.num_classes, num_prompts=prompts), evaluation),
      {},
    )
  splits = {name: _open(data, name) for name in ("train", "val")}
  same_class = 0.0 if learned else data.same_class
  options = PairingOptions(data.same_group, same_class, data.negative, data.balanced, data.prompts)
  samples, notes = {}, []
  for name, source in splits.items():
    samples[name] = known_samples(data, name, source, options.needs_classes, Path(workdir), notes)
  with naming(f"{data.path}: {data.train_split}"):
    pairing = training_pairing(samples["train"], options)
  if pairing.describe() != f"{len(splits['train'])} samples":
    notes.append(f"train: {pairing.describe()}")
  train = CachedSource(splits["train"], data.cache_mb * 2**20) if data.cache_mb else splits["train"]
  pairs = SourceTrainingPairs(train, pairing, training, data.bad_files)
  if not learned and data.unanswerable != "keep":
    notes.append(describe_answerable(pairs))
  evaluation_pairs = evaluation_pairs_of(splits, samples, options, evaluation, data.bad_files)
  return Inputs(pairs, evaluation_pairs, splits, tuple(notes))


def _open(data: ConfigDict, name: str) -> Source:
  """Opens one split, reads a few of its samples and makes sure that there is some foreground."""
  with naming("config.data"):
    label_format = LabelFormat(data.labels, data.threshold, _values(data.table), _values(data.ignore))
  if not data.path or not remote_or_local(data.path).is_dir():
    raise InputError(
      f"config.data.path: folder {data.path!r} not found, expected {KINDS[data.source]} in it; "
      "`seggpt boards DIRECTORY` writes an example"
    )
  dataset = Dataset(
    data.source,
    data.path,
    data.num_classes,
    label_format,
    # A command line passes crack,hole as one string.
    tuple(name for names in data.class_names for name in names.split(",")),
    data.image_key,
    data.label_key,
  )
  split = data[f"{name}_split"]
  source = open_dataset(dataset, split, data.num_train if name == "train" else -1)
  if len(source) < 2:
    raise InputError(f"{data.path}: found {len(source)} images in {split}, expected at least 2 to make a pair")
  _peek(source, data.bad_files)
  if name == "train" and not has_foreground(source, _skip(data)):
    raise InputError(
      f"{data.path}: found nothing but background in the {len(source)} labels of {split}, read as {label_format}, "
      "expected some foreground to learn from; `seggpt inspect` shows what the labels hold"
    )
  return source


def _values(values: tuple) -> tuple:
  """Returns label values or colors with each color as a tuple; a configuration may hold lists."""
  return tuple(value if isinstance(value, int) else tuple(value) for value in values)


def _skip(data: ConfigDict) -> Callable[[InputError], None] | None:
  """Returns a function that ignores unreadable labels if bad files are skipped; they count once they are drawn."""
  return None if data.bad_files == "error" else lambda error: None


def _peek(source: Source, bad_files: str, count: int = 16) -> None:
  """Reads a few samples, so that a mistake in all of them is reported before anything is written."""
  indices = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
  errors = []
  for index in indices:
    try:
      source[index]
    except InputError as error:
      if bad_files == "error":
        raise
      errors.append(error)
  if len(errors) == len(indices):
    raise InputError(f"{errors[0]} (as are all {len(errors)} samples looked at, expected most of them to be good)")
