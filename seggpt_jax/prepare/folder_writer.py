"""Writes samples as SPLIT/{images,labels}/NAME.*, and resumes where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data.bad_files import BadFile, BadFiles
from seggpt_jax.data.ledger import Ledger, read_entries
from seggpt_jax.data.sample_index import SampleIndex
from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole
from seggpt_jax.prepare.encoding import EncodedSample, image_ending


def write_folder(
  directory: Path,
  split: str,
  names: Sequence[str],
  samples: Callable[[Sequence[int]], Iterator[EncodedSample | BadFile]],
  num_classes: int,
) -> tuple[SampleIndex, int]:
  """Writes the samples of one split that an earlier run has not written.

  Finished samples are listed in a journal, which `delete_journal` removes once the whole dataset is finished.

  Args:
    directory: local folder for SPLIT/images and SPLIT/labels.
    split: part of the dataset.
    names: names of all samples, by position.
    samples: function that takes positions and yields their samples in order.
    num_classes: number of classes, background included.

  Returns:
    The index of all samples written, now and before, and the number of bytes in their files.

  Raises:
    InputError: a name cannot be used as a file name here, or the folder cannot be written to.
  """
  for name in names:
    *folders, file = name.split("/")
    if any("." in folder or not folder for folder in folders) or file.startswith(".") or not file:
      raise InputError(
        f"{split}: found the name {name!r}, expected no dot in its folders or at its start; --format=records accepts it"
      )
  journal = _journal(directory, split)
  with Ledger(journal) as ledger:
    # Bad samples are tried again, because their files may have been repaired.
    done = {name for name, entry in ledger.finished.items() if "bad" not in entry}
    for sample in samples([i for i, name in enumerate(names) if name not in done]):
      ledger.add(**_write(directory / split, sample))
    entries = list(ledger.finished.values())
  good = [entry for entry in entries if "bad" not in entry]
  bad = BadFiles()
  for entry in entries:
    if "bad" in entry:
      bad.add(entry["name"], entry["bad"])
  if not good:
    raise InputError(f"{split}: found no sample that can be used, expected at least one")
  index = SampleIndex.of(*([e[key] for e in good] for key in ("name", "group", "classes")), num_classes, bad.lines())
  return index, sum(entry["bytes"] for entry in good)


def has_finished_samples(directory: Path, split: str) -> bool:
  """Returns True if the journal of a split lists a finished sample."""
  entries = read_entries(directory, _journal(directory, split).name)
  return any("bad" not in entry for entry in entries.values())


def delete_journal(directory: Path, split: str) -> None:
  """Deletes the journal of a split, if there is one."""
  _journal(directory, split).unlink(missing_ok=True)


def _journal(directory: Path, split: str) -> Path:
  return directory / f".journal-{split}"


def _write(directory: Path, sample: EncodedSample | BadFile) -> dict[str, Any]:
  """Writes image and label of a sample. Returns its entry in the journal."""
  if isinstance(sample, BadFile):
    return {"name": sample.name, "bad": sample.reason}
  image = directory / "images" / f"{sample.name}{image_ending(sample.image)}"
  write_whole(image, lambda file: file.write(sample.image))
  write_whole(directory / "labels" / f"{sample.name}.png", lambda file: file.write(sample.label))
  size = len(sample.image) + len(sample.label)
  return {"name": sample.name, "group": sample.group, "classes": list(sample.classes), "bytes": size}
