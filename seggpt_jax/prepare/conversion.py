"""Conversion of a dataset: settings in, folders or records out. A stopped conversion resumes with the same settings."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from seggpt_jax.data import ledger
from seggpt_jax.data.bad_files import LIST_FILE, BadFile, BadFiles
from seggpt_jax.data.datasets import Dataset, check_categories, open_dataset
from seggpt_jax.data.groups import divide, group_names
from seggpt_jax.data.sample_index import SampleIndex, index_name
from seggpt_jax.data.sources import EncodedSource, View
from seggpt_jax.errors import InputError
from seggpt_jax.files import exclusive, expand, remove_leftovers, writing
from seggpt_jax.formats.folders import TRAIN_NAMES, VAL_NAMES
from seggpt_jax.formats.labels import IGNORE
from seggpt_jax.prepare import writers
from seggpt_jax.prepare.writers import EncodedSample
from seggpt_jax.written import RECORD, open_record

FORMATS = ("records", "folder")
NOTE = "prepare.json"
_REMEDY = "repeat the earlier flags, or choose another --outdir"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that decides what is written.

  Raises:
    InputError: the settings contradict each other.
  """

  dataset: Dataset
  splits: tuple[str, ...]  # parts of the dataset to convert
  output: str  # one of `FORMATS`
  val_share: float = 0.0  # share of the train samples that become val, as whole groups; 0 keeps the parts
  groups: str = ""  # rule for the group of a sample, see `groups.group_names`
  seed: int = 0  # of the choice of groups
  name: str = "mine"  # of a dataset of records
  shorter_side: int = 0  # pixels to which the shorter side of larger images is shrunk; 0 shrinks none

  def __post_init__(self):
    if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
      raise InputError(f"dataset_name: found {self.name!r}, expected lower case letters, digits and underscores")
    written = self.written_names
    if len(set(written)) < len(written):
      raise InputError(f"split: found {','.join(self.splits)}, expected parts of different names")
    if self.val_share and ("train" not in written or "val" in written):
      raise InputError(f"val_share: found --split={','.join(self.splits)}, expected train without val")

  @property
  def written_names(self) -> list[str]:
    """Names of the parts as they are written. A part that is divided becomes train."""
    written = [_written_name(split) for split in self.splits]
    return ["train"] if self.val_share and len(written) == 1 else written


class Part(NamedTuple):
  """One part of the dataset to write, with the group of each of its samples."""

  split: str
  source: EncodedSource
  groups: list[str]


# Encodes the samples of a part at the given positions.
_Samples = Callable[[Part, Sequence[int]], Iterator[EncodedSample | BadFile]]


class Written(NamedTuple):
  """One part of the dataset that was written."""

  split: str
  index: SampleIndex
  num_bytes: int


def _written_name(split: str) -> str:
  """Returns the name for a split that TFDS accepts, such as train for train[:90%], and val for valid."""
  name = re.sub(r"\W", "_", re.split(r"[\[+]", split)[0])
  known = {**dict.fromkeys(TRAIN_NAMES, TRAIN_NAMES[0]), **dict.fromkeys(VAL_NAMES, VAL_NAMES[0])}
  return known.get(name.lower(), name)


