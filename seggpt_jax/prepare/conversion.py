"""Settings in, a converted dataset out: finds what is to be written, and what an earlier run has left to do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.groups import divide, group_names
from seggpt_jax.data.labels import IGNORE
from seggpt_jax.data.ledger import exclusive
from seggpt_jax.data.records import index_name
from seggpt_jax.data.sample_index import SampleIndex
from seggpt_jax.data.sources import EncodedSource, Subset
from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole, writing
from seggpt_jax.prepare.encoding import BadSample, EncodedSample, encoded_samples
from seggpt_jax.prepare.folder_writer import forget, has_begun, write_folder
from seggpt_jax.prepare.record_writer import VERSION, write_records
from seggpt_jax.prepare.restart import NOTE, check_same, read_note, save_note

FORMATS = ("records", "folder")
BAD_FILE = "bad_files.txt"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides what is written.

  Attributes:
    dataset: what is read.
    splits: its parts.
    output: one of `FORMATS`.
    val_share: share of the samples of train that become val, as whole groups; 0 leaves the parts as they are.
    groups: see `groups.group_names`.
    seed: of the choice of groups.
    name: of a dataset of records.
    shorter_side: in pixels, of images that are shrunk; 0 shrinks none.
  """

  dataset: Dataset
  splits: tuple[str, ...]
  output: str
  val_share: float = 0.0
  groups: str = ""
  seed: int = 0
  name: str = "mine"
  shorter_side: int = 0

  def __post_init__(self):
    if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
      raise InputError(f"dataset_name: found {self.name!r}, expected lower case letters, digits and underscores")
    written = [_written_name(split) for split in self.splits]
    if len(set(written)) < len(written):
      raise InputError(f"split: found {','.join(self.splits)}, expected parts of different names")
    if self.val_share and ("train" not in written or "val" in written):
      raise InputError(f"val_share: found --split={','.join(self.splits)}, expected train and no val beside it")


class Part(NamedTuple):
  """One part of the dataset that is written."""

  split: str
  source: EncodedSource
  groups: list[str]


class Written(NamedTuple):
  """What was written of a part."""

  split: str
  index: SampleIndex
  num_bytes: int


def _written_name(split: str) -> str:
  """train for train[:90%]; TFDS takes only letters, digits and underscores."""
  return re.sub(r"\W", "_", re.split(r"[\[+]", split)[0])


def prepare(settings: Settings, outdir: str | os.PathLike, skip_bad: bool = False, num_workers: int = 2) -> str:
  """Writes the dataset, or what an earlier run with the same settings left to do.

  Args:
    settings: what to write.
    outdir: local folder, new, empty or of such a run.
    skip_bad: leaves out samples that cannot be used and lists them in OUTDIR/bad_files.txt.
    num_workers: threads that decode and compress.

  Returns:
    What was written, as text for people.

  Raises:
    InputError: the dataset cannot be read, or the folder holds something else.
  """
  directory = Path(outdir)
  if "://" in str(outdir):
    raise InputError(f"outdir: found {outdir}, expected a local folder; copy it to its place when it is done")
  wanted = _as_json(settings)
  with writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
  with exclusive(directory):
    earlier = read_note(directory)
    check_same(directory, earlier.get("settings", wanted), wanted)
    if earlier.get("finished") and _is_there(directory, settings, earlier["samples"]):
      for split in earlier["samples"]:
        forget(directory, split)
      return f"{directory}: finished by an earlier run, nothing to do\n{earlier['finished']}"
    parts = plan(settings)
    samples = {part.split: _digest(part) for part in parts}
    check_same(directory, earlier.get("samples", samples), samples)
    save_note(directory, {"settings": wanted, "samples": samples})
    write = _write_records if settings.output == "records" else _write_folder
    try:
      written = write(parts, settings, directory, skip_bad, num_workers)
    except InputError:
      _withdraw(directory, settings, parts)
      raise
    bad = [f"{each.split}: {line}" for each in written for line in each.index.bad.tolist()]
    if bad:
      write_whole(directory / BAD_FILE, lambda file: file.write("".join(f"{line}\n" for line in bad).encode()))
    report = _report(written, bad, settings, directory)
    save_note(directory, {"settings": wanted, "samples": samples, "finished": report})
    for part in parts:
      forget(directory, part.split)
  return report


def plan(settings: Settings) -> list[Part]:
  """The parts that are written; groups are never on both sides of a division."""
  parts = []
  for split in settings.splits:
    source = open_dataset(settings.dataset, split)
    part = Part(_written_name(split), source, group_names(source, settings.groups))
    if settings.val_share and part.split == "train":
      chosen = divide(part.groups, settings.val_share, settings.seed)
      parts += [_subset(part, "train", np.flatnonzero(~chosen)), _subset(part, "val", np.flatnonzero(chosen))]
    else:
      parts.append(part)
  return parts


