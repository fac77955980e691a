"""Decides which sample prompts which: what is known of the samples in, pairings and a line about them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from seggpt_jax.data.groups import group_names, scan_classes
from seggpt_jax.data.pairing import EvaluationPairing, Pairing, PairingOptions
from seggpt_jax.data.pipeline import BadFilePolicy, SourceEvaluationPairs, SourceTrainingPairs
from seggpt_jax.data.sources import Source, View
from seggpt_jax.data.transforms import EvaluationPair
from seggpt_jax.errors import InputError, naming
from seggpt_jax.formats.labels import IGNORE, classes_in


class SplitSamples(NamedTuple):
  """Facts about the samples of a split that decide their pairs."""

  count: int  # number of samples
  groups: list[str] | None  # group of each sample; None without groups
  classes: np.ndarray | None  # table that is True where a sample has a class; None if it is not needed
  groups_are_classes: bool  # True for class folders, whose labels mean another thing in each folder

  def pairing(self, options: PairingOptions) -> Pairing:
    """Returns the pairing of the samples with one another."""
    return Pairing(self.count, options, self.groups, self.classes, self.groups_are_classes)


def known_samples(
  data: ConfigDict, name: str, source: Source, needs_classes: bool, workdir: Path, notes: list[str]
) -> SplitSamples:
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
    return SplitSamples(len(source), groups, None, True)
  unread: list[InputError] = []
  classes = None
  if needs_classes:
    skip = unread.append if data.bad_share else None
    # A new run has no folder yet, and must not get one before everything has been checked.
    cache = workdir / f"classes_{name}.npz" if (workdir / "checkpoints").is_dir() else None
    classes = scan_classes(source, cache, skip)
  if unread:
    notes.append(f"{name}: {len(unread)} labels cannot be read and are passed over, the first: {unread[0]}")
  return SplitSamples(len(source), groups, classes, False)


def evaluation_pairs_of(
  sources: Mapping[str, Source],
  samples: Mapping[str, SplitSamples],
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


def describe_answerable(pairs: SourceTrainingPairs, count: int = 32) -> str:
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
