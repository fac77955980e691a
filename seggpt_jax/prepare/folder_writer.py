"""Writes samples as {SPLIT}/{images,labels}/NAME.*, and goes on where a run was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data.sample_index import SampleIndex
from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole, writing
from seggpt_jax.prepare.encoding import BadSample, EncodedSample, image_ending


def write_folder(
  directory: Path,
  split: str,
  names: Sequence[str],
  samples: Callable[[Sequence[int]], Iterator[EncodedSample | BadSample]],
  num_classes: int,
) -> tuple[SampleIndex, int]:
  """Writes what is missing of one split; finished pairs stand in a journal until `forget`.

  Args:
    directory: local folder for SPLIT/images and SPLIT/labels.
    split: name of the part.
    names: of all samples, by position.
    samples: gives those at some positions, in order.
    num_classes: N, background included.

  Returns:
    The samples written, now and before, and the bytes of their files.

  Raises:
    InputError: a name cannot be one of a file here, or the folder cannot be written to.
  """
  for name in names:
    *folders, file = name.split("/")
    if any("." in folder or not folder for folder in folders) or file.startswith(".") or not file:
      raise InputError(
        f"{split}: found the name {name!r}, expected no such dots in a folder; --format=records takes it"
      )
  journal = _journal(directory, split)
  with writing(journal):
    # What was bad may have been mended meanwhile: it is tried again.
    known = [entry for entry in _read(journal) if "bad" not in entry]
    if journal.exists():
      _remove_torn(directory / split)
    done = {entry["name"] for entry in known}
    with open(journal, "a", encoding="utf-8") as file:
      for sample in samples([i for i, name in enumerate(names) if name not in done]):
        known.append(_write(directory / split, sample))
        # In front, so that a line that a run was stopped in cannot spoil this one.
        file.write(f"\n{json.dumps(known[-1])}")
        file.flush()
  good = [entry for entry in known if "bad" not in entry]
  bad = [f"{entry['name']}: {entry['bad']}" for entry in known if "bad" in entry]
  if not good:
    raise InputError(f"{split}: found no sample that can be used, expected at least one")
  index = SampleIndex.of(*([e[key] for e in good] for key in ("name", "group", "classes")), num_classes, bad)
  return index, sum(entry["bytes"] for entry in good)


def has_begun(directory: Path, split: str) -> bool:
  """Whether any pair of a split is finished."""
  return any("bad" not in entry for entry in _read(_journal(directory, split)))


def forget(directory: Path, split: str) -> None:
  """Removes the journal of a split once all is done."""
  _journal(directory, split).unlink(missing_ok=True)


def _journal(directory: Path, split: str) -> Path:
  return directory / f".journal-{split}"


def _read(journal: Path) -> list[dict[str, Any]]:
  entries = []
  if not journal.exists():
    return entries
  for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      entries.append(json.loads(line))
    except ValueError:
      continue  # the run was stopped while it wrote this line
  return entries


def _remove_torn(directory: Path) -> None:
  """Files that `write_whole` had no time to move to their place."""
  for folder, _, files in os.walk(directory):
    for file in files:
      if file.startswith("."):
        (Path(folder) / file).unlink()


def _write(directory: Path, sample: EncodedSample | BadSample) -> dict[str, Any]:
  """Writes a pair; what the journal says of it."""
  if isinstance(sample, BadSample):
    return {"name": sample.name, "bad": sample.reason}
  image = directory / "images" / f"{sample.name}{image_ending(sample.image)}"
  write_whole(image, lambda file: file.write(sample.image))
  write_whole(directory / "labels" / f"{sample.name}.png", lambda file: file.write(sample.label))
  size = len(sample.image) + len(sample.label)
  return {"name": sample.name, "group": sample.group, "classes": list(sample.classes), "bytes": size}