def _subset(part: Part, split: str, indices: np.ndarray) -> Part:
  return Part(split, Subset(part.source, indices), [part.groups[i] for i in indices])


def _samples(
  part: Part, positions: Sequence[int], skip_bad: bool, num_workers: int, shorter_side: int
) -> Iterator[EncodedSample | BadSample]:
  """Samples at positions, with a bar that shows the rate and the time left."""
  stream = encoded_samples(part.source, positions, part.groups, num_workers, skip_bad, shorter_side)
  total = len(part.source)
  return iter(tqdm(stream, desc=part.split, unit="sample", total=total, initial=total - len(positions)))


def _write_records(
  parts: Sequence[Part], settings: Settings, directory: Path, skip_bad: bool, num_workers: int
) -> list[Written]:
  def samples_of(part: Part):
    positions = range(len(part.source))
    return lambda start: _samples(part, positions[start:], skip_bad, num_workers, settings.shorter_side)

  streams = {part.split: samples_of(part) for part in parts}
  version = write_records(directory, settings.name, streams, settings.dataset.num_classes)
  return [
    Written(
      part.split,
      SampleIndex.load(version / index_name(part.split)),
      sum(file.stat().st_size for file in version.glob(f"{settings.name}-{part.split}.array_record-*")),
    )
    for part in parts
  ]


def _write_folder(
  parts: Sequence[Part], settings: Settings, directory: Path, skip_bad: bool, num_workers: int
) -> list[Written]:
  written = []
  for part in parts:
    names = [part.source.name(i) for i in range(len(part.source))]

    def samples(positions: Sequence[int], part: Part = part) -> Iterator[EncodedSample | BadSample]:
      return _samples(part, positions, skip_bad, num_workers, settings.shorter_side)

    written.append(
      Written(part.split, *write_folder(directory, part.split, names, samples, settings.dataset.num_classes))
    )
  return written


# -------------------------------------------------------------------------------------------------------- earlier runs


def _as_json(settings: Settings) -> dict[str, Any]:
  """The settings as they come back from a file."""
  values = dataclasses.asdict(settings)
  dataset = values.pop("dataset")
  if "://" not in dataset["path"]:
    dataset["path"] = os.path.abspath(dataset["path"])
  return json.loads(json.dumps({**dataset, **values}))


def _is_there(directory: Path, settings: Settings, splits: Iterable[str]) -> bool:
  """Whether what an earlier run wrote has not been moved away."""
  places = [f"{settings.name}/{VERSION}"] if settings.output == "records" else splits
  return all((directory / place).is_dir() for place in places)


def _withdraw(directory: Path, settings: Settings, parts: Sequence[Part]) -> None:
  """Leaves the folder as it was if nothing was finished: wrong flags are mended and the command is run again."""
  unfinished = directory / settings.name / "incomplete"
  begun = [*unfinished.glob("shards/*.npz"), *(part for part in parts if has_begun(directory, part.split))]
  if begun:
    return
  shutil.rmtree(unfinished, ignore_errors=True)
  with contextlib.suppress(OSError):
    unfinished.parent.rmdir()
  for part in parts:
    forget(directory, part.split)
  (directory / NOTE).unlink(missing_ok=True)


def _digest(part: Part) -> str:
  """Tells whether the samples are still the same when a run goes on."""
  digest = hashlib.sha256()
  for i in range(len(part.source)):
    digest.update(f"{part.source.name(i)}\0{part.groups[i]}\0".encode())
  return f"{len(part.source)} samples {digest.hexdigest()[:16]}"


# -------------------------------------------------------------------------------------------------------------- report


def _report(written: Iterable[Written], bad: Sequence[str], settings: Settings, directory: Path) -> str:
  lines = [f"{'split':<8}{'samples':>9}{'groups':>8}{'MB':>10}  classes by share of samples"]
  for split, index, num_bytes in written:
    shares = " ".join(f"{1 + i}:{share:.0%}" for i, share in enumerate(index.shares()))
    groups = len(index.group_names) if settings.groups else "-"
    lines.append(f"{split:<8}{len(index):>9}{groups:>8}{num_bytes / 1e6:>10.1f}  {shares}")
  if bad:
    lines.append(f"left out: {len(bad)} bad files, listed in {directory / BAD_FILE}")
    lines += [f"  {line}" for line in bad[:10]] + (["  ..."] if len(bad) > 10 else [])
  records = settings.output == "records"
  source = f"--config.data.source={'tfds' if records else 'folder'}"
  path = f"--config.data.path={directory / settings.name if records else directory}"
  # Records say themselves what is ignored.
  labels = "--config.data.labels=index" + ("" if records else f" --config.data.ignore={IGNORE}")
  lines += [
    "next:",
    f"  python train.py --config configs/base.py --workdir runs/{settings.name} {source} {path} \\",
    f"    {labels} --config.data.num_classes={settings.dataset.num_classes}",
  ]
  return "\n".join(lines)
