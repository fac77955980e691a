"""Builds small datasets and reads all of them, as the commands do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz_targets import Laps, Target
from seggpt_jax.audit.advice import advise, train_line
from seggpt_jax.audit.contact_sheet import draw_samples
from seggpt_jax.audit.findings import audit_dataset
from seggpt_jax.audit.report import as_facts, as_text
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE
from seggpt_jax.formats.recognize import recognize

CLASSES = 254


def make_target(folder: Path, names: Sequence[str], read: Callable[[], None], structured: bool = True) -> Target:
  return Target({name: (folder / name).read_bytes() for name in names}, read, structured)


def check_source(source: Source, laps: Laps | None = None) -> None:
  """Reads every sample, and checks that image, label and classes fit together. Errors of samples are gathered.

  Args:
    source: the samples.
    laps: times each reading.

  Raises:
    InputError: a sample cannot be read; the others were read too.
  """
  laps, problems = laps or Laps(), []
  known = getattr(source, "categories", ()) or range(1, source.num_classes)
  for index in range(len(source)):
    try:
      source.name(index).encode()
      source.label_stamp(index)
      sample, classes = source[index], source.classes(index)
      laps.end_lap()
      label = source.label(index)
      laps.end_lap()
      assert sample["image"].dtype == sample["label"].dtype == np.uint8
      assert sample["image"].shape == (*sample["label"].shape, 3)
      np.testing.assert_array_equal(label, sample["label"])
      found = set(np.unique(label).tolist()) - {0, IGNORE}
      assert not found or max(found) <= len(known), f"classes {found} of {len(known)}"
      assert classes is None or found <= set(classes), f"found {found}, stated {classes}"
    except InputError as error:
      problems.append(error)
  if problems:
    raise problems[0]


def inspect_folder(path: Path, kind: str | None = None, laps: Laps | None = None) -> None:
  """Does all that `seggpt inspect` does but write files, which reads some files up to three times."""
  laps = laps or Laps()
  form = recognize(str(path), kind)
  laps.end_lap()
  findings = audit_dataset(Dataset(form.kind, str(path), 2), list(form.splits[:2]) or ["train"], frozenset())
  laps.end_lap()
  advice = advise(findings)
  facts = as_facts(findings) | {"advice": [each.text for each in advice]}
  facts |= {"ready": not any(each.fatal for each in advice), "train": train_line(findings, advice)}
  json.dumps(facts, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
  as_text(facts).encode(errors="backslashreplace")
  draw_samples(findings)
  laps.end_lap()


def make_dataset(folder: Path, names: Sequence[str], kind: str, split: str = ".") -> Target:
  """Returns a dataset that is opened as the kind it is, and inspected as one of unknown kind."""

  def read() -> None:
    problems: list[str] = []
    inspect_folder(folder)
    check_source(open_dataset(Dataset(kind, str(folder), CLASSES), split, problems=problems))
    check_source(open_dataset(Dataset(kind, str(folder), CLASSES), split))

  return make_target(folder, names, read)


def saved(image: Image.Image, file_format: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


def palette(label: np.ndarray) -> bytes:
  image = Image.fromarray(label, "P")
  image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
  return saved(image, "PNG")


def gray(label: np.ndarray, file_format: str = "PNG", scale: int = 1, dtype: type = np.uint8, **options) -> bytes:
  return saved(Image.fromarray(label.astype(dtype) * dtype(scale)), file_format, **options)
