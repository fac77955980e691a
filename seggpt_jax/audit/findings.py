"""A whole dataset looked through: surveys of its splits, and what is between them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.audit.duplicates import near_duplicates
from seggpt_jax.audit.label_values import Guess, StoredValues, guess_format
from seggpt_jax.audit.sample_files import SampleFiles, category_names, open_files
from seggpt_jax.audit.survey import Survey, read_values, survey_split
from seggpt_jax.data.datasets import Dataset
from seggpt_jax.data.groups import group_names
from seggpt_jax.data.images import remote_or_local
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.data.sources import FileSource, Sample
from seggpt_jax.errors import InputError
from seggpt_jax.palette import IGNORE

_PEEKED = 32  # labels of each split, to see which way of reading is to be tried first
_NAMED = 20  # pairs of copies that are named


class Copies(NamedTuple):
  """Images of one split that another one has too: (name, name, difference), the most alike first."""

  first: str
  second: str
  pairs: list[tuple[str, str, float]]
  num_copied: int  # images of the second split
  num_compared: int


class Groups(NamedTuple):
  """Groups of samples.

  Attributes:
    spec: what makes them.
    sizes: by split, number of samples by group.
    shared: groups that more than one split has.
    problems: samples whose group cannot be told.
  """

  spec: str
  sizes: dict[str, collections.Counter]
  shared: list[str]
  problems: list[str]


@dataclasses.dataclass
class Findings:
  """Everything that was found.

  Attributes:
    dataset: what was read, with the number of classes and the label format it was read with.
    given: names of flags that a person has set.
    surveys: of each split.
    guess: what the labels look like; None where their files cannot be seen.
    groups: None if none were asked for.
    copies: between splits.
    class_names: of classes 1, 2, ... as far as they are known.
    max_images: how many of each split were read; 0 is all.
    files: access to the samples, by split.
  """

  dataset: Dataset
  given: frozenset[str]
  surveys: dict[str, Survey]
  guess: Guess | None
  groups: Groups | None
  copies: list[Copies]
  class_names: list[str]
  max_images: int
  files: dict[str, SampleFiles]

  @property
  def train(self) -> Survey:
    """The first split."""
    return next(iter(self.surveys.values()))

  @property
  def val(self) -> Survey | None:
    """The second split."""
    return next(itertools.islice(self.surveys.values(), 1, None), None)

  @property
  def pixels(self) -> np.ndarray:
    """Number of pixels of each class in all splits."""
    return np.sum([survey.pixels for survey in self.surveys.values()], axis=0)

  @property
  def stored(self) -> StoredValues:
    """Values of all label files."""
    return _merged([survey.values for survey in self.surveys.values()])

  @property
  def num_found(self) -> int:
    """Number of classes that labels hold as they were read, background included."""
    return int(np.flatnonzero(self.pixels[:IGNORE]).max(initial=1)) + 1


def audit_dataset(
  dataset: Dataset, splits: Sequence[str], given: frozenset[str], groups: str = "", max_images: int = 0
) -> Findings:
  """Reads a dataset.

  Args:
    dataset: what and where.
    splits: names of its parts, the one to train on first.
    given: which of the flags num_classes and labels a person has set; the others are found out.
    groups: see `groups.group_names`; "" looks for none.
    max_images: read only so many of each split; 0 reads all.

  Raises:
    InputError: there is no sample and no file of one, or the groups are specified wrongly.
  """
  if groups:
    group_names(FileSource([], 2, dataset.label_format), groups)  # is it a specification at all?
  unmatched: dict[str, list[str]] = {split: [] for split in splits}
  files = {split: open_files(dataset, split, unmatched[split]) for split in splits}
  # A file that waits for its partner is something to look at; folders that are not there are not.
  if not any(len(each) for each in files.values()) and " for it, " not in str(unmatched):
    raise InputError(_nothing_there(dataset, unmatched))
  surveys, guess, label_format = _surveys(dataset, files, unmatched, "labels" in given, max_images)
  findings = Findings(
    dataclasses.replace(dataset, label_format=label_format),
    given,
    surveys,
    guess,
    _groups(groups, files, surveys) if groups else None,
    _copies(surveys),
    category_names(dataset, splits[0]),
    max_images,
    files,
  )
  num_classes = max(findings.num_found, guess.num_classes if guess and label_format == guess.label_format else 2)
  if dataset.kind in ("coco", "masks"):
    num_classes = max(num_classes, 1 + len(findings.class_names))
  if "num_classes" in given:
    num_classes = dataset.num_classes
  findings.dataset = dataclasses.replace(findings.dataset, num_classes=num_classes)
  return findings


def _nothing_there(dataset: Dataset, unmatched: dict[str, list[str]]) -> str:
  reasons = "; ".join(each for problems in unmatched.values() for each in problems)
  has_images = (remote_or_local(dataset.path) / "images").is_dir()
  hint = "; is it a part itself? --split=. takes it as one" if has_images else ""
  return f"{dataset.path}: found nothing to inspect as --kind={dataset.kind}: {reasons}{hint}"


def _surveys(
  dataset: Dataset, files: dict[str, SampleFiles], unmatched: dict[str, list[str]], given: bool, max_images: int
) -> tuple[dict[str, Survey], Guess | None, LabelFormat]:
  """Surveys with the format that is given, or with the one that fits best."""
  label_format = dataset.label_format
  if not given:
    peeked = _merged([read_values(each, _PEEKED) for each in files.values()])
    label_format = _guess(dataset, peeked).label_format if peeked.num_files else label_format
  while True:
    surveys = {split: Survey(split) for split in files}
    for split, survey in surveys.items():
      survey.problems["unmatched"] += unmatched[split]
      survey_split(survey, files[split], label_format, max_images)
    stored = _merged([survey.values for survey in surveys.values()])
    guess = _guess(dataset, stored) if stored.num_files else None
    if given or guess is None or guess.label_format == label_format:
      return surveys, guess, label_format
    # The labels that were looked at first did not hold all values: once more, knowing them.
    label_format, given = guess.label_format, True


def _guess(dataset: Dataset, stored: StoredValues) -> Guess:
  """What the labels look like; masks are of one class each."""
  guess = guess_format(stored)
  if dataset.kind != "masks" or guess.label_format.mode == "binary":
    return guess
  return Guess(LabelFormat("binary"), 2, "labels are masks of one class or instance each")


def _merged(stored: Sequence[StoredValues]) -> StoredValues:
  merged = StoredValues()
  for each in stored:
    merged = merged.merge(each)
  return merged


class _SurveyedSource:
  """A source of what is already known of surveyed samples, for `group_names`; see `Source`."""

  def __init__(self, survey: Survey, files: SampleFiles):
    self._survey, self._files = survey, files
    self.num_classes = IGNORE

  def __len__(self) -> int:
    return len(self._survey.samples)

  def __getitem__(self, index: int) -> Sample:
    raise InputError(f"{self.name(index)}: only its name and classes are known")

  def name(self, index: int) -> str:
    return self._survey.samples[index].name

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    raise InputError(f"{self.name(index)}: only its name and classes are known")

  def classes(self, index: int) -> tuple[int, ...] | None:
    return self._survey.samples[index].classes or ()

  def field(self, index: int, key: str) -> str:
    return self._files.field(self._survey.samples[index].index, key)


def _groups(spec: str, files: dict[str, SampleFiles], surveys: dict[str, Survey]) -> Groups:
  sizes: dict[str, collections.Counter] = {}
  problems = []
  for split, survey in surveys.items():
    try:
      sizes[split] = collections.Counter(group_names(_SurveyedSource(survey, files[split]), spec))
    except InputError as error:
      problems.append(f"{split}: {error}")
      sizes[split] = collections.Counter()
  # Samples of the same classes have nothing else in common: that is no leak.
  in_splits = collections.Counter(group for each in sizes.values() for group in each)
  shared = [] if spec == "classes" else sorted(group for group, count in in_splits.items() if count > 1)
  return Groups(spec, sizes, shared, problems)


def _copies(surveys: dict[str, Survey]) -> list[Copies]:
  found = []
  for first, second in itertools.combinations(surveys.values(), 2):
    pairs, num_copied = near_duplicates([each for _, each in first.prints], [each for _, each in second.prints])
    named = [
      (first.samples[first.prints[a][0]].name, second.samples[second.prints[b][0]].name, round(difference, 4))
      for a, b, difference, _ in pairs[:_NAMED]
    ]
    found.append(Copies(first.split, second.split, named, num_copied, len(second.prints)))
  return found


def describe_format(findings: Findings) -> dict[str, Any]:
  """The keys of the configuration's `data` that say what and how to read, without those at their defaults."""
  dataset, label_format = findings.dataset, findings.dataset.label_format
  keys: dict[str, Any] = {"path": dataset.path}
  if dataset.kind != "folder":
    keys["source"] = dataset.kind
  for key, survey in zip(("train_split", "val_split"), findings.surveys.values(), strict=False):
    if survey.split != key.removesuffix("_split"):
      keys[key] = survey.split
  keys["labels"] = label_format.mode
  keys["num_classes"] = dataset.num_classes
  defaults = {"threshold": 0, "table": (), "ignore": ()}
  keys |= {k: getattr(label_format, k) for k, default in defaults.items() if getattr(label_format, k) != default}
  defaults = {"class_names": (), "image_key": "image", "label_key": "segmentation_mask"}
  keys |= {k: getattr(dataset, k) for k, default in defaults.items() if getattr(dataset, k) != default}
  return keys