def prepare(settings: Settings, outdir: str | os.PathLike, skip_bad: bool = False, num_workers: int = 2) -> str:
  """Writes the dataset, or the part of it that an earlier run with the same settings has not written.

  Args:
    settings: what to read and what to write.
    outdir: local folder: new, empty, or that of an earlier run with the same settings.
    skip_bad: True leaves out samples that cannot be used and lists them in OUTDIR/bad_files.txt; False stops at the
      first.
    num_workers: number of threads that decode and compress.

  Returns:
    A report of what was written, for the user.

  Raises:
    InputError: the dataset cannot be read, or the folder has other content.
  """
  directory = Path(expand(outdir))
  if "://" in str(outdir):
    raise InputError(f"outdir: found {outdir}, expected a local folder; copy it to its place when it is finished")
  wanted = _as_json(settings)
  with writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
  with exclusive(directory):
    earlier = _read_note(directory)
    remove_leftovers(directory, *settings.written_names, settings.name)
    with writing(directory):
      open_record(directory)
    ledger.check_settings(directory / NOTE, earlier.get("settings", wanted), wanted, _REMEDY)
    places = [f"{settings.name}/{writers.VERSION}"] if settings.output == "records" else earlier.get("samples", ())
    if earlier.get("finished") and all((directory / place).is_dir() for place in places):
      for split in earlier["samples"]:
        writers.delete_journal(directory, split)
      return f"{directory}: finished by an earlier run, nothing to do\n{earlier['finished']}"
    left_out: dict[str, list[str]] = {}
    parts = _plan(settings, left_out if skip_bad else None)
    samples = {part.split: _digest(part) for part in parts}
    ledger.check_settings(directory / NOTE, earlier.get("samples", samples), samples, _REMEDY)
    note = {"settings": wanted, "samples": samples}
    ledger.write_note(directory / NOTE, note)

    def encoded(part: Part, positions: Sequence[int]) -> Iterator[EncodedSample | BadFile]:
      stream = writers.encoded_samples(
        part.source, positions, part.groups, num_workers, skip_bad, settings.shorter_side
      )
      total = len(part.source)
      return iter(tqdm(stream, desc=part.split, unit="sample", total=total, initial=total - len(positions)))

    write = _write_records if settings.output == "records" else _write_folder
    try:
      written = write(parts, settings, directory, encoded)
    except InputError:
      _clean_up(directory, settings, parts)
      raise
    bad = BadFiles()
    for split, problems in left_out.items():
      for problem in problems:
        bad.add(problem, split=split)
    for each in written:
      for line in each.index.bad.tolist():
        bad.add(line, split=each.split)
    if bad:
      bad.write(directory / LIST_FILE)
    report = _report(written, bad, settings, directory)
    ledger.write_note(directory / NOTE, {**note, "finished": report})
    for part in parts:
      writers.delete_journal(directory, part.split)
  return report


def _plan(settings: Settings, left_out: dict[str, list[str]] | None = None) -> list[Part]:
  """Returns the parts to write. If train is divided into train and val, no group is in both.

  Files that do not fit are described in `left_out`, by part; None raises at the first one.
  """
  parts = []
  for split, name in zip(settings.splits, settings.written_names, strict=True):
    problems = None if left_out is None else left_out.setdefault(name, [])
    source = open_dataset(settings.dataset, split, problems=problems)
    part = Part(name, source, group_names(source, settings.groups))
    if settings.val_share and part.split == "train":
      chosen = divide(part.groups, settings.val_share, settings.seed)
      parts += [_subset(part, "train", np.flatnonzero(~chosen)), _subset(part, "val", np.flatnonzero(chosen))]
    else:
      parts.append(part)
  check_categories([part.source for part in parts])
  return parts


def _subset(part: Part, split: str, indices: np.ndarray) -> Part:
  return Part(split, View(part.source, indices=indices), [part.groups[i] for i in indices])


def _write_records(parts: Sequence[Part], settings: Settings, directory: Path, samples: _Samples) -> list[Written]:
  streams = {part.split: lambda start, part=part: samples(part, range(start, len(part.source))) for part in parts}
  version = writers.write_records(directory, settings.name, streams, settings.dataset.num_classes)
  return [
    Written(
      part.split,
      SampleIndex.load(version / index_name(part.split)),
      sum(file.stat().st_size for file in version.glob(f"{settings.name}-{part.split}.array_record-*")),
    )
    for part in parts
  ]


def _write_folder(parts: Sequence[Part], settings: Settings, directory: Path, samples: _Samples) -> list[Written]:
  written = []
  for part in parts:
    names = [part.source.name(i) for i in range(len(part.source))]
    encode = functools.partial(samples, part)
    written.append(
      Written(part.split, *writers.write_folder(directory, part.split, names, encode, settings.dataset.num_classes))
    )
  return written


# -------------------------------------------------------------------------------------------------------- earlier runs


