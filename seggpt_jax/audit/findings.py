"""The audit of a whole dataset: surveys of its splits, groups and copies across splits."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seggpt_jax.audit.label_guess import Guess, guess_format
from seggpt_jax.audit.label_values import SampleFiles, StoredValues, guess_class_names, open_files
from seggpt_jax.audit.survey import Survey, near_duplicates, read_values, survey_split
from seggpt_jax.data.datasets import Dataset, check_categories
from seggpt_jax.data.groups import group_names
from seggpt_jax.data.sources import FileSource, View
from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import DatasetFiles
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import LabelMap, read_label_map
from seggpt_jax.formats.recognize import OUTLINES
from seggpt_jax.palette import IGNORE

_PEEKED = 32  # labels of each split that decide which label format is tried first
_NAMED = 20  # pairs of copies that are listed by name


class Copies(NamedTuple):
  """Images that two splits share: pairs of (name, name, difference), most alike first."""

  first: str
  second: str
  pairs: list[tuple[str, str, float]]
  num_copied: int  # images of the second split that are also in the first
  num_compared: int


class Groups(NamedTuple):
  """Groups of samples."""

  spec: str  # rule that assigns samples to groups, see `data.groups.group_names`
  sizes: dict[str, collections.Counter]  # number of samples of each group, by split
  shared: list[str]  # groups that occur in more than one split
  problems: list[str]  # reasons why the groups of a split cannot be determined


@dataclasses.dataclass
class Findings:
  """Everything that the audit of a dataset found."""

  dataset: Dataset  # the dataset, with the number of classes and the label format it was read with
  given: frozenset[str]  # names of the flags that the user set
  surveys: dict[str, Survey]  # survey of each split
  guess: Guess | None  # the label format that the files suggest; None if the dataset does not store label files
  groups: Groups | None  # groups of samples; None if the user named no rule
  copies: list[Copies]  # images that two splits share, for each pair of splits
  class_names: list[str]  # names of classes 1, 2, ..., as far as they are known
  max_images: int  # number of images of each split that were read; 0 is all
  files: dict[str, SampleFiles]  # access to the samples of each split
  others: tuple[str, ...] = ()  # further splits of the dataset that were not read

  @property
  def train(self) -> Survey:
    """Survey of the first split."""
    return next(iter(self.surveys.values()))

  @property
  def val(self) -> Survey | None:
    """Survey of the second split, if there is one."""
    return next(itertools.islice(self.surveys.values(), 1, None), None)

  @property
  def pixels(self) -> np.ndarray:
    """Number of pixels of each class in all splits."""
    return np.sum([survey.pixels for survey in self.surveys.values()], axis=0)

  @property
  def stored(self) -> StoredValues:
    """Values stored in all label files."""
    return StoredValues.total(survey.values for survey in self.surveys.values())

  @property
  def num_found(self) -> int:
    """Number of classes in the labels as they were read, background included."""
    return int(np.flatnonzero(self.pixels[:IGNORE]).max(initial=1)) + 1

  def class_label(self, class_index: int) -> str:
    """Returns the index of a class and its name, if it has one."""
    names = self.class_names
    return f"{class_index} {names[class_index - 1]}" if 0 < class_index <= len(names) else str(class_index)


def audit_dataset(
  dataset: Dataset,
  splits: Sequence[str],
  given: frozenset[str],
  groups: str = "",
  max_images: int = 0,
  others: tuple[str, ...] = (),
) -> Findings:
  """Reads a dataset and collects everything that decides whether training will work.

  Args:
    dataset: layout and path of the dataset, and how its labels are read.
    splits: names of its splits, the training split first.
    given: names of the flags that the user set, such as num_classes and labels; the others are guessed.
    groups: rule that assigns samples to groups, see `data.groups.group_names`; "" for no groups.
    max_images: number of images of each split to read; 0 reads all.
    others: further splits of the dataset, which are not read.

  Returns:
    The findings.

  Raises:
    InputError: the dataset has no samples, or the rule for groups is malformed.
  """
  if groups:
    group_names(FileSource([], 2, dataset.label_format), groups)  # refuses a malformed rule before anything is read
  if dataset.kind == "masks" and not dataset.class_names:
    dataset = dataclasses.replace(dataset, class_names=guess_class_names(dataset, splits))
  unmatched: dict[str, list[str]] = {split: [] for split in splits}
  files = {split: open_files(dataset, split, unmatched[split]) for split in splits}
  # Files without a partner are worth a report; missing folders are an error.
  if not any(len(each) for each in files.values()) and " for it, " not in str(unmatched):
    reasons = "; ".join(each for problems in unmatched.values() for each in problems)
    raise InputError(f"{dataset.path}: no samples found with --kind={dataset.kind}: {reasons}")
  check_categories(list(files.values()))
  stated = read_label_map(DatasetFiles(dataset.path)) if dataset.kind in ("folder", "voc") else None
  surveys, guess, label_format = _surveys(dataset, files, unmatched, "labels" in given, max_images, stated)
  findings = Findings(
    dataclasses.replace(dataset, label_format=label_format),
    given,
    surveys,
    guess,
    _groups(groups, files, surveys) if groups else None,
    _copies(surveys),
    list(stated.names if stated else files[splits[0]].categories),
    max_images,
    files,
    others,
  )
  num_classes = max(findings.num_found, guess.num_classes if guess and label_format == guess.label_format else 2)
  if findings.class_names:
    num_classes = max(num_classes, 1 + len(findings.class_names))
  if "num_classes" in given:
    num_classes = dataset.num_classes
  findings.dataset = dataclasses.replace(findings.dataset, num_classes=num_classes)
  return findings


def _surveys(
  dataset: Dataset,
  files: dict[str, SampleFiles],
  unmatched: dict[str, list[str]],
  given: bool,
  max_images: int,
  stated: LabelMap | None,
) -> tuple[dict[str, Survey], Guess | None, LabelFormat]:
  """Surveys the splits with the label format that is given, or with the one that fits best."""
  label_format = dataset.label_format
  if not given:
    peeked = StoredValues.total(read_values(each, _PEEKED) for each in files.values())
    label_format = _guess(dataset, peeked, stated).label_format if peeked.num_files else label_format
  while True:
    surveys = {split: Survey(split) for split in files}
    for split, survey in surveys.items():
      survey.problems["unmatched"] += unmatched[split]
      survey_split(survey, files[split], label_format, max_images)
    stored = StoredValues.total(survey.values for survey in surveys.values())
    guess = _guess(dataset, stored, stated) if stored.num_files else None
    if given or guess is None or guess.label_format == label_format:
      return surveys, guess, label_format
    # The first labels did not hold all values: survey again with the format that fits all of them.
    label_format, given = guess.label_format, True


def _guess(dataset: Dataset, stored: StoredValues, stated: LabelMap | None) -> Guess:
  """Guesses the label format, unless the dataset states it; masks have one class each."""
  if stated is not None and stored.colors:
    return Guess(
      stated.label_format, len(stated.label_format.table), f"{stated.where} names {len(stated.names)} classes"
    )
  guess = guess_format(stored)
  if dataset.kind != "masks" or guess.label_format.mode == "binary":
    return guess
  return Guess(LabelFormat("binary"), 2, "each label is a mask of one class or instance")


class _SurveyedSource(View):
  """The surveyed samples for `group_names`, which knows their classes and reads no files."""

  def __init__(self, survey: Survey, files: SampleFiles):
    super().__init__(files, indices=[sample.index for sample in survey.samples])
    self._samples = survey.samples

  def classes(self, index: int) -> tuple[int, ...] | None:
    return self._samples[index].classes or ()


def _groups(spec: str, files: dict[str, SampleFiles], surveys: dict[str, Survey]) -> Groups:
  sizes: dict[str, collections.Counter] = {}
  problems = []
  for split, survey in surveys.items():
    try:
      sizes[split] = collections.Counter(group_names(_SurveyedSource(survey, files[split]), spec))
    except InputError as error:
      problems.append(f"{split}: {error}")
      sizes[split] = collections.Counter()
  # Samples that share only their classes do not leak between splits.
  in_splits = collections.Counter(group for each in sizes.values() for group in each)
  shared = [] if spec == "classes" else sorted(group for group, count in in_splits.items() if count > 1)
  return Groups(spec, sizes, shared, problems)


def _copies(surveys: dict[str, Survey]) -> list[Copies]:
  found = []
  for first, second in itertools.combinations(surveys.values(), 2):
    pairs, num_copied = near_duplicates(*([image.print for image in each.images] for each in (first, second)))
    named = [(first.images[a].name, second.images[b].name, round(difference, 4)) for a, b, difference in pairs[:_NAMED]]
    found.append(Copies(first.split, second.split, named, num_copied, len(second.images)))
  return found


def describe_format(findings: Findings) -> dict[str, Any]:
  """Returns the keys of `config.data` that say what to read and how, without those at their defaults."""
  dataset, label_format = findings.dataset, findings.dataset.label_format
  keys: dict[str, Any] = {"path": dataset.path}
  if dataset.kind != "folder":
    keys["source"] = dataset.kind
  for key, survey in zip(("train_split", "val_split"), findings.surveys.values(), strict=False):
    if survey.split != key.removesuffix("_split"):
      keys[key] = survey.split
  if dataset.kind not in OUTLINES:
    keys["labels"] = label_format.mode
  keys["num_classes"] = dataset.num_classes
  defaults = {"threshold": None, "table": (), "ignore": ()}
  keys |= {k: getattr(label_format, k) for k, default in defaults.items() if getattr(label_format, k) != default}
  if dataset.class_names:
    keys["class_names"] = dataset.class_names
  return keys