def _as_json(settings: Settings) -> dict[str, Any]:
  """Returns the settings as they look after writing them to a JSON file and reading them back."""
  values = dataclasses.asdict(settings)
  dataset = values.pop("dataset")
  if "://" not in dataset["path"]:
    dataset["path"] = os.path.abspath(expand(dataset["path"]))
  return json.loads(json.dumps({**dataset, **values}))


def _clean_up(directory: Path, settings: Settings, parts: Sequence[Part]) -> None:
  """Restores the folder if no sample was finished, so that the user can correct the flags and run the command again."""
  unfinished = directory / settings.name / "incomplete"
  if any(unfinished.glob("shards/*.npz")) or any(writers.has_finished_samples(directory, part.split) for part in parts):
    return
  shutil.rmtree(unfinished, ignore_errors=True)
  with contextlib.suppress(OSError):
    unfinished.parent.rmdir()
  for part in parts:
    writers.delete_journal(directory, part.split)
  (directory / NOTE).unlink(missing_ok=True)
  if os.listdir(directory) == [RECORD]:
    (directory / RECORD).unlink()


def _digest(part: Part) -> str:
  """Returns a string that identifies the samples and their groups, to compare them when a run is resumed."""
  digest = hashlib.sha256()
  for i in range(len(part.source)):
    digest.update(f"{part.source.name(i)}\0{part.groups[i]}\0".encode(errors="surrogatepass"))
  return f"{len(part.source)} samples {digest.hexdigest()[:16]}"


# -------------------------------------------------------------------------------------------------------------- report


def _split_keys(splits: Sequence[str]) -> str:
  """Returns the keys that name the parts to train on and to validate on, where they are not train and val."""
  train = "train" if "train" in splits else splits[0]
  val = "val" if "val" in splits else next((split for split in splits if split != train), train)
  keys = {"train": train, "val": val}
  return "".join(f" --config.data.{key}_split={shlex.quote(name)}" for key, name in keys.items() if name != key)


def _report(written: Iterable[Written], bad: BadFiles, settings: Settings, directory: Path) -> str:
  lines = [f"{'split':<8}{'samples':>9}{'groups':>8}{'MB':>10}  classes by share of samples"]
  for split, index, num_bytes in written:
    shares = " ".join(f"{1 + i}:{share:.0%}" for i, share in enumerate(index.shares()))
    groups = len(index.group_names) if settings.groups else "-"
    lines.append(f"{split:<8}{len(index):>9}{groups:>8}{num_bytes / 1e6:>10.1f}  {shares}")
  if bad:
    lines.append(f"left out: {len(bad)} bad files, listed in {directory / LIST_FILE}")
    lines += [f"  {file}" for file in itertools.islice(bad, 10)] + (["  ..."] if len(bad) > 10 else [])
  records = settings.output == "records"
  source = f"--config.data.source={'tfds' if records else 'folder'}"
  path = f"--config.data.path={shlex.quote(str(directory / settings.name if records else directory))}"
  keys = _split_keys([each.split for each in written])
  # Records need no flag for ignored pixels, because their index says that 255 is ignored.
  labels = "--config.data.labels=index" + ("" if records else f" --config.data.ignore={IGNORE}")
  config = "base" if Path("weights/vit_large").is_dir() else "small"  # of the weights that are here
  lines += [
    "next:",
    f"  seggpt train --config {config} --workdir runs/{settings.name} {source} {path} \\",
    f"    {labels} --config.data.num_classes={settings.dataset.num_classes}{keys}",
  ]
  return "\n".join(lines)


def _read_note(directory: Path) -> dict[str, Any]:
  """Reads what an earlier run noted; an empty dictionary for an empty folder."""
  note = ledger.read_note(directory / NOTE)
  if note is not None:
    if not {"settings", "samples"} <= note.keys():
      raise InputError(f"{directory / NOTE}: found no settings of an earlier run in it; choose another --outdir")
    return note
  # A run that was stopped before it wrote anything may leave an unfinished note.
  present = [path.name for path in directory.iterdir() if not path.name.startswith(f".{NOTE}") and path.name != RECORD]
  if present:
    raise InputError(f"{directory}: found {present[0]} in it, expected a new folder, or that of an earlier run")
  return {}
